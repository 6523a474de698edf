"""Thousands of damaged files of every kind that comes from elsewhere: each is read as it was, or refused in words.

Files with a checksum (submissions, archives of torch.save, PNGs, first uses of weights) must keep their meaning. Others
(YAML, weights of old or as safetensors) cannot know what they held: they must end in plain values or in our error.
"""

from __future__ import annotations

import io
import json
import math
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from cispbench.harness.commands.sweep_status import status_of
from cispbench.harness.machine.locks import HOLDER, run_lock
from cispbench.harness.models.weight_files import read_state
from cispbench.harness.models.weights_first_use import compare_first_use, first_use_path, keep_first_use
from cispbench.harness.models.weights_table import load_table
from cispbench.harness.sweep.matrix import SweepRequest
from cispbench.harness.sweep.slurm.notes import JobStep, SlurmNotes, StepReport
from cispbench.results.store import read_run
from cispbench.results.submission import pack, read_submission
from cispbench.splits.errors import CispbenchError
from cispbench.splits.strict_yaml import load_yaml

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = ROOT / "results/runs/voc/overlapped-15-1/mbs/quick-segmenter-tiny-seed10-9cca078063"
RECIPE = ROOT / "methods/recipes/mbs.yaml"
MORE_MEMORY = 200 * 1024  # KiB
LONGEST = 5.0  # seconds for one file

# Reads a file, and returns what it means in a form that can be compared.
Reader = Callable[[Path], object]


def flipped(rng: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def lengthened(rng: random.Random, content: bytes) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.randbytes(rng.choice((1, 2, 8, 300))) + content[place:]


def shortened(rng: random.Random, content: bytes) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + content[place + rng.choice((1, 2, 8, 300)) :]


def repeated(rng: random.Random, content: bytes) -> bytes:
    first, last = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:last] + content[first:]


def marked(rng: random.Random, content: bytes) -> bytes:
    """Put in what means something to a parser of texts."""
    place = rng.randrange(len(content) + 1)
    words = [
        *(b"&a ", b"*a", b"!!int ", b"{", b"[" * 50, b"9" * 5000, b"\x00", b"\xef\xbb\xbf", b"? ", b"- ", b": ", b"'"),
        *(b"1e999", b"\xed\xa0\x80", b"\n---\n", b"|\n", b"\t", b"%YAML 1.1\n", b"\\ud800", b"#"),
    ]
    return content[:place] + rng.choice(words) + content[place:]


DAMAGES = (flipped, cut, lengthened, shortened, repeated, marked)


def attack(path: Path, read: Reader, times: int, keeps: bool) -> tuple[int, int]:
    """Read damaged versions of a file; return how many were read, and how many refused.

    ``keeps``: what is read must be what the whole file means.
    """
    content, rng = path.read_bytes(), random.Random(path.name)
    meaning = read(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    well = refused = 0
    for number in range(times):
        damage = DAMAGES[number % len(DAMAGES)]
        path.write_bytes(damage(rng, content))
        began = time.perf_counter()
        try:
            found = read(path)
        except CispbenchError as error:
            assert path.name in str(error)
            assert len(str(error)) < 3000
            refused += 1
        else:
            assert not keeps or found == meaning, f"{damage.__name__}, file {number}: another meaning"
            well += 1
        assert time.perf_counter() - began < LONGEST, f"{damage.__name__}, file {number} takes too long"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MORE_MEMORY
    return well, refused


def test_submissions(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(pack(read_run(RUN), "1.0"))
    well, refused = attack(path, read_submission, 240, keeps=True)
    assert refused > 200
    assert well + refused == 240


def plain(value: Any) -> bool:
    """Return whether a value is one that JSON knows, or not finite."""
    if isinstance(value, dict):
        return all(isinstance(key, (str, int, float, bool, type(None))) and plain(one) for key, one in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return value is None or type(value) in (str, int, float, bool)


def test_recipes(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(RECIPE.read_bytes())

    def read(place: Path) -> bool:
        return plain(load_yaml(place))

    well, refused = attack(path, read, 1500, keeps=True)
    assert min(well, refused) > 200


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"cls.0.bias": (3,), "cls.0.weight": (3, 8, 1, 1), "body.mod1.conv1.weight": (8, 3, 3, 3)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def read_values(path: Path) -> object:
    read = read_state(path)
    assert all(math.isfinite(float(value.double().abs().sum())) for value in read.values())
    return {name: (value.dtype, tuple(value.shape), value.tolist()) for name, value in sorted(read.items())}


def test_weights_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"model_state": state(), "epoch": 3, "best_score": np.float64(0.5)}, path)
    _, refused = attack(path, read_values, 600, keeps=True)
    assert refused > 300


def test_weights_of_old(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"model_state": state()}, path, _use_new_zipfile_serialization=False)
    _, refused = attack(path, read_values, 600, keeps=False)
    assert refused > 200


def test_weights_as_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(save(state()))
    _, refused = attack(path, read_values, 600, keeps=False)
    assert refused > 200


def test_first_uses_of_weights(tmp_path: Path) -> None:
    target, entry = tmp_path / "vit.safetensors", load_table()["vit_base_patch16_384-augreg"]
    keep_first_use(entry, target, "ab" * 32)

    def read(path: Path) -> object:
        return compare_first_use(entry, target, "ab" * 32)

    well, refused = attack(first_use_path(target), read, 600, keeps=True)
    assert refused > 500
    with pytest.raises(CispbenchError):
        compare_first_use(entry, target, "cd" * 32)
    assert well + refused == 600


def test_the_notes_of_status(tmp_path: Path) -> None:
    """``status`` reads notes of processes and of jobs; damaged ones are left out, or refused by their name.

    A note of jobs must keep its meaning: the jobs that it names are watched, and may be cancelled.
    """
    records, steps = tmp_path / "records", tmp_path / "steps"
    notes = SlurmNotes(steps)
    job = notes.new(records, [(JobStep("ab" * 32, "step 0", ("cd" * 32,)),)])
    notes.advance(job, "released", "7")
    report = StepReport(job.name, 0, "running", 3, 10)
    notes.write_report("ab" * 32, report)
    assert notes.report("ab" * 32, report.task) is not None

    def read(_: Path) -> bool:
        status = status_of(records, steps, SweepRequest())
        return all(type(value) in (str, int) for rows in status.cluster for value in vars(rows).values())

    def read_jobs(_: Path) -> object:
        read(_)
        return notes.submissions()

    well, refused = attack(steps / "slurm" / job.name / "note.json", read_jobs, 300, keeps=True)
    assert refused > 250
    notes.advance(job, "released", "7")
    whole = notes.report("ab" * 32, report.task)

    def read_report(_: Path) -> object:
        read(_)
        found = notes.report("ab" * 32, report.task)
        return None if found == whole else found

    well, refused = attack(steps / "slurm" / "said" / f"{'ab' * 32}.json", read_report, 300, keeps=True)
    assert (well, refused) == (300, 0)
    (steps / "work" / "ef").mkdir(parents=True)
    with run_lock(steps / "work" / "ef", "step 1", None):
        holder = steps / "work" / "ef" / HOLDER
        well, refused = attack(holder, read, 300, keeps=True)
        assert (well, refused) == (300, 0)
        holder.write_text(json.dumps({"pid": "1", "since": ["x"], "what": {}, "host": None}))
        assert status_of(records, steps, SweepRequest()).running == ()


def test_predictions(tmp_path: Path) -> None:
    pytest.importorskip("cispbench.harness.data.png", reason="the strict reader of PNGs is not there")
    from cispbench.harness.data.decode import decode_mask, read_regular_file

    path, picture = tmp_path / "v000.png", io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 21, (24, 32), np.uint8)
    Image.fromarray(pixels).save(picture, format="PNG")
    path.write_bytes(picture.getvalue())

    def read(place: Path) -> object:
        mask, _ = decode_mask(place, read_regular_file(place, "prediction"), "voc")
        return np.asarray(mask).tolist()

    well, refused = attack(path, read, 900, keeps=True)
    assert refused > 700
    assert well + refused == 900
