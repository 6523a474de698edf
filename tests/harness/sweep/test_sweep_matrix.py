"""What a sweep is asked for: lists, patterns, files."""

from __future__ import annotations

from pathlib import Path

import pytest

from cispbench.harness.runs.request import RunRequest
from cispbench.harness.sweep.matrix import (
    SweepRequest,
    expand,
    expand_settings,
    read_sweep_file,
    split_seeds,
    split_words,
)
from cispbench.splits.errors import UsageError
from cispbench.splits.settings import list_settings, paper_table

COMMON = RunRequest("", "")


def test_every_run_stands_once_and_in_order() -> None:
    asked = SweepRequest(
        methods=("mib", "joint", "mib"), settings=("overlapped-15-1", "overlapped-15-*"), seeds=(1, 0, 1)
    )
    cells = [(run.setting, run.method, run.seed) for run in expand(asked, COMMON)]
    assert cells == [
        (setting, method, seed)
        for setting in ("overlapped-15-1", "overlapped-15-5")
        for method in ("mib", "joint")
        for seed in (1, 0)
    ]


def test_seed_0_is_the_only_one_unless_seeds_are_named() -> None:
    assert [run.seed for run in expand(SweepRequest(methods=("mib",), settings=("overlapped-15-1",)), COMMON)] == [0]


def test_a_pattern_and_the_papers_table() -> None:
    listed = [setting.name for setting in list_settings()]
    assert [s.name for s in expand_settings(["disjoint-*"])] == [name for name in listed if name.startswith("disjoint")]
    assert expand_settings(["paper-table"]) == paper_table()
    assert expand_settings(["paper-table", "overlapped-19-1"]) == paper_table()
    assert [s.name for s in expand_settings(["voc:overlapped-15-1", "overlapped-15-1-b"])] == [
        "overlapped-15-1", "overlapped-15-1-b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (SweepRequest(settings=("overlapped-15-1",)), "needs --methods"),
        (SweepRequest(methods=("mib",)), "needs --settings"),
        (SweepRequest(methods=("mibb",), settings=("overlapped-15-1",)), "Did you mean 'mib'"),
        (SweepRequest(methods=("mib",), settings=("overlaped-*",)), "no listed setting matches 'overlaped-\\*'"),
        (SweepRequest(methods=("mib",), settings=("papertable",)), "is no setting"),
        (SweepRequest(methods=("mib",), settings=("overlapped-15-1",), seeds=()), "seeds are whole numbers"),
    ],
)
def test_what_cannot_be_meant_is_refused(asked: SweepRequest, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        expand(asked, COMMON)


def test_words_and_seeds_of_the_command_line() -> None:
    assert split_words(" a, b,") == ("a", "b")
    assert split_seeds("2,0") == (2, 0)
    for wrong in ("", "1-3", "-1", "a"):
        with pytest.raises(UsageError):
            split_seeds(wrong)


def test_a_sweep_file_says_what_options_leave_open(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("methods: [mib, plop]\nsettings: paper-table\nseeds: [0, 1]\nprofile: quick\nset: [optim.lr=0.1]\n")
    read = read_sweep_file(path)
    assert read == SweepRequest(("mib", "plop"), ("paper-table",), (0, 1), "quick", None, ("optim.lr=0.1",))
    assert SweepRequest(seeds=(7,)).over(read) == SweepRequest(
        ("mib", "plop"), ("paper-table",), (7,), "quick", None, ("optim.lr=0.1",)
    )
    assert SweepRequest(set=("optim.lr=0.2",)).over(read).set == ("optim.lr=0.1", "optim.lr=0.2")  # the last one counts


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method: [mib]", "unknown key 'method'. Did you mean 'methods'"),
        ("seeds: [0, '1']", "seeds must be a list of int, and '1' is none"),
        ("seeds: [true]", "True is none"),
        ("profile: [quick]", "profile must be a word"),
        ("- mib", "a sweep file maps"),
    ],
)
def test_a_sweep_file_is_read_strictly(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        read_sweep_file(path)
    assert str(path) in str(caught.value)
