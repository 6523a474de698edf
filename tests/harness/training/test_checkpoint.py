"""The file of a checkpoint: what it holds, how it is resumed, and what becomes of one that is damaged."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.machine.seeds import seed_everything
from cispbench.harness.method import Batch, StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.recipes.fields import OptimRecipe, Precision
from cispbench.harness.training import nonfinite
from cispbench.harness.training.checkpoint_file import DamagedCheckpointError, read_checkpoint, write_checkpoint
from cispbench.harness.training.job import StoppedError, TrainingJob, TrainingLog
from cispbench.harness.training.loop import StepTraining
from cispbench.methods.finetune import FineTune
from cispbench.splits.errors import MethodError, RunError
from cispbench.splits.settings import parse_setting

CLASSES = 20
FLIPS = 400


class FourBatches:
    """Stands in for the loader: four batches of two images; the second batch is NaN."""

    def __len__(self) -> int:
        return 4

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(4, 2, 3, 16, 16, generator=generator)
        images[1] = float("nan")
        targets = torch.randint(0, CLASSES, (4, 2, 16, 16), generator=generator)
        return (Batch(images[number], targets[number], ("a", "b")) for number in range(start, 4))


def training(checkpoint: Path, precision: Precision, stop_after: int = 0) -> StepTraining:
    seed_everything(0)
    model = build_model("segmenter-tiny", 16)
    model.grow(CLASSES)
    asked = iter(range(1, 100))
    job = TrainingJob(
        method=FineTune(), context=StepContext(parse_setting("overlapped-19-1"), 0, 0, CLASSES, model, None),
        loader=lambda *_: FourBatches(),  # type: ignore[arg-type, return-value]
        phases={"train": OptimRecipe(lr=0.05, batch=2, iterations=8, precision=precision)},
        device=torch.device("cpu"), seed=0, checkpoint=checkpoint, view=ProgressView(), images=8,
        stop=lambda: next(asked) == stop_after,
    )  # fmt: skip
    return StepTraining(job)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_checkpoint_holds_what_it_always_held_and_is_resumed(tmp_path: Path, precision: Precision) -> None:
    whole = training(tmp_path / "none.pt", precision)
    log = whole.run()
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(StoppedError):
        training(path, precision, stop_after=3).run()
    content: dict[str, Any] = read_checkpoint(path) or {}
    parts = {"key", "code", "phase", "iteration", "overflows_before", "model", "stepper", "nonfinite",
             "method", "log", "generator", "random", "random_of_others"}  # fmt: skip
    assert content.keys() == parts
    assert content["stepper"].keys() == {"optimizer", "scaler", "overflows"}
    assert content["log"].keys() == set(TrainingLog.__dataclass_fields__)
    assert content["random"].keys() == {"torch", "cuda", "numpy", "python"} and content["random_of_others"] == []
    assert content["iteration"] == 3 and content["nonfinite"] == {"in_a_row": 0, "in_all": 1}

    resumed = training(path, precision)
    again = resumed.run()
    assert (again.resumed, again.skipped, again.images) == (True, log.skipped, 16)
    assert log.skipped == 2 or precision == "fp16"
    assert (again.iterations, again.terms) == (log.iterations, log.terms)
    ours, theirs = resumed.job.context.model.state_dict(), whole.job.context.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


class Notes(ProgressView):
    """Keeps the lines of trouble."""

    def __init__(self) -> None:
        self.troubles: list[str] = []

    def warn(self, text: str) -> None:
        self.troubles.append(text)


class Keeping(FineTune):
    """Fine-tuning that keeps two tensors, and notes what it is given back; ``fails`` is raised at that."""

    def __init__(self, fails: Exception | None = None) -> None:
        super().__init__()
        self.fails, self.given = fails, list[Mapping[str, Tensor]]()

    def state_dict(self) -> dict[str, Tensor]:
        return {"a": torch.ones(3), "b": torch.zeros(2)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.given.append(state)
        if self.fails is not None:
            raise self.fails


def with_method(made: StepTraining, method: FineTune, view: ProgressView | None = None) -> StepTraining:
    return StepTraining(replace(made.job, method=method, view=view or ProgressView()))


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The checkpoint of a training that was stopped after three of eight iterations."""
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(StoppedError):
        with_method(training(path, "fp32", stop_after=3), Keeping()).run()
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": torch.arange(5), "b": {"c": [1, 2.5, None, "x"]}}
    write_checkpoint(tmp_path / "c", content)
    found = read_checkpoint(tmp_path / "c")
    assert found is not None and torch.equal(found.pop("a"), content.pop("a")) and found == content
    assert read_checkpoint(tmp_path / "none") is None


def test_no_flipped_bit_of_a_checkpoint_is_ever_loaded(stopped: Path) -> None:
    content, chance = stopped.read_bytes(), random.Random(0)
    bits = [*range(8 * 100), *chance.sample(range(8 * len(content)), FLIPS)]
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        stopped.write_bytes(flipped)
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(stopped)


@pytest.mark.parametrize("length", [0, 1, 50, 95, 96, 5000, -1])
def test_a_checkpoint_that_was_cut_is_damaged(stopped: Path, length: int) -> None:
    stopped.write_bytes(stopped.read_bytes()[:length])
    with pytest.raises(DamagedCheckpointError):
        read_checkpoint(stopped)


def test_after_damage_the_step_starts_anew_and_nothing_of_it_was_taken_back(tmp_path: Path, stopped: Path) -> None:
    whole = with_method(training(tmp_path / "none.pt", "fp32"), Keeping())
    whole.run()
    content = bytearray(stopped.read_bytes())
    content[len(content) // 2] ^= 4
    stopped.write_bytes(content)
    method, notes = Keeping(), Notes()
    again = with_method(training(stopped, "fp32"), method, notes)
    log = again.run()
    assert method.given == [] and not log.resumed
    assert str(stopped) in notes.troubles[0]
    assert ["not a finite number at iteration 2" in text for text in notes.troubles] == [False, True]
    assert "its checksum does not match" in notes.troubles[0] and "checkpoint.pt.damaged-0" in notes.troubles[0]
    assert stopped.with_name("checkpoint.pt.damaged-0").read_bytes() == content
    ours, theirs = again.job.context.model.state_dict(), whole.job.context.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("raised", [KeyError("thresholds"), ValueError("no such\nshape"), ZeroDivisionError()])
def test_a_method_that_cannot_take_its_state_back_is_an_error_and_no_damage(stopped: Path, raised: Exception) -> None:
    before, notes = stopped.read_bytes(), Notes()
    with pytest.raises(MethodError) as error:
        with_method(training(stopped, "fp32"), Keeping(raised), notes).run()
    said = str(error.value)
    assert "the method finetune cannot take its state back" in said and type(raised).__name__ in said
    assert str(stopped) in said and "delete the checkpoint" in said and "\n" not in said
    assert stopped.read_bytes() == before and notes.troubles == []


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("model", {"conv": torch.zeros(3)}, "does not fit the network"),
        ("log", {"steps": 3}, "does not fit this version"),
        ("random", None, "does not fit this version"),
    ],
)
def test_a_sound_checkpoint_of_other_code_is_an_error_and_no_damage(
    stopped: Path, part: str, value: Any, says: str
) -> None:
    content = read_checkpoint(stopped) or {}
    write_checkpoint(stopped, content | {part: value})
    with pytest.raises(RunError, match=says):
        with_method(training(stopped, "fp32"), Keeping()).run()
    assert stopped.is_file()


def test_a_training_that_always_diverges_before_it_is_resumed_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nonfinite, "SKIPPED_IN_A_ROW", 4)

    class Diverging(FineTune):
        def losses(self, *args: Any) -> dict[str, Tensor]:
            return {name: term * float("nan") for name, term in super().losses(*args).items()}

    path = tmp_path / "checkpoint.pt"
    for count in (2, 3):
        with pytest.raises(StoppedError):
            with_method(training(path, "fp32", stop_after=2 if count == 2 else 1), Diverging()).run()
        kept = read_checkpoint(path)
        assert kept is not None and kept["nonfinite"] == {"in_a_row": count, "in_all": count}
    with pytest.raises(RunError, match=r"at iteration 1 to 4 of step 0 \(4 iterations in a row"):
        with_method(training(path, "fp32", stop_after=1), Diverging()).run()


@pytest.mark.parametrize(("name", "code", "anew"), [("finetune", "new", True), ("finetune", "old", False),
                                                    ("finetune", None, False), ("plop", "new", False)])  # fmt: skip
def test_half_a_step_of_other_code_is_not_gone_on_with(tmp_path: Path, name: str, code: str | None, anew: bool) -> None:
    path, notes = tmp_path / "checkpoint.pt", Notes()
    first = training(path, "fp32", stop_after=3)
    with pytest.raises(StoppedError):
        StepTraining(replace(first.job, code="old")).run()
    method = FineTune()
    method.name = name
    again = training(path, "fp32")
    log = StepTraining(replace(again.job, code=code, method=method, view=notes)).run()
    assert log.resumed is not anew
    assert [line for line in notes.troubles if "other code" in line] == (
        [f"the checkpoint {path} was written by other code of finetune. It is kept as checkpoint.pt.damaged-0 and the "
         "step starts anew."] if anew else []
    )  # fmt: skip
