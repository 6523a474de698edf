"""Output that is closed, full or broken, and texts from outside that hold control characters."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cispbench.results.record import StepRecord
from cispbench.results.store import Store

EVIL = "x\x1b]0;t\x07\x1b[2J"
READING = [
    ["list", "methods"], ["table", "--out", "store"], ["ledger", "show", "--method", "mib"], ["doctor"], ["status"],
    ["leaderboard", "--out", "store", "--output", "board"], ["check", "--out", "store"], ["--help"],
]  # fmt: skip
FORMATS = ("csv", "json", "markdown", "terminal", "latex", "html")
Maker = Callable[..., StepRecord]


def cispbench(words: list[str], folder: Path, redirection: str) -> tuple[int, str, str]:
    """Run a command behind a shell's redirection; return its exit code and both streams."""
    line = f'exec "$@" {redirection}'
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = ["sh", "-c", line, "sh", sys.executable, "-m", "cispbench", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, make_record: Maker) -> Path:
    """A folder with a finished run in ``store``."""
    folder = tmp_path_factory.mktemp("home")
    for step in range(6):
        Store(folder / "store").write(make_record(step=step))
    return folder


@pytest.mark.parametrize("words", READING, ids=lambda words: words[0])
def test_output_that_cannot_be_written_is_an_error_in_a_line(home: Path, words: list[str]) -> None:
    for redirection, says in ((">&-", "standard output is closed"), (">/dev/full", "No space left on device")):
        if redirection == ">/dev/full" and not Path("/dev/full").exists():
            continue
        code, _, errors = cispbench(words, home, redirection)
        assert code == 1, (words, redirection)
        assert "Traceback" not in errors
        assert says in errors
        (line,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
        assert line.startswith("Error: ")


@pytest.mark.parametrize("redirection", [">/dev/full 2>&1", ">&- 2>&-", "2>&-", "2>/dev/full"])
def test_messages_that_nobody_can_read_change_no_exit_code(home: Path, redirection: str) -> None:
    lost = ">/" in redirection.partition("2>")[0] or ">&-" in redirection.partition("2>")[0]
    code, output, errors = cispbench(["list", "methods"], home, redirection)
    assert (code, bool(output), errors) == (int(lost), not lost, "")
    if not lost:
        assert cispbench(["list", "nothing"], home, redirection) == (2, "", "")


@pytest.mark.parametrize("words", [["list", "methods"], ["ledger", "show", "--method", "mib"], ["--help"]])
def test_a_reader_that_leaves_early_gets_no_traceback(home: Path, words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "cispbench", *words]
    done = subprocess.run(command, cwd=home, stdout=writing, stderr=subprocess.PIPE, timeout=120, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
def test_a_name_that_is_not_utf_8_is_printed_in_an_error(tmp_path: Path, locale: str) -> None:
    name = os.fsdecode(b"caf\xe9\x1b[2J.yaml")
    environment = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for words in (["table", "--out", name], ["sweep", "--plan", "--file", name], ["accept", name], [name]):
        command = [sys.executable, "-m", "cispbench", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=False)
        assert done.returncode in (1, 2)
        assert b"Traceback" not in done.stderr
        assert b"caf" in done.stderr
        assert b"\x1b" not in done.stderr


def spoil(home: Path, place: Path, name: str) -> Path:
    """Copy the store and put ``name`` in the place of the method's name, as a person who means harm would."""
    shutil.copytree(home / "store", place / "store")
    for path in (place / "store").rglob("*.json"):
        path.write_text(path.read_text().replace('"mib"', json.dumps(name)))
    return place


@pytest.mark.parametrize("name", [EVIL, "\ud800", "a\r\nb", "\u202e"])
def test_a_record_does_not_reach_the_terminal(home: Path, tmp_path: Path, commands: Any, name: str) -> None:
    out = str(spoil(home, tmp_path, name) / "store")
    for words in (
        ["status", "--out", out, "--steps-dir", str(tmp_path / "steps")],
        *(["table", "--out", out, "--format", form] for form in FORMATS),
        ["leaderboard", "--out", out, "--output", str(tmp_path / "board")],
        ["check", "--out", out],
    ):  # fmt: skip
        result = commands.invoke(words)
        for text in (result.stdout, result.stderr):
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800]", text), words
        if result.exit_code == 0 and "csv" in words:
            assert len({len(row) for row in csv.reader(io.StringIO(result.stdout))}) == 1
        if result.exit_code == 0 and "json" in words:
            json.loads(result.stdout)


def test_a_hostile_name_is_no_markup(home: Path, tmp_path: Path, commands: Any) -> None:
    name = "<script>alert(1)<|>\\input{x}"
    out = str(spoil(home, tmp_path, name) / "store")
    shown = {form: commands.invoke(["table", "--out", out, "--format", form]) for form in ("html", "markdown", "latex")}
    if any(result.exit_code for result in shown.values()):
        # Records with such a name are refused as a whole.
        assert all(result.exit_code == 1 for result in shown.values())
        assert all("<script>alert(1)<|>" not in result.stdout for result in shown.values())
        return
    assert "<script>alert" not in shown["html"].stdout
    assert "&lt;script&gt;alert" in shown["html"].stdout
    assert not re.search(r"(?<!\\)(<script>alert|\|>)", shown["markdown"].stdout)
    assert r"\input{x}" not in shown["latex"].stdout
    commands.succeed(["leaderboard", "--out", out, "--output", str(tmp_path / "board")])
    pages = [path.read_text() for path in (tmp_path / "board").rglob("*.html")]
    assert any("script" in page and "alert(1)" in page for page in pages)
    assert not any("<script>alert" in page for page in pages)
