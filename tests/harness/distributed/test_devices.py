"""One step on two processes, or in parts: the losses, weights and counts of one process with whole batches."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cispbench.harness.distributed import launcher
from cispbench.splits.errors import RunError, UsageError

TOLERANCE = 1e-4  # relative, of every term of the loss in every iteration
ITERATIONS = 20  # of each step; so few are recorded one by one
TWO = ("--devices", "2", "--device", "cpu")


@pytest.fixture
def uneven(commands: Any, voc: Path, tmp_path: Path) -> Any:
    """Commands on images of which some are almost all void, and with a number of test images that 2 does not divide."""
    commands.data = shutil.copytree(voc, tmp_path / "uneven")
    folder = commands.data / "VOC2012"
    for number, path in enumerate(sorted((folder / "SegmentationClassAug").glob("t*.png"))):
        mask = np.asarray(Image.open(path)).copy()
        mask[: 9 * (number % 5)] = 255
        Image.fromarray(mask).save(path)
    names = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[:5]
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(names) + "\n")
    return commands


def words(commands: Any, method: str, *more: str) -> list[str]:
    # So low a rate in step 0 that its weights still predict several classes: background alone would be no test.
    changes = ["optim.lr=0.003", "later.lr=0.01"]
    if method in ("plop", "reminder"):
        # Their thresholds are a bin's width apart: wide ones let none of these predictions through.
        changes.append("method.bins=1000")
    if method == "rcil":
        more = ("--model", "deeplabv3-tiny-rcil", *more)
    chosen = [word for change in changes for word in ("--set", change)]
    return commands.tiny(*chosen, *more, method=method, iterations=(ITERATIONS, ITERATIONS))


def records(commands: Any) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for _, path in sorted(commands.records().items())]


def deviation(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest relative difference between two records' losses, over terms and iterations."""
    ours, theirs = one["losses"], other["losses"]
    assert ours["iterations"] == theirs["iterations"] == list(range(1, ITERATIONS + 1))
    assert ours["terms"].keys() == theirs["terms"].keys() and all(map(any, ours["terms"].values()))
    pairs = [(a, b) for name in ours["terms"] for a, b in zip(ours["terms"][name], theirs["terms"][name], strict=True)]
    return max(abs(a - b) / max(abs(a), 1e-3) for a, b in pairs)


def on_two(commands: Any, method: str) -> list[dict[str, Any]]:
    """Run on two processes, as its user would, into stores of its own."""
    commands.out = commands.home / "out of two"
    process = commands.start(words(commands, method, *TWO), name="two")
    assert process.wait(280) == 0, commands.read("two")
    assert "Traceback" not in "".join(commands.read("two"))
    return records(commands)


def check_two_against_one(uneven: Any, method: str) -> None:
    uneven.succeed(words(uneven, method))
    ones = records(uneven)
    # The base, trained by one process and not yet tested, is there for the two: theirs are the counts of its weights.
    base = uneven.steps / "steps" / ones[0]["key"]
    uneven.steps = uneven.home / "steps of two"
    copy = shutil.copytree(base, uneven.steps / "steps" / base.name)
    for path in copy.glob("evaluation-*.json"):
        path.unlink()
    twos = on_two(uneven, method)
    assert [record["key"] for record in twos] == [record["key"] for record in ones]
    assert twos[0]["confusion"] == ones[0]["confusion"]
    assert np.count_nonzero(np.sum(ones[0]["confusion"], axis=0)) >= 2 and ones[0]["data"]["val_images"] == 5
    assert [record["execution"]["devices"] for record in twos] == [1, 2]
    assert deviation(twos[1], ones[1]) < TOLERANCE


def test_two_processes_learn_count_and_record_as_one(uneven: Any) -> None:
    check_two_against_one(uneven, "mbs")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["finetune", "lwf", "lwf_mc", "ilt", "mib", "plop", "rw", "reminder", "rcil"])
def test_two_processes_learn_every_method_as_one(uneven: Any, method: str) -> None:
    check_two_against_one(uneven, method)


def test_batch_norms_see_the_images_of_both_processes(uneven: Any) -> None:
    uneven.succeed(words(uneven, "mib", "--until", "0"))
    (one,), uneven.steps = records(uneven), uneven.home / "steps of two"
    process = uneven.start([*words(uneven, "mib", *TWO, "--until", "0"), "--out", str(uneven.home / "two")], name="two")
    assert process.wait(280) == 0, uneven.read("two")
    uneven.out = uneven.home / "two"
    (two,) = records(uneven)
    assert (two["key"], two["execution"]["devices"]) == (one["key"], 2)
    assert deviation(two, one) < TOLERANCE


@pytest.mark.parametrize(("method", "micro_batch"), [("mbs", 1), ("mib", 2)])
def test_a_batch_in_parts_is_the_whole_one_unless_batch_norms_see_the_parts(
    uneven: Any, method: str, micro_batch: int
) -> None:
    uneven.succeed(words(uneven, method))
    whole, base = records(uneven), uneven.steps
    uneven.out, uneven.steps = uneven.home / "parts", uneven.home / "steps of parts"
    told = uneven.succeed(words(uneven, method, "--micro-batch", str(micro_batch))).stderr
    parts = records(uneven)
    assert [record["execution"]["micro_batch"] for record in parts] == [micro_batch] * 2
    if method == "mib":  # on DeepLabV3, whose batch norms are trained
        assert f"the batch norms of deeplabv3-tiny see parts of {micro_batch} at once" in told
        assert not {record["key"] for record in parts} & {record["key"] for record in whole}
        assert deviation(parts[0], whole[0]) > TOLERANCE
    else:
        assert base != uneven.steps and [r["key"] for r in parts] == [r["key"] for r in whole]
        assert max(deviation(*pair) for pair in zip(parts, whole, strict=True)) < TOLERANCE


def test_fewer_images_at_once_than_a_batch_norm_needs_are_refused(commands: Any) -> None:
    commands.refused(2, commands.tiny("--micro-batch", "1", method="mib"), "trains on 1 image at once",
                     "--micro-batch 2")  # fmt: skip


def test_a_single_device_is_not_several(commands: Any) -> None:
    commands.refused(2, commands.tiny("--devices", "2", "--device", "cuda:0"), "cuda:0")


@pytest.mark.parametrize(("code", "kind"), [(1, RunError), (2, UsageError)])
def test_the_first_error_of_several_processes_is_raised_as_it_was(
    tmp_path: Path, code: int, kind: type[Exception]
) -> None:
    launcher._note(str(tmp_path), 1, "the disk is full.", "Make room.", code)
    time.sleep(0.01)
    launcher._note(str(tmp_path), 0, "another thing.", None, 1)
    with pytest.raises(kind, match="the disk is full") as error:
        launcher._raise_first(tmp_path, {1: 1, 0: 1})
    assert error.value.hint == "Make room."  # type: ignore[attr-defined]


def test_a_process_that_left_no_error_is_named_with_how_it_ended(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the process of device 1 was killed by SIGKILL, by hand or because the memory"):
        launcher._raise_first(tmp_path, {1: -signal.SIGKILL})
    with pytest.raises(RunError, match="the process of device 0 ended with exit code 3; the others were ended"):
        launcher._raise_first(tmp_path, {0: 3})


def children(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(folder.name))
        except (OSError, ValueError):  # ended meanwhile
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the processes")
def test_a_killed_process_ends_all_and_the_same_command_goes_on(uneven: Any) -> None:
    long = uneven.tiny(*TWO, method="finetune", iterations=(600, 2))
    process = uneven.start(long, name="two")
    while not list(uneven.steps.glob("work/*/checkpoint*")):
        assert process.poll() is None, uneven.read("two")
        time.sleep(0.1)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    assert process.wait(100) == 1
    error = uneven.read("two")[1]
    assert error.count("Error: ") == 1 and "was killed by SIGKILL" in error and "Traceback" not in error
    assert uneven.start(long, name="again").wait(280) == 0, uneven.read("again")
    assert "resumed at iteration" in uneven.read("again")[1]
    assert not uneven.leftovers()


@pytest.mark.slow
def test_what_is_wrong_is_told_once_and_with_its_exit_code(commands: Any) -> None:
    process = commands.start(commands.tiny("--devices", "5", "--device", "cpu"))
    assert process.wait(200) == 2
    assert commands.read()[1].count("a batch of 4 cannot be shared by 5 devices") == 1
