"""Flip single bits in every kind of stored file, run the commands that read it, and look for wrong numbers.

    python tests/attacks/bit_flips.py --flips 1000 [--seed 0] [--kinds record,manifest]

A tiny run is made once, and then disturbed in three states: finished; with its steps, but without its records; stopped
in the middle of its second step. A fourth state has a data set of its own to damage. The last two of them are there
for a method with a memory and with companion maps, too. One flip: a bit of one file, drawn
at random, is turned, the commands run, and all files are put back. What may come of it:

- ``unchanged``: every number is as it was, and nothing was said;
- ``repaired``: every number is as it was, and the damage was said;
- ``refused``: an error says which file is damaged; where the file is one of ours, the next run mends it without a hand;
- ``another``: the data are other data now, and the results stand under other keys (images, masks and lists alone).

All else is a fault. A report shows its exit code, its standard output and the files that it writes. The baseline that
``check`` compares with is one of the files that are damaged, and so is a packed run. The script prints how often each
was met, by kind of file, and exits with 1 if there is a fault.
``test_bit_flips.py`` runs a short version.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from cispbench.harness.cli import main as cispbench
from cispbench.splits.errors import CispbenchError

SETTING = "overlapped-19-1"
CHANGES = (
    "data.crop=32", "data.resize_short=32", "evaluation.resize_short=32", "optim.batch=4", "optim.iterations=3",
    "later.epochs=null", "later.iterations=2",
)  # fmt: skip
# The state that a kind of file is damaged in, and where its files are. Images are damaged with a note of the file
# system (a new time of change) and, as bad disks do it, without.
KINDS = {
    "record": ("finished", "out/runs/*/*/*/*/step-*.json"),
    "baseline": ("finished", "baselines/*.json"),
    "submission": ("finished", "run.json"),
    "manifest": ("tested", "steps/steps/*/manifest.json"),
    "weights": ("tested", "steps/steps/*/weights.safetensors"),
    "method": ("tested", "steps/steps/*/method.safetensors"),
    "evaluation": ("tested", "steps/steps/*/evaluation-*.json"),
    "index": ("tested", "steps/index/*.json"),
    "checkpoint": ("halfway", "steps/work/*/checkpoint.pt"),
    "base manifest": ("halfway", "steps/steps/*/manifest.json"),
    "base weights": ("halfway", "steps/steps/*/weights.safetensors"),
    "base method": ("halfway", "steps/steps/*/method.safetensors"),
    "image": ("data", "voc/VOC2012/JPEGImages/*.jpg"),
    "mask": ("data", "voc/VOC2012/SegmentationClassAug/*.png"),
    "list": ("data", "voc/VOC2012/ImageSets/Segmentation/*.txt"),
    "exemplars": ("halfway, with memory", "steps/work/*/exemplars.json"),
    "its checkpoint": ("halfway, with memory", "steps/work/*/checkpoint.pt"),
    "index of maps": ("halfway, with memory", "steps/index/maps-*.json"),
    "map": ("data, with memory", "voc/VOC2012/saliency_map/t*.png"),  # no test looks at maps
}
# What a run is of, by whether its state is one with a memory.
MEMORY = ["--set", "method.unknown=saliency", "--set", "method.memory=3"]
METHODS = {
    False: ["mbs", "--model", "segmenter-tiny"],
    True: ["ssul_m", "--model", "deeplabv3-tiny-branches", *MEMORY],
}

REPORTS = ("table", "check", "leaderboard", "status", "accept")


@dataclass
class Stored:
    """A folder of stores in one state, with a copy of every file to put back."""

    home: Path
    voc: Path
    files: dict[Path, tuple[bytes, os.stat_result]] = field(default_factory=dict)

    def words(self, command: str, *more: str) -> list[str]:
        """Return the words of a command on these stores."""
        out, steps = ["--out", str(self.home / "out")], ["--steps-dir", str(self.home / "steps")]
        if command == "run":
            changes = [word for text in CHANGES for word in ("--set", text)]
            method = METHODS["with memory" in self.home.name]
            names = ["--method", *method, "--setting", SETTING, "--profile", "mini"]
            return ["run", *names, "--weights", "none", *changes, "--data-root", str(self.voc), *out, *steps, *more]
        if command == "leaderboard":
            return ["leaderboard", *out, "--output", str(self.home / "page"), *more]
        if command == "check":
            return ["check", *out, "--baselines", str(self.home / "baselines"), *more]
        if command == "accept":
            return ["accept", str(self.home / "run.json"), "--out", str(self.home / "accepted"), *more]
        if command == "submit":
            key = next(self.home.glob("out/runs/*/*/*/*")).name.rpartition("-")[2]
            return ["submit", key, *out, "--to", str(self.home / "run.json"), *more]
        if command == "data":
            return ["data", "check", "--dataset", "voc", "--data-root", str(self.voc), "--steps-dir", steps[1]]
        return [command, *out, *more]

    def keep(self) -> None:
        """Remember every file as it is now."""
        for path in self._all():
            self.files[path] = path.read_bytes(), path.stat()

    def put_back(self) -> None:
        """Put every file back, in place: a new file would have another inode, and the index would be made again."""
        for path in self._all():
            if path not in self.files:
                path.unlink()
        for path, (content, stat) in self.files.items():
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def _all(self) -> list[Path]:
        return [path for path in self.home.rglob("*") if path.is_file()]


@dataclass
class Attack:
    """The states, what their commands print when nothing is damaged, and what came of each flip."""

    states: dict[str, Stored]
    truth: dict[tuple[str, str], str] = field(default_factory=dict)
    met: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def flip(self, kind: str, chance: random.Random) -> None:
        """Turn one bit of one file of the kind, run the commands, and note what comes of it."""
        state, pattern = KINDS[kind]
        stored = self.states[state]
        path = chance.choice(sorted(stored.home.glob(pattern)))
        content, stat = bytearray(path.read_bytes()), path.stat()
        place = chance.randrange(8 * len(content))
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        hidden = chance.random() < 0.5
        if hidden:  # as a bad disk does it; else as a program that writes
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        try:
            outcome = _on_data(self, state, path) if state.startswith("data") else _on_store(self, state, path)
            self.met[kind, outcome] += 1
        except AssertionError as fault:
            self.met[kind, "FAULT"] += 1
            self.faults.append(f"{kind}, bit {place} of {path.relative_to(stored.home)}: {fault}")
        stored.put_back()


def invoke(words: list[str]) -> Result:
    """Run a command in this process. AssertionError for what no user should see."""
    result = CliRunner().invoke(cispbench, words, prog_name="cispbench")
    wild = result.exception is not None and not isinstance(result.exception, SystemExit)
    assert not wild and "Traceback" not in result.output, f"{words[0]} ends in a traceback: {result.exception!r}"
    return result


def shown(stored: Stored, command: str) -> tuple[str, Result]:
    """Return all that a report shows, as JSON: exit code, standard output, and digests of the files that it writes."""
    written = [stored.home / name for name in ("page", "accepted")]
    for folder in written:
        shutil.rmtree(folder, ignore_errors=True)
    result = invoke(stored.words(command))
    files = sorted(path for folder in written for path in folder.rglob("*") if path.is_file())
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return json.dumps([result.exit_code, result.stdout, digests], sort_keys=True), result


def numbers(stored: Stored) -> str:
    """Return the rows of the table of all runs, unrounded, and the digest of every step's weights, as JSON.

    AssertionError if the table cannot be made.
    """
    result = invoke(stored.words("table", "--runs", "--format", "json"))
    assert result.exit_code == 0, f"no table after a run that succeeded: {result.output}"
    weights = sorted(path for path in stored.home.glob("steps/steps/*/*.safetensors") if "." not in path.parent.name)
    digests = [f"{path.parent.name}/{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in weights]
    return json.dumps([*_plain(json.loads(result.stdout)), *digests], sort_keys=True)


def _plain(value: Any) -> Any:
    """Leave out what two runs of the same plan may differ in: times and sizes."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items() if not _differs(name)}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _differs(name: str) -> bool:
    return any(word in name for word in ("seconds", "bytes", "created", "time"))


def _on_store(attack: Attack, state: str, path: Path) -> str:
    """Run the commands on a store with a damaged file of ours."""
    stored, said = attack.states[state], False
    if state == "finished":  # reports read records alone
        for command in REPORTS:
            answer, result = shown(stored, command)
            if answer != attack.truth[state, command]:
                assert result.exit_code != 0, f"{command} shows something else: {result.output[-500:]}"
                assert path.name in result.stderr, f"{command} does not name the file: {result.stderr}"
                said = True
        if not path.is_relative_to(stored.home / "out"):  # no run reads it; only a user can restore it
            assert said, "no report has noticed it"
            return "refused"
    first = invoke(stored.words("run"))
    named = path.name in first.stderr or path.parent.name[:10] in first.stderr
    if first.exit_code != 0:
        assert named, f"run fails and does not name the file: {first.stderr}"
        again = invoke(stored.words("run"))
        assert again.exit_code == 0, f"a second run fails, too: {again.stderr}"
    found = numbers(stored)
    assert found == attack.truth[state, "numbers"], f"other numbers: {first.stderr}"
    said = said or "damaged" in first.stderr
    return "refused" if first.exit_code else "repaired" if said else "unchanged"


def _on_data(attack: Attack, state: str, path: Path) -> str:
    """Run the commands on a damaged data set. Only a user can mend it."""
    stored = attack.states[state]
    # The tiny data set is not the published one, so that the check never succeeds; what counts is what it says.
    known = invoke(stored.words("data")).output != attack.truth[state, "check"]
    result = invoke(stored.words("run"))
    if result.exit_code != 0:
        # A broken list names another image, which is not there.
        named = path.suffix == ".txt" or path.name in result.stderr
        assert named, f"the file is not named: {result.stderr}"
        return "refused"
    if numbers(stored) == attack.truth[state, "numbers"]:
        # Nothing the file system says has changed: only a check that reads all contents can know.
        assert known or path.read_bytes() == stored.files[path][0], "data check does not see it, and run neither"
        return "repaired" if known else "unchanged"
    assert _old_rows(numbers(stored), attack.truth[state, "numbers"]), "other numbers under the same key"
    return "another"


def _old_rows(now: str, before: str) -> bool:
    """Return whether each row and each step of before is still there."""
    return all(row in json.loads(now) for row in json.loads(before))


def write_images(root: Path) -> Path:
    """Write a data set of 18 images, 64 x 48, in the layout of VOC2012, and return its root."""
    folder, chance = root / "VOC2012", np.random.default_rng(0)
    for part in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation", "saliency_map"):
        (folder / part).mkdir(parents=True)
    for split, count in (("train_aug", 12), ("val", 6)):
        names = [f"{split[0]}{number:03d}" for number in range(count)]
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for number, name in enumerate(names):
            mask = np.zeros((48, 64), np.uint8)
            mask[4:24, 4:40], mask[24:44, 20:60] = number % 19 + 1, 20 if number % 2 else number % 7 + 1
            image = mask[..., None] * np.uint8([12, 5, 9]) + chance.integers(0, 9, (48, 64, 3), np.uint8)
            Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
            Image.fromarray(mask).save(folder / "SegmentationClassAug" / f"{name}.png")
            Image.fromarray((mask > 0) * np.uint8(255)).save(folder / "saliency_map" / f"{name}.png")
    return root


def prepare(home: Path) -> Attack:
    """Make the tiny runs in their states."""
    voc = write_images(home / "voc")
    names = ("finished", "tested", "halfway", "halfway, with memory")
    states = {name: Stored(home / name, voc) for name in names}
    states |= {name: Stored(home / name, write_images(home / name / "voc")) for name in ("data", "data, with memory")}
    attack = Attack(states)
    for name, stored in states.items():
        stored.home.mkdir(exist_ok=True)
        if name.startswith("halfway"):
            with _stopped():
                assert invoke(stored.words("run")).exit_code != 0
        else:
            assert (done := invoke(stored.words("run"))).exit_code == 0, done.output
        if name == "finished":
            made = invoke(stored.words("check", "--update", "--reason", "the attack"))
            assert made.exit_code == 0, made.output
            assert (made := invoke(stored.words("submit"))).exit_code == 0, made.output
            for command in REPORTS:
                attack.truth[name, command], result = shown(stored, command)
                assert result.exit_code == 0, f"{command} fails on sound files: {result.output}"
        if name.startswith("data"):
            attack.truth[name, "check"] = invoke(stored.words("data")).output
        if name == "tested":
            shutil.rmtree(stored.home / "out")
        stored.keep()
    for name, stored in states.items():
        assert (done := invoke(stored.words("run"))).exit_code == 0, done.output
        attack.truth[name, "numbers"] = numbers(stored)
        stored.put_back()
    return attack


@contextmanager
def _stopped() -> Iterator[None]:
    """Stop the training in the middle of step 1, after a checkpoint."""
    from cispbench.harness.training.monitor import Monitor

    def stop(monitor: Monitor, losses: Any) -> None:
        finish(monitor, losses)
        if monitor._job.context.step == 1:
            monitor._save()
            raise CispbenchError("stopped", hint="It is part of the attack.")

    finish = Monitor.after_iteration
    with mock.patch.object(Monitor, "after_iteration", stop):
        yield


def main() -> int:
    """Attack as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    chosen = parser.parse_args()
    chance, kinds = random.Random(chosen.seed), chosen.kinds.split(",")
    with tempfile.TemporaryDirectory() as folder:
        attack = prepare(Path(folder))
        for number in range(chosen.flips):
            attack.flip(kinds[number % len(kinds)], chance)
            if number % 50 == 49:
                print(f"{number + 1} flips, {len(attack.faults)} faults", file=sys.stderr, flush=True)
    for kind in kinds:
        counts = {outcome: count for (name, outcome), count in sorted(attack.met.items()) if name == kind}
        print(f"{kind:14} " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    print("\n".join(attack.faults))
    return 1 if attack.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
