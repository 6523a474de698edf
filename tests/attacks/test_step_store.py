"""One flipped bit in a file of the step store, then the same command: the same numbers, or an error naming the file.

The short version flips few bits for the whole command and many for the functions that read the files; ``-m slow``
flips many for the command, too.
"""

from __future__ import annotations

import random
import shutil
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.runs.step_store import DamagedEvaluationError, DamagedStepError, StepStore
from cispbench.harness.training import monitor
from cispbench.harness.training.checkpoint_file import DamagedCheckpointError, read_checkpoint
from cispbench.harness.training.monitor import Monitor
from cispbench.results.checked_json import read_checked

ITERATIONS = (4, 4)
FLIPS, FLIPS_SLOW = 3, 30  # of each kind of file, for the whole command
FLIPS_READ = 150  # of each kind of file, for the function that reads it
DAMAGE = (DamagedStepError, DamagedEvaluationError, DamagedCheckpointError)
# Kind of file -> its pattern in a store whose step 0 is finished and whose step 1 was interrupted, or is finished.
INTERRUPTED = {
    "checkpoint": "work/*/checkpoint.pt",
    "manifest": "steps/*/manifest.json",
    "evaluation": "steps/*/evaluation-*.json",
    "weights": "steps/*/weights.safetensors",
}
FINISHED = {"method state": "steps/*/method.safetensors", **{k: v for k, v in INTERRUPTED.items() if k != "checkpoint"}}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, voc: Path, commands_class: Any) -> dict[str, Any]:
    """The same run of PLOP, which keeps thresholds: ``finished``, and ``interrupted`` with a checkpoint of step 1."""
    import torch

    made, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("finished", "interrupted"):
            made[name] = here = commands_class(tmp_path_factory.mktemp(name), voc)
            if name == "interrupted":
                patch.setattr(monitor, "CHECKPOINT_SECONDS", 0.0)
                patch.setattr(Monitor, "_save", saving_and_stopping(Monitor._save))
            result = here.invoke(words(here))
            assert result.exit_code == (name == "interrupted"), result.output
    torch.set_num_threads(threads)
    assert len(list(here.steps.glob(INTERRUPTED["checkpoint"]))) == 1 and list(here.records()) == [0]
    return made


def saving_and_stopping(save: Callable[[Monitor], None]) -> Callable[[Monitor], None]:
    def stop_in_step_1(self: Monitor) -> None:
        if self._job.context.step == 1:
            save(self)
            raise KeyboardInterrupt

    return stop_in_step_1


def words(here: Any, *more: str) -> list[str]:
    return [str(word) for word in here.tiny(*more, method="plop", iterations=ITERATIONS)]


def flip(path: Path, chance: random.Random) -> int:
    """Flip one bit of a file, and return its number."""
    content = bytearray(path.read_bytes())
    bit = chance.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return bit


def attack(commands: Any, stores: dict[str, Any], state: str, kind: str, flips: int) -> None:
    pattern = (INTERRUPTED if state == "interrupted" else FINISHED)[kind]
    chance, expected = random.Random(zlib.crc32(f"{state} {kind}".encode())), stores["finished"].outcome()
    for _ in range(flips):
        for folder in (commands.out, commands.steps):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(stores[state].home / folder.name, folder)
        if state == "finished":  # else nothing of the step store would be read
            shutil.rmtree(commands.out)
        path = chance.choice(sorted(commands.steps.glob(pattern)))
        if state == "interrupted" and kind == "evaluation":
            commands.records()[0].unlink()
        bit = flip(path, chance)
        result = commands.invoke(words(commands, "--quiet"))
        assert str(path) in result.stderr, (path, bit, result.output)
        if result.exit_code == 0:
            assert commands.outcome() == expected, (path, bit)
        again = commands.succeed(words(commands))
        assert commands.outcome() == expected and "damaged" not in again.stderr, (path, bit)


CASES = [*(("interrupted", kind) for kind in INTERRUPTED), *(("finished", kind) for kind in FINISHED)]


@pytest.mark.parametrize(("state", "kind"), CASES)
def test_a_flipped_bit_changes_no_number(commands: Any, stores: dict[str, Any], state: str, kind: str) -> None:
    attack(commands, stores, state, kind, FLIPS if state == "interrupted" else 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("state", "kind"), CASES)
def test_many_flipped_bits_change_no_number(commands: Any, stores: dict[str, Any], state: str, kind: str) -> None:
    attack(commands, stores, state, kind, FLIPS_SLOW)


def reader(store: StepStore, path: Path) -> Callable[[], object]:
    """Return the call by which a run reads a sound file of the store."""
    key = path.parent.name
    if path.name == "checkpoint.pt":
        return partial(read_checkpoint, path)
    if path.name == "manifest.json":
        return partial(store.manifest, key)
    if path.suffix == ".json":
        return partial(store.evaluation, key, read_checked(path)["key"])
    return partial(store.load, key, path.name)


@pytest.mark.parametrize(("state", "kind"), CASES)
def test_no_flipped_bit_is_read(commands: Any, stores: dict[str, Any], state: str, kind: str) -> None:
    shutil.copytree(stores[state].steps, commands.steps)
    (path, *_) = sorted(commands.steps.glob((INTERRUPTED if state == "interrupted" else FINISHED)[kind]))
    read, content, chance = reader(StepStore(commands.steps), path), path.read_bytes(), random.Random(7)
    assert read() is not None
    for _ in range(FLIPS_READ):
        bit = flip(path, chance)
        with pytest.raises(DAMAGE):
            read()
            pytest.fail(f"bit {bit} of {path.name} was not noticed")
        path.write_bytes(content)
