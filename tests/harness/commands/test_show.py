"""What `cispbench show` and `cispbench list quirks` print."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from cispbench.harness.recipes.ablation import load_ablation
from cispbench.harness.recipes.layers import load_recipe, resolve_recipe
from cispbench.harness.recipes.quirks import read_quirks
from cispbench.harness.registry import load_method, method_names
from cispbench.splits.errors import RecipeError, UsageError
from cispbench.splits.settings import parse_setting
from cispbench.splits.strict_yaml import parse_yaml


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize("method", method_names())
def test_every_value_is_printed_with_its_source(commands, method):
    text = commands.succeed(["show", method, "--setting", "overlapped-100-10"]).stdout
    expected = resolve_recipe(load_method(method), parse_setting("overlapped-100-10"), "paper")
    assert leaves({k: v for k, v in parse_yaml(text).items() if v is not None}) == expected.values
    footnotes = dict(re.findall(r"^# \[(\d+)\] (.*(?:\n#  +.*)*)", text, re.MULTILINE))
    sections: list[str] = []
    for line in text.partition("\n\n")[0].splitlines()[1:]:
        name, number = re.fullmatch(r"( *\w+):(?:.* # \[(\d+)\])?", line).groups()
        depth = (len(name) - len(name.strip())) // 2
        sections = [*sections[:depth], name.strip()]
        if number is None:
            continue
        path = ".".join(sections)
        assert re.sub(r"\n# +", " ", footnotes[number]) == expected.sources[path], line


def test_the_text_fits_a_terminal(commands):
    for method in method_names():
        for setting in ("disjoint-15-1", "overlapped-10-1", "overlapped-100-10"):
            for line in commands.succeed(["show", method, "--setting", setting]).stdout.splitlines():
                assert len(line) <= 100, line


def test_changes_and_defaults_are_told_in_place(commands):
    words = ["show", "mbs", "--profile", "quick", "--set", "optim.lr=0.5", "--model", "segmenter-tiny"]
    text = commands.succeed(words).stdout
    assert re.search(r"^model: segmenter-tiny +# --model$", text, re.MULTILINE)
    assert re.search(r"^  lr: 0.5 +# --set$", text, re.MULTILINE)
    assert re.search(r"^  momentum: 0.9 +# default$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["ssul_m", "--model", "segmenter-tiny"], "it needs a network that offers branches"),
        (["mib", "--set", "later.rates.foo=2"], "rates of step 1 names 'foo'"),
        (["mib", "--set", "phases.more.lr=2"], "mib has no such phase"),
        (["mib", "--model", "deeplabv3-tiny", "--set", "optim.batch=1"], "step 0 trains on 1 image at once"),
        (["ewf", "--set", "method.base=joint"], "joint learns all classes in a single step"),
    ],
)
def test_what_run_refuses_is_not_shown(commands, words, text):
    common = ["--setting", "overlapped-15-1", "--profile", "quick"]
    told = commands.refused(2, ["show", *words, *common], text)
    assert commands.refused(2, ["run", "--method", *words, *common]) == told


def test_the_json_holds_the_recipe_and_a_source_for_each_leaf(commands):
    shown = json.loads(commands.succeed(["show", "mib", "--set", "optim.lr=0.5", "--json"]).stdout)
    sources, quirks = shown.pop("sources"), shown.pop("quirks")
    assert leaves(shown) == {path: leaf["value"] for path, leaf in sources.items()}
    assert sources["optim.lr"] == {"value": 0.5, "source": "--set"}
    assert "issue 43" in sources["method.distillation"]["source"]
    assert {quirk["name"]: quirk["in_force"] for quirk in quirks}["void_in_mean"] is True
    assert {quirk["name"] for quirk in quirks} == {quirk.name for quirk in read_quirks(load_method("mib"))}


def test_quirks_are_shown_with_their_switch(commands):
    def shown(*words: str) -> str:
        return re.sub(r"\n# +", " ", commands.succeed(["show", "plop", *words]).stdout)

    assert re.search(r"median \(in force\): .* Switched off by --set method\.median=true", shown())
    off = shown("--set", "method.median=true")
    assert re.search(r"median \(off\): .* Switched on by --set method\.median=released", off)
    assert "weak_pod (only for dataset ade)" in off


def test_the_list_of_quirks_names_each_once(commands):
    rows = json.loads(commands.succeed(["list", "quirks", "--json"]).stdout)
    titles = [row["quirk"] for row in rows]
    assert len(set(titles)) == len(titles)
    assert {"constant_rate", "plop.median", "mib.void_in_mean", "plop.void_in_mean"} <= set(titles)
    assert all({"option", "released", "otherwise", "what", "source"} <= set(row) for row in rows)
    median = next(row for row in rows if row["quirk"] == "plop.median")
    assert (median["option"], median["released"], median["otherwise"]) == ("method.median", "released", "true")
    text = commands.succeed(["list", "quirks"]).stdout
    assert all(title in text for title in titles)


def test_an_ablation_is_rows_of_changes_that_run(commands):
    rows = load_ablation(load_method("mbs"))
    shown = json.loads(commands.succeed(["show", "mbs", "--ablation", "--json"]).stdout)
    assert shown == {name: list(words) for name, words in rows.items()}
    text = commands.succeed(["show", "mbs", "--ablation"]).stdout
    assert len(text.splitlines()) == len(rows) and "--set method.token_init=false" in text
    setting = parse_setting("overlapped-15-1")
    recipes = [str(load_recipe(load_method("mbs"), setting, "paper", overrides=words)) for words in rows.values()]
    assert len(set(recipes)) == len(rows)
    assert rows["all parts"] == () and len(rows["no part"]) == len(rows) - 2


def test_a_method_without_an_ablation_says_so(commands):
    assert "ablations/mib.yaml" in commands.refused(2, ["show", "mib", "--ablation"])
    with pytest.raises(UsageError):
        load_ablation(load_method("plop"))


def test_a_wrong_ablation_names_file_and_row(tmp_path, monkeypatch):
    file = tmp_path / "mbs.yaml"
    monkeypatch.setattr("cispbench.harness.recipes.ablation.beside", lambda method, folder: file)
    for text, says in (
        ("without: [method.pseudo=false]", "without: unknown key 'method.pseudo'"),
        ("without: method.pseudo_labels=false", "an ablation maps names to lists"),
        ("without: [method.pseudo_labels]", "section.key=value"),
    ):
        file.write_text(text)
        with pytest.raises(RecipeError) as caught:
            load_ablation(load_method("mbs"))
        assert str(file) in str(caught.value) and says in str(caught.value)
