"""The command line as its user meets it: in this process or in another one, in a folder of the test's own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cispbench.harness.cli import main

SETTING = "overlapped-19-1"
# What other processes see: one thread, so that a busy machine does not stretch a run of small tensors.
QUIET = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
TEMPORARY = re.compile(r"\.tmp$|\.part$|/\.[^/]*$|lock\.holder\.json|checkpoint")


class Commands:
    """Commands on a data set with an output and a steps folder; ``tiny`` is a run of two steps and a second."""

    def __init__(self, home: Path, data: Path) -> None:
        self.home, self.data = home, data
        self.out, self.steps = home / "out", home / "steps"
        self.result: Result | None = None

    def tiny(self, *more: str, iterations: tuple[int, int] = (3, 2), method: str = "mbs") -> list[str]:
        model = "segmenter-tiny" if method == "mbs" else "deeplabv3-tiny"
        recipe = ["data.crop=32", "data.resize_short=32", "evaluation.resize_short=32", "optim.batch=4"]
        recipe += [f"optim.iterations={iterations[0]}", "later.epochs=null", f"later.iterations={iterations[1]}"]
        changes = [word for text in recipe for word in ("--set", text)]
        return [
            *("run", "--method", method, "--setting", SETTING, "--profile", "mini", "--data-root", str(self.data)),
            *("--model", model, "--weights", "none", *changes, *self.places(), *more),
        ]

    def sweep(self, methods: str, *more: str, settings: str = "overlapped-10-5") -> list[str]:
        """A sweep by two workers with the recipe of ``tiny`` on DeepLab."""
        recipe = self.tiny(method="finetune")[5:]
        return ["sweep", "--methods", methods, "--settings", settings, "--workers", "2", *recipe, *more]

    def places(self) -> list[str]:
        return ["--out", str(self.out), "--steps-dir", str(self.steps)]

    def invoke(self, words: Sequence[str]) -> Result:
        """Run in this process; whatever is no error message of ours fails the test."""
        result = CliRunner().invoke(main, list(words), prog_name="cispbench")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(f"a traceback instead of an error: {result.exception!r}") from result.exception
        assert "Traceback" not in result.output
        return result

    def succeed(self, words: Sequence[str]) -> Result:
        result = self.invoke(words)
        assert result.exit_code == 0, result.output
        return result

    def refused(self, code: int, words: Sequence[str], *says: str) -> str:
        """Return the error's message, after a look at exit code, streams and what it has to say."""
        result = self.invoke(words)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        errors = re.findall(r"^Error: .*\Z", result.stderr, re.MULTILINE | re.DOTALL)
        assert len(errors) == 1, result.stderr
        for text in says:
            assert text in errors[0]
        return errors[0]

    def start(self, words: Sequence[str], driver: str | None = None, name: str = "process", **variables: str) -> Any:
        """Start another process (``driver``: Python code that ends in a call of the command line)."""
        how = ["-m", "cispbench.harness.cli"] if driver is None else ["-c", driver]
        with (self.home / f"{name}.out").open("w") as out, (self.home / f"{name}.err").open("w") as err:
            return subprocess.Popen(
                [sys.executable, *how, *words], stdout=out, stderr=err, start_new_session=True, cwd=self.home,
                env=os.environ | QUIET | variables,
            )  # fmt: skip

    def read(self, name: str = "process") -> tuple[str, str]:
        return (self.home / f"{name}.out").read_text(), (self.home / f"{name}.err").read_text()

    def wait_for(self, process: Any, text: str, name: str = "process", seconds: float = 120.0) -> None:
        """Wait until the process has said ``text`` on standard error."""
        end = time.monotonic() + seconds
        while text not in self.read(name)[1]:
            assert process.poll() is None and time.monotonic() < end, self.read(name)
            time.sleep(0.02)

    def records(self) -> dict[int, Path]:
        return {int(path.stem.partition("-")[2]): path for path in self.out.glob("runs/*/*/*/*/step-*.json")}

    def outcome(self) -> dict[int, tuple[Any, str]]:
        """Return each recorded step's confusion matrix and the digest of its weights."""
        found = {}
        for step, path in self.records().items():
            record = json.loads(path.read_text())
            weights = self.steps / "steps" / record["key"] / "weights.safetensors"
            found[step] = (record["confusion"], hashlib.sha256(weights.read_bytes()).hexdigest())
        return found

    def outcomes(self) -> dict[tuple[str, str, int, int], tuple[Any, str]]:
        """Return the confusion matrix and the digest of the weights of every record of a sweep."""
        found = {}
        for path in self.out.glob("runs/*/*/*/*/step-*.json"):
            record = json.loads(path.read_text())
            weights = self.steps / "steps" / record["key"] / "weights.safetensors"
            place = (record["method"]["name"], record["setting"], record["seed"], record["step"])
            assert place not in found
            found[place] = (record["confusion"], hashlib.sha256(weights.read_bytes()).hexdigest())
        return found

    def leftovers(self) -> list[str]:
        """Return what nobody will need again: temporary files, drafts, notes and checkpoints."""
        paths = [path for folder in (self.out, self.steps) for path in folder.rglob("*")]
        names = [f"/{path.relative_to(self.home)}" for path in paths]
        return [name for name in names if TEMPORARY.search(name)]


def write_voc(root: Path, train: int = 12, val: int = 6) -> Path:
    """Write images of 64 x 48 with one or two classes each, class 20 in every second one, and return the root."""
    folder, rng = root / "VOC2012", np.random.default_rng(0)
    for part in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    for split, count in (("train_aug", train), ("val", val)):
        names = [f"{split[0]}{number:03d}" for number in range(count)]
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for number, name in enumerate(names):
            mask, image = np.zeros((48, 64), np.uint8), rng.integers(90, 110, (48, 64, 3)).astype(np.uint8)
            for label in (20 if number % 2 else (3 * number) % 19 + 1, (2 * number + 1) % 20 + 1):
                top, left = rng.integers(0, 28), rng.integers(0, 40)
                mask[top : top + 20, left : left + 24] = label
                image[top : top + 20, left : left + 24] = (label * 12, 255 - label * 12, (label * 70) % 256)
            mask[0] = 255
            Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
            Image.fromarray(mask).save(folder / "SegmentationClassAug" / f"{name}.png")
    return root


@pytest.fixture(scope="session")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a small data set that no test changes."""
    return write_voc(tmp_path_factory.mktemp("voc"))


@pytest.fixture
def own_voc(tmp_path: Path) -> Path:
    """The folder VOC2012, below its root, of a small data set for the test to break."""
    return write_voc(tmp_path / "own") / "VOC2012"


@pytest.fixture
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def commands(tmp_path: Path, voc: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Commands:
    """Commands in an empty folder, with nothing set by the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("CISPBENCH_DATA", "CISPBENCH_STEPS"):
        monkeypatch.delenv(name, raising=False)
    return Commands(tmp_path, voc)


@pytest.fixture
def broken(tmp_path: Path, own_voc: Path, commands: Commands) -> Commands:
    """Commands on the data set of ``own_voc``."""
    return Commands(tmp_path, own_voc.parent)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, voc: Path) -> Commands:
    """The tiny run, finished without a fault; no test changes it."""
    import torch

    commands, threads = Commands(tmp_path_factory.mktemp("finished"), voc), torch.get_num_threads()
    torch.set_num_threads(1)
    commands.succeed(commands.tiny())
    torch.set_num_threads(threads)
    return commands


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory, voc: Path, finished: Commands) -> Commands:
    """Two methods on one setting, finished without a fault; ``result`` is what the command printed. None changes it."""
    commands = Commands(tmp_path_factory.mktemp("swept"), voc)
    commands.result = commands.succeed(commands.sweep("finetune,mib"))
    return commands


def mount(*words: str) -> None:
    """Mount a file system, or skip the test: that takes Linux and its root user."""
    tool = shutil.which("mount")
    if tool is None:
        pytest.skip("there is no mount on this system")
    done = subprocess.run([tool, *words], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB of the test's own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place))
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def fill(disk: Path) -> Callable[[int], Path]:
    """What leaves so many bytes free on the disk, and returns the file that holds the others."""

    def until(leave: int) -> Path:
        filler, block = disk / "filler", os.statvfs(disk)
        free = block.f_bavail * block.f_frsize - leave
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free // block.f_frsize * block.f_frsize)
        return filler

    return until


@pytest.fixture
def freeze(disk: Path) -> Callable[[], None]:
    """What makes the disk read-only."""
    return lambda: mount("-o", "remount,ro", str(disk))
