"""The same command again: what is there stays, what is lost or damaged is named and made anew, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

FINISHED = "This run was finished before; nothing was trained."


@pytest.fixture
def done(commands: Any, tmp_path: Path, finished: Any) -> Any:
    """Commands on a private copy of the finished tiny run."""
    shutil.copytree(finished.out, commands.out)
    shutil.copytree(finished.steps, commands.steps)
    return commands


def trained(commands: Any, *more: str) -> int:
    content = json.loads(commands.succeed(commands.tiny("--json", *more)).stdout)
    assert [step["step"] for step in content["steps"]] == [0, 1]
    return int(content["trained"])


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def key(commands: Any, step: int) -> str:
    return str(json.loads(commands.records()[step].read_text())["key"])


def weights(commands: Any, step: int) -> Path:
    return Path(commands.steps / "steps" / key(commands, step) / "weights.safetensors")


def test_a_finished_run_is_not_touched(done: Any) -> None:
    before = contents(done.out), contents(done.steps)
    result = done.succeed(done.tiny())
    assert FINISHED in result.stdout
    assert "| mbs (measured)" in result.stdout
    assert trained(done) == 0
    assert (contents(done.out), contents(done.steps)) == before


@pytest.mark.parametrize("lost", [(0,), (1,), (0, 1)])
def test_lost_records_are_written_again_without_training(done: Any, finished: Any, lost: tuple[int, ...]) -> None:
    before = contents(done.steps)
    for step in lost:
        done.records()[step].unlink()
    assert trained(done) == 0
    assert done.outcome() == finished.outcome()
    assert contents(done.steps) == before


def test_lost_weights_do_not_matter_while_the_records_are_there(done: Any) -> None:
    shutil.rmtree(done.steps / "steps")
    assert FINISHED in done.succeed(done.tiny()).stdout
    shutil.rmtree(done.steps)
    assert trained(done) == 0


def test_weights_of_an_earlier_step_are_made_again_where_they_are_needed(done: Any, finished: Any) -> None:
    shutil.rmtree(done.steps / "steps")
    done.records()[1].unlink()
    assert trained(done) == 2, "both steps had to be trained"
    assert done.outcome() == finished.outcome()


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "gone"])
def test_damaged_weights_are_named_set_aside_and_trained_anew(done: Any, finished: Any, step: int, how: str) -> None:
    path = weights(done, step)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"flip": bytes(content), "cut": bytes(content[:1000]), "empty": b""}[how])
    shutil.rmtree(done.out)
    result = done.succeed(done.tiny())
    assert str(path) in result.stderr
    aside = [folder for folder in (done.steps / "steps").iterdir() if "damaged" in folder.name]
    assert [folder.name.partition(".")[0] for folder in aside] == [path.parent.name]
    assert aside[0].name in result.stderr
    assert done.outcome() == finished.outcome()


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"files": {}}', "\0\0\0\0"])
def test_a_damaged_manifest_is_treated_like_damaged_weights(done: Any, finished: Any, text: str) -> None:
    path = weights(done, 1).with_name("manifest.json")
    path.write_text(text)
    shutil.rmtree(done.out)
    result = done.succeed(done.tiny())
    assert str(path.parent) in result.stderr
    assert done.outcome() == finished.outcome()


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"schema": 99}', "half", "row", "key", "\udcff"])
def test_a_damaged_record_is_named_by_what_only_reads_it(done: Any, damage: str) -> None:
    path = done.records()[1]
    text = path.read_text()
    record = json.loads(text)
    if damage == "half":
        text = text[: len(text) // 2]
    elif damage == "row":
        text = json.dumps(record | {"confusion": record["confusion"][1:]})
    elif damage == "key":
        text = json.dumps({name: value for name, value in record.items() if name != "confusion"})
    else:
        text = damage
    path.write_text(text, errors="surrogateescape")
    for words in (["table", "--out", str(done.out)], ["table", "--json", "--out", str(done.out)]):
        message = done.refused(1, words, path.name)
        assert str(path) in message
    assert path.read_text(errors="surrogateescape") == text, "a file of the user's was changed"


def test_json_is_all_there_is_on_standard_output(done: Any) -> None:
    shutil.rmtree(done.out)
    content = json.loads(done.succeed(done.tiny("--json")).stdout)
    assert (content["method"], content["setting"], content["data"]) == ("mbs", "overlapped-19-1", "mini")
    (row,) = json.loads(done.succeed(["table", "--json", "--out", str(done.out)]).stdout)
    last = content["steps"][-1]
    assert [row[name] for name in ("old", "new", "all")] == [last[name] for name in ("old", "new", "all")]
    assert row["run_key"] == content["run_key"]


def test_quiet_leaves_the_table_alone(done: Any) -> None:
    done.records()[1].unlink()
    result = done.succeed(done.tiny("--quiet"))
    assert result.stderr == ""
    assert "| mbs (measured)" in result.stdout
