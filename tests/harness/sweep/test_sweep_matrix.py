"""What a sweep is asked for: lists, patterns, files."""

from __future__ import annotations

from pathlib import Path

import pytest

from cispbench.harness.sweep.matrix import Wish, expand, expand_settings, read_wish, split_seeds, split_words
from cispbench.splits.errors import UsageError
from cispbench.splits.settings import list_settings, paper_table


def test_every_run_stands_once_and_in_order() -> None:
    wish = Wish(methods=("mib", "joint", "mib"), settings=("overlapped-15-1", "overlapped-15-*"), seeds=(1, 0, 1))
    cells = [(cell.setting.name, cell.method, cell.seed) for cell in expand(wish)]
    assert cells == [
        (setting, method, seed)
        for setting in ("overlapped-15-1", "overlapped-15-5")
        for method in ("mib", "joint")
        for seed in (1, 0)
    ]


def test_seed_0_is_the_only_one_unless_seeds_are_named() -> None:
    assert [cell.seed for cell in expand(Wish(methods=("mib",), settings=("overlapped-15-1",)))] == [0]


def test_a_pattern_and_the_papers_table() -> None:
    listed = [setting.name for setting in list_settings()]
    assert [s.name for s in expand_settings(["disjoint-*"])] == [name for name in listed if name.startswith("disjoint")]
    assert expand_settings(["paper-table"]) == paper_table()
    assert expand_settings(["paper-table", "overlapped-19-1"]) == paper_table()
    assert [s.name for s in expand_settings(["voc:overlapped-15-1", "overlapped-15-1-b"])] == [
        "overlapped-15-1", "overlapped-15-1-b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (Wish(settings=("overlapped-15-1",)), "needs --methods"),
        (Wish(methods=("mib",)), "needs --settings"),
        (Wish(methods=("mibb",), settings=("overlapped-15-1",)), "Did you mean 'mib'"),
        (Wish(methods=("mib",), settings=("overlaped-*",)), "no listed setting matches 'overlaped-\\*'"),
        (Wish(methods=("mib",), settings=("papertable",)), "is no setting"),
        (Wish(methods=("mib",), settings=("overlapped-15-1",), seeds=()), "seeds are whole numbers"),
    ],
)
def test_what_cannot_be_meant_is_refused(wish: Wish, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        expand(wish)


def test_words_and_seeds_of_the_command_line() -> None:
    assert split_words(" a, b,") == ("a", "b")
    assert split_seeds("2,0") == (2, 0)
    for wrong in ("", "1-3", "-1", "a"):
        with pytest.raises(UsageError):
            split_seeds(wrong)


def test_a_sweep_file_says_what_options_leave_open(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("methods: [mib, plop]\nsettings: paper-table\nseeds: [0, 1]\nprofile: quick\nset: [optim.lr=0.1]\n")
    read = read_wish(path)
    assert read == Wish(("mib", "plop"), ("paper-table",), (0, 1), "quick", None, ("optim.lr=0.1",))
    assert Wish(seeds=(7,)).over(read) == Wish(
        ("mib", "plop"), ("paper-table",), (7,), "quick", None, ("optim.lr=0.1",)
    )
    assert Wish(set=("optim.lr=0.2",)).over(read).set == ("optim.lr=0.1", "optim.lr=0.2")  # the last one counts


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method: [mib]", "unknown key 'method'. Did you mean 'methods'"),
        ("seeds: [0, '1']", "seeds\\[1\\] is '1', not a whole number"),
        ("seeds: [true]", "True, not a whole number"),
        ("profile: [quick]", "profile is \\['quick'\\], not text"),
        ("- mib", "a sweep file maps"),
    ],
)
def test_a_sweep_file_is_read_strictly(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        read_wish(path)
    assert str(path) in str(caught.value)
