"""`cispbench ledger` and `cispbench table` as their user meets them: exit codes, streams, and nothing run again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cispbench.results import ledger
from cispbench.results.record import StepRecord
from cispbench.results.store import Store

Maker = Callable[..., StepRecord]


def test_findings_of_the_lint_are_no_failure(commands: Any) -> None:
    result = commands.succeed(["ledger", "lint"])
    assert "683 published rows" in result.stdout and "Inconsistent rows" in result.stdout
    assert result.stderr == ""
    content = json.loads(commands.succeed(["ledger", "lint", "--json"]).stdout)
    assert content["counts"] == {
        "without": 251, "both": 257, "old-without": 28, "inconsistent": 25, "incomplete": 122
    }  # fmt: skip


def test_the_lint_takes_every_filter(commands: Any) -> None:
    words = [
        "ledger",
        "lint",
        "--method",
        "mib",
        "--setting",
        "overlapped-1*",
        "--dataset",
        "voc",
        "--kind",
        "own",
    ]
    words += ["--source", "mib (arxiv", "--by", "both"]
    text = commands.succeed([*words, "--rows"]).stdout
    assert text.startswith("3 published rows\n")
    assert "Every row" in text and "Every row" not in commands.succeed(words).stdout
    rows = json.loads(commands.succeed([*words, "--json"]).stdout)["each"]
    assert [(row["setting"], row["lint"]) for row in rows] == [
        (f"overlapped-{task}", "without") for task in ("19-1", "15-5", "15-1")
    ]


def test_a_broken_ledger_is_a_failure(commands: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "voc-overlapped.yaml"
    monkeypatch.setattr(ledger, "_FOLDER", tmp_path)
    path.write_text("- {dataset: voc, setting: overlapped-15-1}\n")
    for words in (["lint"], ["lint", "--json"], ["show", "--method", "mbs"]):
        commands.refused(1, ["ledger", *words], str(path), "row 1", "method is missing")


def test_broken_yaml_is_a_failure(commands: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_FOLDER", tmp_path)
    (tmp_path / "ade-overlapped.yaml").write_text("- {dataset: [\n")
    commands.refused(1, ["ledger", "lint"], "ade-overlapped.yaml", "not valid YAML")


def test_show(commands: Any) -> None:
    text = commands.succeed(["ledger", "show", "--method", "mbs"]).stdout
    assert text.startswith("MBS: 34 published rows")
    for kind in ("own", "re-run", "inferred"):
        assert kind in text
    words = ["ledger", "show", "--method", "plop", "--setting", "overlapped-15-*", "--kind", "own", "--json"]
    rows = json.loads(commands.succeed(words).stdout)
    assert {row["setting"] for row in rows} == {"overlapped-15-1", "overlapped-15-5"}
    assert {row["kind"] for row in rows} == {"own"}
    assert {"old", "new", "all", "backbone", "source", "lint", "readings", "likely"} <= set(rows[0])
    nothing = commands.succeed(["ledger", "show", "--method", "mbs", "--setting", "disjoint-100-50"])
    assert "holds no row" in nothing.stdout


def test_show_a_setting(commands: Any) -> None:
    text = commands.succeed(["ledger", "show", "--setting", "overlapped-15-1"]).stdout
    for word in ("overlapped-15-1: ", "MBS", "MiB", "SELECT", "quoted?", "re-run", "not known"):
        assert word in text
    words = ["ledger", "show", "--setting", "overlapped-15-1", "--kind", "own", "--method", "mbs", "--json"]
    (row,) = json.loads(commands.succeed(words).stdout)
    assert (row["all"], row["kind"], row["run_by"]) == (80.6, "own", "MBS authors")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "--method", "mbss"], ["'mbss'", "'MBS' or 'MiB'"]),
        (["lint", "--method", "plopp"], ["'plopp'", "'PLOP'"]),
        (["lint", "--setting", "overlaped-15-1"], ["'overlaped'", "'overlapped-15-1'"]),
        (["lint", "--setting", "overlaped-*"], ["'overlaped-*'", "overlapped-"]),
        (["lint", "--kind", "reported"], ["'reported'", "own, quoted, re-run, not known"]),
        (["lint", "--dataset", "coco"], ["'coco'", "voc"]),
        (["lint", "--by", "paper"], ["'paper'", "source"]),
        (["lnt"], ["lnt"]),
    ],
)
def test_unknown_words_are_named(commands: Any, words: list[str], says: list[str]) -> None:
    commands.refused(2, ["ledger", *words], *says)


@pytest.fixture
def stored(commands: Any, make_record: Maker) -> Any:
    """Commands on a store of two finished runs."""
    store = Store(commands.out)
    store.write(make_record(step=5, run_key="a" * 16))
    store.write(make_record("disjoint-15-1", step=5, method="mbs", run_key="b" * 16))
    return commands


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_stored_runs_are_scored_anew_and_left_alone(stored: Any) -> None:
    before, words = contents(stored.home), ["table", "--out", str(stored.out)]
    for more in (["--protocol", "plop21"], ["--compare-protocols"], ["--compare-protocols", "--json"]):
        stored.succeed([*words, *more])
    assert contents(stored.home) == before  # and no steps folder was made
    scored = {
        name: json.loads(stored.succeed([*words, "--json", "--protocol", name]).stdout)[0]["old"]
        for name in ("strict", "plop21")
    }
    assert scored["strict"] != scored["plop21"]
    both = json.loads(stored.succeed([*words, "--json", "--compare-protocols"]).stdout)["runs"][0]["protocols"]
    assert {name: both[name]["old"] for name in scored} == scored


def test_the_table_is_for_the_selected_runs(stored: Any) -> None:
    words = ["table", "--out", str(stored.out)]
    one = stored.succeed([*words, "--method", "m?s", "--setting", "dis*"]).stdout
    assert "disjoint-15-1" in one and "overlapped-15-1" not in one
    one = stored.succeed([*words, "--compare-protocols", "--run", "aaaa"]).stdout
    assert "### mib on overlapped-15-1" in one and "### mbs" not in one
    for more in ([], ["--json"], ["--compare-protocols"]):
        stored.refused(2, [*words, "--method", "mbss", *more], "--method mbss", "Did you mean 'mbs'?")
    stored.refused(2, [*words, "--setting", "disjoint-15-7"], "15-7")


def test_all_protocols_and_one_of_them_do_not_go_together(stored: Any) -> None:
    words = ["table", "--out", str(stored.out), "--compare-protocols"]
    stored.refused(2, [*words, "--protocol", "plop21"], "--compare-protocols", "--protocol plop21")
    stored.refused(1, ["table", "--compare-protocols", "--out", str(stored.home / "reslts")], "reslts")


@pytest.mark.parametrize(
    "words",
    [["ledger", "lint"], ["ledger", "show", "--method", "mbs"], ["table", "--compare-protocols", "--out", "."]],
)
def test_these_commands_need_no_torch(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom cispbench.harness.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        "assert not {'torch', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
