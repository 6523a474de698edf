"""What commands print on a real terminal of 100 or of 80 columns, and in a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cispbench.results.record import StepRecord
from cispbench.results.record_fields import DataUsed
from cispbench.results.store import Store

Maker = Callable[..., StepRecord]
SCENES = DataUsed("synthetic", "f1" * 32, 40, 256, "ab" * 32)
SETTINGS = ("overlapped-19-1", "overlapped-15-5", "overlapped-15-1", "disjoint-15-1", "overlapped-10-1")


def on_terminal(columns: int, *words: str, exit_code: int = 0) -> list[str]:
    """Return the lines that a command prints on a terminal so wide, without its marks of bold and underlined."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "cispbench.harness.cli", *words], stdin=follower, stdout=follower, stderr=follower,
        env=environment,
    )  # fmt: skip
    os.close(follower)
    parts = []
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(leader)
    assert process.wait() == exit_code, b"".join(parts)
    return re.sub(r"\x1b\[[0-9;]*m", "", b"".join(parts).decode()).splitlines()


@pytest.fixture
def store(tmp_path: Path, make_record: Maker) -> Path:
    """A store of three methods on five settings, two seeds each."""
    for method in ("finetune", "mib", "mymethod-with-a-long-name"):
        for setting in SETTINGS:
            for seed in (0, 1):
                steps = make_record(setting).steps
                fields = {"method": method, "seed": seed, "data": SCENES, "profile": "quick", "step": steps - 1}
                run_key = f"{method[:4]}{setting}{seed}"[::-1]
                Store(tmp_path).write(make_record(setting, run_key=run_key, **fields))
    return tmp_path


@pytest.mark.parametrize("columns", [100, 80])
@pytest.mark.parametrize(
    "words",
    [
        *(["list", name] for name in ("methods", "settings", "models", "profiles", "protocols", "weights", "quirks")),
        ["ledger", "show", "--method", "mib"],
        ["ledger", "lint", "--by", "both"],
        ["show", "mbs"],
        ["doctor"],
        ["method", "check", "finetune", "--model", "segmenter-tiny"],
        ["sweep", "--methods", "mib,joint", "--settings", "overlapped-15-1", "--profile", "quick", "--plan"],
    ],
    ids=" ".join,
)
def test_lists_fit_the_terminal(columns: int, words: list[str]) -> None:
    lines = on_terminal(columns, *words)
    assert len(lines) > 2
    # An address or a path is not broken: it is copied.
    assert [line for line in lines if len(line) > columns and len(line.split()) > 1] == []
    assert not any(line.startswith("|") for line in lines)


@pytest.mark.parametrize("columns", [100, 80])
@pytest.mark.parametrize(
    "more",
    [["table"], ["table", "--compare-protocols"], ["table", "--runs"], ["check", "--allow-empty"], ["status"]],
    ids=" ".join,
)
def test_tables_of_a_store_fit_the_terminal(columns: int, more: list[str], store: Path) -> None:
    lines = on_terminal(columns, *more, "--results", str(store))
    assert [line for line in lines if len(line) > columns and str(store) not in line] == []
    assert not any(line.startswith(("|", "#")) for line in lines)
    text = " ".join("".join(lines).split())
    wraps = more[0] in ("check", "status") or "--runs" in more  # also the names of settings, where it has to
    assert wraps or all(setting in text for setting in SETTINGS)


@pytest.mark.parametrize("columns", [100, 80])
def test_data_that_differ_are_a_table_that_fits_the_terminal(columns: int, commands: Any) -> None:
    words = ["data", "check", "--dataset", "voc", "--data-root", str(commands.data), "--steps-dir", str(commands.steps)]
    lines = on_terminal(columns, *words, exit_code=1)
    assert any(line.startswith("differs ") for line in lines)
    # The first lines are a bar of progress, which is drawn over itself.
    assert [line for line in lines[lines.index("") - 1 :] if len(line) > columns] == []
    assert not any(line.startswith("|") for line in lines)


def test_on_a_narrow_terminal_the_check_gives_what_it_compares_with_below_the_table(store: Path) -> None:
    """A column of a few letters would make each row six lines high."""
    text = "\n".join(on_terminal(100, "check", "--results", str(store), "--allow-empty"))
    assert "  [1]\n" in text and "\n[1] baseline of 2 seeds; no run of its recipe" in text


def test_a_pipe_gets_markdown(store: Path) -> None:
    reading = (["table"], ["check", "--allow-empty"], ["status"])
    for words in (["list", "methods"], *([*words, "--results", str(store)] for words in reading)):
        done = subprocess.run(
            [sys.executable, "-m", "cispbench.harness.cli", *words], capture_output=True, text=True, check=True
        )
        assert any(line.startswith("|--") for line in done.stdout.splitlines())
