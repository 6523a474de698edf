"""The examples on the page "What a method may use": each is trained, and each keeps the rules about what it uses."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest
import yaml

from cispbench.harness.contract.bench import Bench, Sizes
from cispbench.harness.contract.check import RULES
from cispbench.harness.method import Method
from cispbench.harness.wrapper import Wrapper

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mechanisms.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
IMPORTS, *EXAMPLES = [text for language, text in BLOCKS if language == "python"]
NAMES = [re.findall(r'name = "(\w+)"', text)[0] for text in EXAMPLES]
SMALL = Sizes(setting="overlapped-10-10", grid=4, scenes=26, batch=4, iterations=2, learning=8)
# Those that look at the one training alone.
QUICK = {
    "declarations", "losses-finite", "hands-off", "initialise", "select-exemplars", "prepare", "weights-untouched",
    "reads-previous", "scores",
}  # fmt: skip


def recipe_of(name: str) -> str | None:
    """Return the recipe that follows a method on the page, before the next method."""
    found, last = {}, None
    for language, text in BLOCKS:
        if language == "python":
            last = (re.findall(r'name = "(\w+)"', text) or [None])[0]
        else:
            assert language == "yaml"
            found[last] = text
    return found.get(name)


def load_example(name: str, folder: Path) -> type[Method]:
    """Return the method of an example as a module of its own, with its recipe beside it, under every profile."""
    path = folder / f"mechanism_{name}.py"
    path.write_text(f"{IMPORTS}\n\n{EXAMPLES[NAMES.index(name)]}")
    recipe = recipe_of(name)
    if recipe is not None:
        ((_, layers),) = yaml.safe_load(recipe).items()
        (folder / "recipes").mkdir()
        (folder / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump({"paper": layers, "quick": layers}))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    (cls,) = [
        one for one in vars(module).values()
        if inspect.isclass(one) and issubclass(one, Method) and one not in (Method, Wrapper)
    ]  # fmt: skip
    return cls


@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains_and_keeps_the_rules_about_what_it_uses(tmp_path, name):
    cls = load_example(name, tmp_path)
    bench = Bench(cls, "deeplabv3-tiny", SMALL, tmp_path / "bench")
    assert bench.main.failure is None, bench.main.failure
    for rule in RULES:
        if rule.name in QUICK:
            result = rule.result(bench)
            assert result.outcome in ("kept", "skipped"), result.findings
    recipe = bench.recipe()
    if name == "unknown":
        assert recipe.later["rates"] == {"encoder": 0, "decoder": 0, "old": 0, "new": 1, "unknown": 0.1}
    if name == "head_first":
        assert {call.phase for call in bench.main.steps[1].calls} == {"head", "train"}
        assert recipe.phase(1, "head").rates["old"] == 0


def test_the_page_has_every_mechanism_and_two_recipes():
    assert len(NAMES) == len(set(NAMES)) == 9
    assert sum(recipe_of(name) is not None for name in NAMES) == 2


def test_the_table_of_hooks_has_every_function_of_the_contract():
    text = (
        (PAGE.parent / "add-method.md")
        .read_text(encoding="utf-8")
        .partition("## The contract")[2]
        .partition("\n## ")[0]
    )
    functions = {name for name, value in vars(Method).items() if inspect.isfunction(value) and name != "__init__"}
    declared = {"unsupported", "layout", "phases", "companions", "memory"}
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    assert {name for name in functions if f"`{name}`" in rows} == functions - declared
    assert all(f"`{name}`" in text for name in declared)
