"""One broken plug-in among sound ones: lists go on without it and name it, and who asks for it learns what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cispbench.splits.plugins import _entry_points
from tests.harness.conftest import Commands

SOURCES = {
    "import_error": ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
    "any_error": ("x = 1\nraise RuntimeError('no licence found')\n", "RuntimeError: no licence found ("),
    "syntax": ("def f(:\n", "SyntaxError: "),
    "no_text": ("raise ValueError\n", "ValueError ("),
}
Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make a module of a package ``faulty-<name> 2.5`` known, as an entry point of a group."""

    def add(group: str, name: str, source: str) -> None:
        site = tmp_path / f"site-{name}"
        notes = site / f"faulty_{name}-2.5.dist-info"
        notes.mkdir(parents=True)
        (notes / "METADATA").write_text(f"Metadata-Version: 2.1\nName: faulty-{name}\nVersion: 2.5\n")
        (notes / "entry_points.txt").write_text(f"[cispbench.{group}]\n{name} = faulty_{name}:THING\n")
        (site / f"faulty_{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(site))

    yield add
    _entry_points.cache_clear()


@pytest.mark.parametrize("what", ["methods", "quirks", "models", "settings"])
@pytest.mark.parametrize("fault", SOURCES)
def test_a_list_names_the_broken_plug_in_and_holds_the_others(
    commands: Commands, install: Install, what: str, fault: str
) -> None:
    before = commands.succeed(["list", what, "--json"])
    assert before.stderr == ""
    source, says = SOURCES[fault]
    group = {"settings": "datasets", "quirks": "methods"}.get(what, what)
    install(group, fault, source)
    after = commands.succeed(["list", what, "--json"])
    assert json.loads(after.stdout) == json.loads(before.stdout)
    assert after.stderr.count("Warning: ") == 1
    for text in (f"{fault!r} (faulty_{fault}:THING) cannot be imported: {says}", f"the package faulty-{fault} 2.5, or"):
        assert text in after.stderr


def test_doctor_names_it_and_is_content_with_the_others(commands: Commands, install: Install) -> None:
    install("methods", "any_error", SOURCES["any_error"][0])
    install("models", "syntax", SOURCES["syntax"][0])
    install("datasets", "no_text", SOURCES["no_text"][0])
    said = json.loads(commands.succeed(["doctor", "--json", *commands.places()]).stdout)
    found = {finding["topic"]: finding for finding in said["findings"]}
    for topic in ("plug-in any_error", "plug-in syntax", "data no_text"):
        assert found[topic]["state"] == "note" and "cannot be imported" in found[topic]["text"]
        assert f"faulty-{topic.split()[1]} 2.5" in found[topic]["hint"]


def test_a_run_with_it_says_what_is_wrong_and_where(commands: Commands, install: Install) -> None:
    install("methods", "any_error", SOURCES["any_error"][0])
    said = commands.refused(1, commands.tiny(method="any_error"), "no licence found", "package faulty-any_error 2.5")
    assert "faulty_any_error.py:2)" in said
    commands.refused(1, ["method", "check", "any_error"], "no licence found")


def test_a_wrong_object_is_blamed_on_its_package(commands: Commands, install: Install) -> None:
    install("methods", "number", "THING = 5\n")
    commands.refused(1, commands.tiny(method="number"), "is not a subclass of", "Mend the package faulty-number 2.5")


def test_a_method_without_a_docstring_is_listed(commands: Commands, install: Install) -> None:
    head = "from cispbench.methods.finetune import FineTune\n"
    install("methods", "bare", head + "class THING(FineTune):\n    name = 'bare'\n    __doc__ = ''\n")
    rows = json.loads(commands.succeed(["list", "methods", "--json"]).stdout)
    assert {"method": "bare", "version": 1, "published": None, "needs": None, "what": ""} in rows


def test_a_sweep_over_a_pattern_goes_on_without_a_broken_data_set(commands: Commands, install: Install) -> None:
    install("datasets", "import_error", SOURCES["import_error"][0])
    sweep = ["sweep", "--methods", "mib", "--settings", "overlapped-15-5*", "--profile", "quick", "--plan"]
    result = commands.succeed(sweep)
    assert "overlapped-15-5" in result.stdout and "faulty_import_error" in result.stderr


def test_the_check_of_all_methods_ends_with_an_error_for_a_broken_one(
    commands: Commands, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Report:
        def __init__(self, cls: type, *_: object, **__: object) -> None:
            self.method = cls.__name__

        def as_dict(self) -> dict[str, str]:
            return {"method": self.method}

        def errors(self) -> list[str]:
            return []

    monkeypatch.setattr("cispbench.harness.contract.check.check_method", Report)
    install("methods", "any_error", SOURCES["any_error"][0])
    result = commands.invoke(["method", "check", "--all", "--json"])
    assert result.exit_code == 1 and "no licence found" in result.stderr
    assert "MBS" in {report["method"] for report in json.loads(result.stdout)}
