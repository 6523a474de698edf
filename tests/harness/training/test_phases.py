"""The order of a method's calls in a step, phase by phase, whatever interrupts it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.harness.method import Batch, Output, StepContext
from cispbench.harness.training import monitor
from cispbench.harness.training.checkpoint_file import read_checkpoint
from cispbench.harness.training.job import StoppedError, TrainingLog
from cispbench.harness.training.loop import StepTraining
from cispbench.splits.errors import MethodError
from tests.harness.training.toys import RECIPE, Toy, context, job

CALLS = ["initialise", "initialise done"]
for _phase in ("pretune", "train"):
    CALLS += [f"before {_phase}", f"before {_phase} done", *[f"losses {_phase}"] * 3]
    CALLS += [f"after {_phase}", f"after {_phase} done"]


class Killed(BaseException):
    """The process ends here."""


class Mortal(Toy):
    """Ends the training at a call, before or after which nothing else is done."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def note(self, call: str) -> None:
        super().note(call)
        if len(self.calls) > self.at:
            raise Killed


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Toy, TrainingLog, dict[str, Tensor]]:
    """An undisturbed training."""
    method = Toy()
    made = job(method, tmp_path / "whole.pt")
    log = StepTraining(made).run()
    return method, log, dict(made.context.model.state_dict())


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint wherever there may be one."""
    monkeypatch.setattr(monitor, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(monitor, "CHECKPOINT_SHARE", 1e9)


def same(method: Toy, log: TrainingLog, weights: dict[str, Tensor], whole: Any) -> bool:
    other, first, theirs = whole
    assert (log.iterations, log.terms, log.notes) == (first.iterations, first.terms, first.notes)
    ours = method.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in other.state_dict().items())
    return all(torch.equal(tensor, theirs[name]) for name, tensor in weights.items())


def test_hooks_are_called_in_the_order_of_the_contract(whole: Any) -> None:
    method, log, _ = whole
    assert method.calls == CALLS
    assert method.seen.tolist() == [1, 2, 6, 2]
    assert log.iterations == [1, 2, 3, 4, 5, 6] and log.planned == 6


def test_the_log_tells_the_phases_apart_and_each_name_has_a_value_for_each_iteration(whole: Any) -> None:
    log = whole[1]
    assert set(log.terms) == {"pretune.cross_entropy", "pretune.kept", "cross_entropy", "kept"}
    assert set(log.notes) == {"pretune.kept", "pretune.trace", "kept", "trace"}
    assert all(len(values) == 6 for values in (*log.terms.values(), *log.notes.values()))
    assert log.terms["cross_entropy"][:3] == [0, 0, 0] == log.terms["pretune.cross_entropy"][3:]
    assert all(log.terms["cross_entropy"][3:]) and all(log.terms["pretune.cross_entropy"][:3])
    assert log.notes["trace"][:3] == [None] * 3 and None not in log.notes["trace"][3:]


@pytest.mark.parametrize("at", range(len(CALLS)))
def test_a_step_that_is_killed_at_any_moment_ends_as_if_it_had_not_been(
    tmp_path: Path, eager: None, whole: Any, at: int
) -> None:
    path = tmp_path / "checkpoint.pt"
    killed = Mortal(at)
    with pytest.raises(Killed):
        StepTraining(job(killed, path)).run()
    assert killed.calls == CALLS[: at + 1]
    resumed = Toy()
    made = job(resumed, path)
    assert same(resumed, StepTraining(made).run(), dict(made.context.model.state_dict()), whole)
    # No finished hook again: those that are saved are not called, and the last calls are those of the whole training.
    assert resumed.calls == CALLS[len(CALLS) - len(resumed.calls) :]
    if CALLS[at].startswith("losses"):
        assert "initialise" not in resumed.calls
    if at > CALLS.index("after pretune done"):
        assert not any("pretune" in call for call in resumed.calls)
    if CALLS[at] == "after train":
        assert resumed.calls[0] == "losses train"  # the last iteration is not saved before `after_training`


def test_a_step_that_is_killed_again_and_again_calls_each_hook_once_in_its_history(
    tmp_path: Path, eager: None, whole: Any
) -> None:
    path = tmp_path / "checkpoint.pt"
    for at in range(1, 60):
        method = Mortal(4 + at % 3)
        made = job(method, path)
        try:
            log = StepTraining(made).run()
        except Killed:
            continue
        assert at > 1
        assert same(method, log, dict(made.context.model.state_dict()), whole)
        return
    pytest.fail("the training does not end")


def test_a_checkpoint_between_phases_says_which_is_next_and_a_stop_ends_there(tmp_path: Path, whole: Any) -> None:
    path, asked = tmp_path / "checkpoint.pt", iter(range(1, 100))
    with pytest.raises(StoppedError, match="before the phase train of step 1"):
        StepTraining(job(Toy(), path, stop=lambda: next(asked) == 3)).run()
    content: Any = read_checkpoint(path)
    assert (content["phase"], content["iteration"], content["stepper"]) == ("train", 0, None)
    method = Toy()
    made = job(method, path)
    assert same(method, StepTraining(made).run(), dict(made.context.model.state_dict()), whole)
    assert method.calls == CALLS[CALLS.index("before train") :]


def test_a_single_phase_named_train_has_the_seeds_that_it_always_had(tmp_path: Path) -> None:
    """And another phase has others: what is drawn in it is not what the next one draws."""

    class Drawing(Toy):
        def before_training(self, context: StepContext, batches: Any) -> None:
            self.trace = torch.rand(2)

        def after_gradients(self, gradients: Any, context: StepContext) -> None:
            """Not looked at."""

    drawn = {}
    for names in (("train",), ("pretune",)):
        method = Drawing()
        StepTraining(job(method, tmp_path / "none.pt", phases=dict.fromkeys(names, RECIPE))).run()
        drawn[names] = method.trace
    torch.manual_seed(5)
    assert torch.equal(drawn["train",], torch.rand(2)) and not torch.equal(drawn["pretune",], drawn["train",])


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_micro_batches_give_the_whole_batchs_terms_gradients_and_notes(
    tmp_path: Path, whole: Any, micro_batch: int
) -> None:
    method, (other, first, theirs) = Toy(), whole
    made = job(method, tmp_path / "none.pt", micro_batch=micro_batch)
    log = StepTraining(made).run()
    for name in first.terms:
        assert log.terms[name] == pytest.approx(first.terms[name], rel=1e-4)
    assert log.notes["trace"][3:] == pytest.approx(first.notes["trace"][3:], rel=1e-4)
    torch.testing.assert_close(method.trace, other.trace, rtol=1e-4, atol=1e-6)
    for name, tensor in made.context.model.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("hook", ["losses", "prepare", "after_gradients", "counts"])
def test_the_steps_images_are_not_read_within_an_iteration(tmp_path: Path, hook: str) -> None:
    class Reading(Toy):
        pass

    def read(self: Any, *given: Any) -> Any:
        list(given[-1].batches())

    setattr(Reading, hook, read)
    with pytest.raises(MethodError, match="within an iteration"):
        StepTraining(job(Reading(), tmp_path / "none.pt", micro_batch=2)).run()


def test_a_method_that_reads_no_previous_output_costs_no_pass_of_the_previous_network(tmp_path: Path) -> None:
    given, passes = context(), []
    assert given.previous is not None
    given.previous.register_forward_hook(lambda *_: passes.append(1))

    class Alone(Toy):
        reads_previous = False

        def losses(self, batch: Batch, output: Output, previous: Any, context: StepContext) -> dict[str, Tensor]:
            assert previous is None and context.previous is not None
            return {"mean": output.logits.square().mean()}

        def counts(self, batch: Batch, previous: Any, context: StepContext) -> dict[str, Tensor | int]:
            assert previous is None
            return {}

    StepTraining(job(Alone(), tmp_path / "none.pt", context=given, micro_batch=2)).run()
    assert passes == []


class Whole(Toy):
    """Keeps a mean of what `losses` sees, which it may: it takes whole batches."""

    micro_batches = False

    def losses(self, batch: Batch, output: Output, previous: Any, context: StepContext) -> dict[str, Tensor]:
        terms = super().losses(batch, output, previous, context)
        self.trace = self.trace + batch.images.mean()
        spoilt = batch.ids[0] == "010" and context.phase == "pretune"
        return {**terms, "cross_entropy": terms["cross_entropy"] * (float("nan") if spoilt else 1.0)}


def test_what_losses_keeps_of_an_iteration_that_is_not_finite_is_forgotten(tmp_path: Path) -> None:
    traces = []

    class Traced(Whole):
        def losses(self, *given: Any) -> dict[str, Tensor]:
            traces.append(self.trace.clone())
            return super().losses(*given)

        def after_gradients(self, gradients: Any, context: StepContext) -> None:
            self._count(2)

    method = Traced()
    log = StepTraining(job(method, tmp_path / "none.pt")).run()
    assert log.skipped == 1 and method.seen.tolist() == [1, 2, 5, 2]
    assert torch.equal(traces[1], traces[2]) and not torch.equal(traces[0], traces[1])


@pytest.mark.parametrize("clip", [None, 1.0])
def test_gradients_are_shown_unscaled_and_before_they_are_clipped(tmp_path: Path, clip: float | None) -> None:
    shown: dict[str, dict[tuple[str, ...], Tensor]] = {"fp32": {}, "fp16": {}}

    class Showing(Toy):
        ids: tuple[str, ...] = ()

        def losses(self, batch: Batch, output: Output, previous: Any, context: StepContext) -> dict[str, Tensor]:
            self.ids = batch.ids
            return super().losses(batch, output, previous, context)

        def after_gradients(self, gradients: Any, context: StepContext) -> None:
            shown[precision][self.ids] = torch.cat([value.flatten().clone() for value in gradients.values()])

    for precision in shown:
        recipe = replace(RECIPE, precision=precision, clip=clip, iterations=24, lr=1e-6)
        StepTraining(job(Showing(), tmp_path / "none.pt", phases={"train": recipe})).run()
    exact, scaled = shown["fp32"], shown["fp16"]
    # fp16 overflows until its scale is found; such gradients are not shown.
    assert len(exact) == 24 > len(scaled) > 0 and all(float(found.norm()) > 1.0 for found in exact.values())
    for ids, found in scaled.items():
        assert float((found - exact[ids]).norm() / exact[ids].norm()) < 0.05


def test_gradients_that_are_not_finite_are_not_shown(tmp_path: Path) -> None:
    class Steep(Toy):
        def losses(self, batch: Batch, output: Output, previous: Any, context: StepContext) -> dict[str, Tensor]:
            self.note("losses")
            root = (output.logits * 0.0).sum().abs().sqrt() if len(self.calls) % 2 else output.logits.mean()
            return {"root": root}

    method, given, phases = Steep(), context(), {"train": replace(RECIPE, iterations=4)}
    log = StepTraining(job(method, tmp_path / "none.pt", context=given, phases=phases)).run()
    assert log.skipped == 2 and method.seen[2] == 2
    assert all(bool(value.isfinite().all()) for value in given.model.state_dict().values())
