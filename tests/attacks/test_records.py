"""Damage to records: every report names the damaged file or says what it said before, and never shows other numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

from cispbench.harness.cli import main
from cispbench.results.record import StepRecord, confusion_rows
from cispbench.results.record_fields import DataUsed
from cispbench.results.store import Store
from cispbench.splits.settings import parse_setting

Maker = Callable[..., StepRecord]
FLIPS = 200
# A run of six steps on VOC, and one of ADE20K's 151 classes.
SETTINGS = ("overlapped-15-1", "overlapped-100-50")
COMMANDS = ("table", "check", "leaderboard", "audit")


def put(store: Store, make_record: Maker) -> list[Path]:
    """Write the runs, with counts that are all different, and return their files."""
    source, paths = np.random.default_rng(0), []
    for number, name in enumerate(SETTINGS):
        plan = parse_setting(name)
        data = DataUsed("mini", "f1", 40, 20, "ab" * 32)
        for step in range(len(plan.steps)):
            count, known = plan.num_foreground + 1, plan.num_classes(step)
            counts = np.zeros((count, count), dtype=np.int64)
            counts[:, :known] = source.integers(0, 900, (count, known))
            counts[:, 0] += 200_000 - counts.sum(axis=1)
            record = make_record(name, step, run_key=f"{number}a" * 32, profile="mini", data=data)
            paths.append(store.write(replace(record, confusion=confusion_rows(counts))))
    return paths


def ask(command: str, out: Path) -> Result:
    words = {
        "table": ["table", "--format", "json"],
        "check": ["check", "--json", "--allow-empty"],
        "leaderboard": ["leaderboard", "--output", str(out.parent / "site")],
        "audit": ["check", "--store", "--json"],
    }
    result = CliRunner().invoke(main, [*words[command], "--out", str(out)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "Traceback" not in result.output
    return result


def shown(command: str, out: Path) -> tuple[int, str]:
    """Return the exit code of a command and all that it shows, of the leaderboard its text."""
    result = ask(command, out)
    if command != "leaderboard":
        return result.exit_code, result.output
    text = out.parent / "site" / "leaderboard.md"
    found = text.read_text() if text.exists() else ""
    text.unlink(missing_ok=True)
    return result.exit_code, found + result.output


def flips(paths: list[Path]) -> Iterator[tuple[Path, int]]:
    """Yield files and bits of theirs, some of them in the first bytes, where the checksum stands."""
    source = random.Random(20_250_131)
    for number in range(FLIPS):
        path = source.choice(paths)
        yield path, source.randrange(8 * (90 if number % 5 == 0 else path.stat().st_size))


def test_a_flipped_bit_never_makes_other_numbers(tmp_path: Path, make_record: Maker) -> None:
    out = tmp_path / "out"
    paths = put(Store(out), make_record)
    before = {command: shown(command, out) for command in COMMANDS}
    assert [code for code, _ in before.values()] == [0] * len(COMMANDS)
    named = 0
    # The leaderboard takes a second, and the audit reads in full: they see some of the flips.
    for number, (path, bit) in enumerate(flips(paths)):
        data = bytearray(path.read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(data))
        for command in COMMANDS if number % 20 == 0 else ("table", "check"):
            after = shown(command, out)
            if after != before[command]:
                assert after[0] == 1, (path, bit, command)
                assert str(path) in after[1], (path, bit, command)
                named += 1
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(data))
    assert named > 2 * FLIPS
