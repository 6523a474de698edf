"""The digest of a method's code: what it sees, what it leaves out, and what a run makes of it."""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Method
from cispbench.harness.registry import load_method
from cispbench.harness.runs import method_code as code_module
from cispbench.harness.runs.inputs import planned_method
from cispbench.harness.runs.key_parts import changed_parts, parts_from_record
from cispbench.harness.runs.method_code import UNKNOWN, is_built_in, method_code
from cispbench.harness.runs.plan import RunPlan
from cispbench.harness.runs.prepare import Preparer
from cispbench.harness.runs.request import RunRequest
from cispbench.harness.runs.step_store import StepStore
from cispbench.results.record_fields import MethodUsed
from cispbench.splits.errors import RunError
from tests.harness.conftest import Commands

METHOD = '''
"""A method of another package."""
from cispbench.methods.finetune import FineTune
from .numbers import WEIGHT
class Mine(FineTune):
    """Cross-entropy, weighted."""
    name = "mine"
    def losses(self, batch, output, previous, context):
        from plug import late
        terms = super().losses(batch, output, previous, context)
        return {name: WEIGHT * late.half(term) for name, term in terms.items()} if context.step else terms
'''
FILES = {
    "__init__.py": "",
    "method.py": METHOD,
    "numbers.py": "WEIGHT = 2.0\n",
    "late.py": "import plug.deep.more as more\ndef half(x):\n    return x * more.HALF\n",
    "deep/__init__.py": "",
    "deep/more.py": "HALF = 0.5\n",
    "unused.py": "NUMBER = 1\n",
}
Digest = Callable[..., str]


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Digest]:
    """Return the digest of the method above, some of whose files hold another text."""
    number = itertools.count()

    def measure(changed: dict[str, str] | None = None, zipped: bool = False) -> str:
        place = tmp_path / f"site{next(number)}"
        files = FILES | (changed or {})
        for name, text in files.items():
            (place / "plug" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "plug" / name).write_text(text)
        if zipped:
            with zipfile.ZipFile(tmp_path / "plug.zip", "w") as packed:
                for name in files:
                    packed.write(place / "plug" / name, f"plug/{name}")
            place = tmp_path / "plug.zip"
        forget()
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(place))
            return method_code(importlib.import_module("plug.method").Mine)

    yield measure
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "plug"]:
        del sys.modules[name]


def test_comments_docstrings_and_layout_do_not_count(digest: Digest) -> None:
    edited = METHOD.replace("of another package", "of mine").replace('"""Cross-entropy, weighted."""', "# nothing\n")
    edited = edited.replace("def losses(self, batch, output,", "def losses(\n        self, batch,  # images\n output,")
    assert digest({"method.py": edited}) == digest()


@pytest.mark.parametrize(
    "changed",
    [
        {"method.py": METHOD.replace("super().losses", "FineTune.losses")},
        {"method.py": METHOD.replace('name = "mine"', 'name = "mine"\n    kept = None')},
        {"numbers.py": "WEIGHT = 3.0\n"},
        {"numbers.py": "WEIGHT = 2\n"},
        {"late.py": FILES["late.py"].replace("half(x)", "half(x, y=None)")},
        {"deep/more.py": "HALF = 0.25\n"},
        {"__init__.py": "HALF = 1\n"},
    ],
    ids=str,
)
def test_every_edit_of_what_the_method_imports_counts(digest: Digest, changed: dict[str, str]) -> None:
    assert digest(changed) != digest()


def test_a_module_that_the_method_does_not_import_does_not_count(digest: Digest) -> None:
    assert digest({"unused.py": "NUMBER = 2\n"}) == digest()


def test_the_losses_that_come_with_cispbench_count_for_every_method(digest: Digest, tmp_path: Path) -> None:
    import cispbench.methods.losses as losses

    before, edited = (digest(), method_code(load_method("mib"))), tmp_path / "losses.py"
    edited.write_text(Path(losses.__file__).read_text().replace("known * _pixels(logits)", "known"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "__file__", str(edited))
        method_code.cache_clear()
        after = digest(), method_code(load_method("mib"))
    method_code.cache_clear()
    assert before[0] != after[0] and before[1] != after[1]


def test_a_method_in_a_zip_file_has_the_digest_of_its_sources(digest: Digest) -> None:
    assert digest(zipped=True) == digest()


def test_a_source_that_is_not_found_is_unknown() -> None:
    typed_in = type("TypedIn", (load_method("mib"),), {"__module__": "nowhere"})
    assert method_code(typed_in) == UNKNOWN
    assert not is_built_in(typed_in) and is_built_in(load_method("mib"))


def test_the_digest_is_the_same_with_every_version_of_python(digest: Digest) -> None:
    """Otherwise an update of Python would look like an edit, and would train the steps of all plug-ins again."""
    assert repr(code_module._plain(ast.parse(SOURCE))) == TREE


SOURCE = "def f(x=None):\n    '''Doc.'''\n    return f'{x!r:>3}', ...\n"
TREE = (
    "('Module', ('body', (('FunctionDef', ('name', 'f'), ('args', ('arguments', ('args', (('arg', ('arg', 'x')),)), "
    "('defaults', (('Constant',),)))), ('body', (('Return', ('value', ('Tuple', ('elts', (('JoinedStr', ('values', "
    "(('FormattedValue', ('value', ('Name', ('id', 'x'), ('ctx', ('Load',)))), ('conversion', 114), ('format_spec', "
    "('JoinedStr', ('values', (('Constant', ('value', '>3')),))))),))), ('Constant', ('value', Ellipsis)))), ('ctx', "
    "('Load',))))),))),)))"
)


def plan_of(tmp_path: Path, method: type[Method], patch: pytest.MonkeyPatch) -> RunPlan:
    for place in ("prepare", "inputs"):
        patch.setattr(f"cispbench.harness.runs.{place}.load_method", lambda name: method)
    request = RunRequest(method.name, "overlapped-15-5", profile="quick", model="segmenter-tiny")
    return Preparer(StepStore(tmp_path), ProgressView()).prepare(request)


def loaded(tmp_path: Path, text: str, patch: pytest.MonkeyPatch) -> type[Method]:
    forget()
    for name, content in {**FILES, "numbers.py": text}.items():
        (tmp_path / "plug" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plug" / name).write_text(content)
    patch.setattr(sys, "dont_write_bytecode", True)  # the two texts are of one size, written in one second
    patch.syspath_prepend(str(tmp_path))
    found: type[Method] = importlib.import_module("plug.method").Mine
    return found


def test_the_code_is_part_of_the_key_of_a_method_of_another_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_record: Any
) -> None:
    before, after = (
        plan_of(tmp_path, loaded(tmp_path, f"WEIGHT = {weight}\n", monkeypatch), monkeypatch) for weight in (2, 3)
    )
    assert before.steps[0].key == after.steps[0].key  # a shared base is trained without the method
    assert before.steps[1].key != after.steps[1].key
    old, new = before.steps[1].made_of, after.steps[1].made_of
    assert changed_parts(old, new, 1) == ["the code of the method changed"]
    assert "code" not in plan_of(tmp_path, load_method("mib"), monkeypatch).steps[1].made_of["method"]
    # The same from a record, and from the key of a version that did not have the digest.
    plan = after
    record = replace(
        make_record("overlapped-15-5", 1, "mine"), recipe=plan.recipe.as_dict(), seed=0,
        method=MethodUsed("mine", 1, {}, before.method.code), classes=plan.learnt.steps[1].classes,
    )  # fmt: skip
    assert "the code of the method changed" in changed_parts(parts_from_record(record, True), new, 1)
    bare = {**old, "method": {name: value for name, value in old["method"].items() if name != "code"}}
    assert changed_parts(bare, new, 1) == ["the key now holds the digest of the method's code"]


def test_a_method_that_is_edited_after_the_plan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path, loaded(tmp_path, "WEIGHT = 2\n", monkeypatch), monkeypatch)
    assert planned_method(plan).name == "mine"
    edited = loaded(tmp_path, "WEIGHT = 3\n", monkeypatch)
    monkeypatch.setattr("cispbench.harness.runs.inputs.load_method", lambda name: edited)
    with pytest.raises(RunError, match=r"the code of mine has changed since the run was planned: its digest"):
        planned_method(plan)


@pytest.fixture
def by_other_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Let steps be trained by another code until the returned function is called."""
    with pytest.MonkeyPatch.context() as patch:
        for place in ("keys", "method_code"):
            patch.setattr(f"cispbench.harness.runs.{place}.method_code", lambda cls: "0" * 64)
        yield patch.undo


@pytest.mark.parametrize("more", [(), ("--quiet",), ("--json",)])
def test_stored_steps_of_an_edited_built_in_method_are_used_with_a_warning(
    commands: Commands, by_other_code: Callable[[], None], more: tuple[str, ...]
) -> None:
    run = commands.tiny(method="mib")
    assert "other code" not in commands.succeed(run).stderr
    by_other_code()
    said = commands.succeed([*run, *more]).stderr
    now = method_code(load_method("mib"))[:10]
    assert f"stored steps of mib were trained by other code: 1 (its digest was {'0' * 10}, and is {now};" in said
    stored = {json.loads(path.read_text())["method"]["code"] for path in commands.records().values()}
    assert stored == {"0" * 64}  # what trained them, not what is there now
    # From the weights alone, when the records are gone.
    commands.out = commands.home / "another"
    assert "trained by other code: 1 (" in commands.succeed([*run[: run.index("--out")], *commands.places()]).stderr
    # Steps that mib trained are shared with a method that has not been edited.
    other = commands.tiny(method="finetune")
    assert "other code" not in commands.succeed(other).stderr


def test_a_sweep_and_its_plan_name_steps_of_other_code(commands: Commands, by_other_code: Callable[[], None]) -> None:
    run = commands.tiny(method="mib")
    commands.succeed(run)
    by_other_code()
    sweep = ["sweep", "--methods", "mib", "--settings", "overlapped-19-1", "--quiet", *run[5:]]
    planned = commands.succeed([*sweep, "--plan", "--json"])
    assert [step["state"] for step in json.loads(planned.stdout)["steps"]] == ["done", "done"]
    assert {step["reason"] for step in json.loads(planned.stdout)["steps"]} == {"trained by other code of mib"}
    said = commands.succeed(sweep).stderr
    assert re.search(r"^Warning: 2 finished steps .* other code of mib", said, re.MULTILINE)


PLUG_IN = """
from cispbench.methods.finetune import FineTune
class Mine(FineTune):
    name = "mine"
    def losses(self, *given):
        return {name: 1.0 * term for name, term in super().losses(*given).items()}
"""


def test_an_edited_plug_in_trains_again_and_the_record_says_what_it_was(commands: Commands) -> None:
    site = commands.home / "site"
    notes = site / "plug-1.dist-info"
    notes.mkdir(parents=True)
    (notes / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.5\n")
    (notes / "entry_points.txt").write_text("[cispbench.methods]\nmine = plug_mine:Mine\n")
    (notes / "direct_url.json").write_text(json.dumps({"url": site.as_uri(), "dir_info": {"editable": True}}))
    run = commands.tiny(method="mine")

    def trained(text: str) -> list[str]:
        (site / "plug_mine.py").write_text(text)
        process = commands.start([*run, "--json"], PYTHONPATH=str(site), PYTHONDONTWRITEBYTECODE="1")
        assert process.wait(120) == 0, commands.read()
        return [step["key"] for step in json.loads(commands.read()[0])["steps"]]

    first = trained(PLUG_IN)
    assert trained(PLUG_IN + "# a comment\n") == first
    second = trained(PLUG_IN.replace("1.0", "0.5"))
    assert second[0] == first[0] and second[1] != first[1]
    found = [json.loads(path.read_text()) for path in commands.out.glob("runs/*/*/*/*/step-*.json")]
    packages = [record["environment"]["method_package"] for record in found]
    assert packages[0] == {"name": "plug", "version": "1.5", "editable": True, "commit": None, "dirty": None}
