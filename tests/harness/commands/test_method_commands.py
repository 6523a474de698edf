"""``cispbench method check`` and ``method new``, with methods that other packages bring along."""

from __future__ import annotations

import json
import tomllib
from functools import partial
from pathlib import Path

import pytest

from cispbench.harness.contract import check
from cispbench.harness.contract.bench import Sizes
from cispbench.harness.contract.check import MODELS, RULES
from cispbench.harness.contract.verdict import ContractReport, Location, RuleResult, Violation
from cispbench.harness.registry import load_method, method_names

ONE = ("--model", "deeplabv3-tiny")
PLUG_IN = '''
from cispbench.harness.method import Method
from cispbench.methods.losses import cross_entropy


class Broken(Method):
    """Cross-entropy that goes astray after step 0."""

    name = "{name}"

    def losses(self, batch, output, previous, context):
        if previous is not None:
            return {{"cross_entropy": output.logits.mean((0, 2, 3))}}
        return {{"cross_entropy": cross_entropy(output.logits, batch.target)}}
'''


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(
        check, "Sizes", partial(Sizes, setting="overlapped-10-10", grid=4, scenes=26, batch=4, iterations=2, learning=8)
    )


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Make an entry point known as an installer does; the module's folder is put on the path as well."""

    def install(name, target, folder):
        notes = tmp_path / "site" / f"plug_{name}-1.dist-info"
        notes.mkdir(parents=True)
        (notes / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plug-{name}\nVersion: 1\n")
        (notes / "entry_points.txt").write_text(f"[cispbench.methods]\n{name} = {target}\n")
        for path in (tmp_path / "site", folder):
            monkeypatch.syspath_prepend(str(path))

    return install


def test_a_check_prints_a_line_a_rule_and_that_the_contract_is_kept(commands):
    shown = commands.succeed(["method", "check", "joint", *ONE]).stdout.splitlines()
    rules = [line.split("|")[1].strip() for line in shown if line.startswith("|")][2:]
    assert rules == [rule.name for rule in RULES]
    assert shown[-2].startswith(f"joint keeps the contract ({len(RULES)} rules, ")
    assert "the method learns all classes in a single step" in "\n".join(shown)
    assert list(commands.home.iterdir()) == []


def test_a_check_in_json_names_rule_model_and_outcome(commands):
    (report,) = json.loads(commands.succeed(["method", "check", "joint", "joint", *ONE, "--json"]).stdout)
    assert (report["method"], report["keeps"], report["broken"]) == ("joint", True, [])
    assert [result["rule"] for result in report["results"]] == [rule.name for rule in RULES]
    assert {result["model"] for result in report["results"]} == {"deeplabv3-tiny"}
    assert {result["outcome"] for result in report["results"]} == {"kept", "skipped"}


def test_a_broken_method_of_another_package_is_an_error_that_names_the_rule(commands, installed, tmp_path):
    (tmp_path / "astray_plug_in.py").write_text(PLUG_IN.format(name="astray"))
    installed("astray", "astray_plug_in:Broken", tmp_path)
    result = commands.invoke(["method", "check", "astray", *ONE])
    assert result.exit_code == 1
    assert "astray breaks losses-finite (" in result.stdout
    assert result.stderr == (
        "Error: astray breaks losses-finite: a term has the shape (21,) and the type torch.float32 (deeplabv3-tiny, "
        "overlapped-10-10, step 1, iteration 0, term cross_entropy). Reduce it to a floating-point scalar (mean or "
        "sum).\n"
    )
    result = commands.invoke(["method", "check", "astray", *ONE, "--json"])
    assert result.exit_code == 1
    (report,) = json.loads(result.stdout)
    (broken,) = [found for found in report["results"] if found["outcome"] == "broken"]
    assert (report["keeps"], broken["rule"]) == (False, "losses-finite")
    assert broken["findings"][0]["place"]["step"] == 1


def test_what_cannot_be_checked_is_refused_with_the_registrys_words(commands, installed, tmp_path):
    commands.refused(2, ["method", "check", "mibb"], "unknown method 'mibb'", "Did you mean 'mib'?")
    commands.refused(2, ["method", "check"], "--all", "mib")
    commands.refused(2, ["method", "check", "mib", "--all"], "--all")
    commands.refused(2, ["method", "check", "mib", "--model", "segmenter-tny"], "Did you mean 'segmenter-tiny'?")
    installed("gone", "no_such_module:Gone", tmp_path)
    commands.refused(1, ["method", "check", "gone"], "'gone' (no_such_module:Gone) cannot be imported")


def test_all_methods_are_checked_and_every_broken_one_is_an_error(commands, monkeypatch):
    finding = Violation("something was found", Location("segmenter-tiny", "overlapped-10-5", 1), "Mend it.")

    def report(cls, models, progress):
        assert models is None  # those of check.models_to_check
        progress(1, 1)
        broken = cls.name in ("mib", "joint")
        found = {"outcome": "broken", "findings": (finding,)} if broken else {"outcome": "kept"}
        return ContractReport(cls.name, (RuleResult("learns", "It learns.", MODELS[0], **found),), {}, 1.0)

    monkeypatch.setattr(check, "check_method", report)
    result = commands.invoke(["method", "check", "--all"])
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: joint breaks learns: something was found (segmenter-tiny, overlapped-10-5, step 1). Mend it.\n"
        "mib breaks learns: something was found (segmenter-tiny, overlapped-10-5, step 1). Mend it.\n"
    )
    verdicts = [line for line in result.stdout.splitlines() if line.endswith(" s)")]
    assert [line.split()[0] for line in verdicts] == method_names()
    assert [line.split()[0] for line in verdicts if " breaks learns (" in line] == ["joint", "mib"]


def test_a_method_is_checked_with_both_families_or_with_the_network_that_it_needs():
    assert check.models_to_check(load_method("mib")) == MODELS
    assert check.models_to_check(load_method("rcil")) == ("segmenter-tiny", "deeplabv3-tiny-rcil")


def test_a_new_method_keeps_the_contract_once_it_is_installed(commands, installed):
    written = commands.succeed(["method", "new", "my_kd", "--dir", "new"]).stdout
    root = commands.home / "new" / "my_kd"
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert files == [
        "cispbench_my_kd/__init__.py", "cispbench_my_kd/method.py", "cispbench_my_kd/recipes/my_kd.yaml",
        "pyproject.toml",
    ]  # fmt: skip
    assert all(str(Path("new/my_kd", name)) in written for name in files)
    assert "pip install -e new/my_kd && cispbench method check my_kd" in written
    project = tomllib.loads((root / "pyproject.toml").read_text())
    (target,) = project["project"]["entry-points"]["cispbench.methods"].values()
    installed("my_kd", target, root)
    assert "my_kd keeps the contract" in commands.succeed(["method", "check", "my_kd", *ONE]).stdout
    recipe = json.loads(commands.succeed(["show", "my_kd", "--profile", "quick", "--json"]).stdout)
    assert "distillation" in json.dumps(recipe)
    commands.refused(2, ["method", "new", "my_kd", "--dir", "elsewhere"], "there is a method 'my_kd' already")


@pytest.mark.parametrize("name", ["My", "1st", "a-b", "class", "", "../up", "mib"])
def test_a_name_that_is_none_or_taken_is_refused(commands, name):
    commands.refused(2, ["method", "new", name], repr(name))
    assert list(commands.home.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(commands):
    (commands.home / "fresh").mkdir()
    commands.refused(1, ["method", "new", "fresh"], "fresh exists already")
    assert list((commands.home / "fresh").iterdir()) == []
