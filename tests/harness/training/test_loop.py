"""Iterations on whole batches and on micro-batches, and the methods for which micro-batches would be wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.machine.seeds import seed_everything
from cispbench.harness.method import VOID, Batch, Method, Output, StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.training.iteration import PhaseTraining
from cispbench.harness.training.job import TrainingJob
from cispbench.harness.training.nonfinite import DeviceLosses
from cispbench.harness.training.services import StepServices
from cispbench.harness.training.state import TrainingState
from cispbench.methods.finetune import FineTune
from cispbench.splits.errors import MethodError
from cispbench.splits.settings import parse_setting

CPU = torch.device("cpu")
PHASE = OptimRecipe(lr=0.05, batch=4, iterations=10)
CLASSES = 20


def batch(void_images: int) -> Batch:
    """Four images, the first of which are void but for ``void_images`` that are void altogether."""
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, CLASSES, (4, 16, 16), generator=generator)
    target[:2, :14] = VOID
    target[:void_images] = VOID
    return Batch(torch.randn(4, 3, 16, 16, generator=generator), target, ("a", "b", "c", "d"))


def take(
    method: Method, *batches: Batch, micro_batch: int | None = None, name: str = "segmenter-tiny", **changes: Any
) -> tuple[IncrementalModel, list[DeviceLosses]]:
    """Take an iteration a batch with a fresh model of step 0, the same every time."""
    seed_everything(0)
    model = build_model(name, 16)
    model.grow(CLASSES)
    model.train()
    setting = parse_setting("overlapped-19-1")
    context = StepContext(setting, 0, 0, CLASSES, model, None)
    job = TrainingJob(
        method=method, context=context, loader=lambda *_: (),  # type: ignore[arg-type, return-value]
        phases={"train": replace(PHASE, **changes)}, device=CPU, seed=0, checkpoint=Path("none"),
        view=ProgressView(), images=4, micro_batch=micro_batch,
    )  # fmt: skip
    state = TrainingState(job)
    state.begin_phase()
    assert state.stepper is not None
    training = PhaseTraining(job, state, state.stepper, context, StepServices(job, state.phase.loader))
    return model, [training.iterate(one) for one in batches]


def difference(one: IncrementalModel, other: IncrementalModel) -> float:
    theirs = other.state_dict()
    return max(float((tensor - theirs[name]).abs().max()) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
@pytest.mark.parametrize("void_images", [0, 2, 4])
def test_void_that_is_unevenly_spread_over_the_parts_weighs_as_in_the_whole_batch(
    void_images: int, micro_batch: int
) -> None:
    batches = [batch(void_images), batch(0)]
    whole, (first, _) = take(FineTune(), *batches)
    parts, (same, _) = take(FineTune(), *batches, micro_batch=micro_batch)
    torch.testing.assert_close(same.terms["cross_entropy"], first.terms["cross_entropy"], rtol=1e-5, atol=0)
    assert same.finite and same.ids == first.ids
    assert difference(whole, parts) < 1e-6


def test_without_counts_the_parts_would_not_be_the_whole_batch() -> None:
    class Uncounted(FineTune):
        def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
            return {}

    whole, _ = take(Uncounted(), batch(1))
    parts, _ = take(Uncounted(), batch(1), micro_batch=2)
    assert difference(whole, parts) > 1e-4


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_part_that_is_no_number_leaves_weights_and_batch_norms_as_they_were(micro_batch: int | None) -> None:
    class Spoiling(FineTune):
        def losses(
            self, batch: Batch, output: Output, previous: Output | None, context: StepContext
        ) -> dict[str, Tensor]:
            terms = super().losses(batch, output, previous, context)
            spoilt = "d" in batch.ids and bool(batch.images.max() > 50)
            return {name: term * float("nan") if spoilt else term for name, term in terms.items()}

    sound = batch(0)
    spoilt = Batch(sound.images * 100, sound.target, sound.ids)
    # The learning rate falls with the iterations, whether they count or not: hold it.
    how: dict[str, Any] = {"micro_batch": micro_batch, "name": "deeplabv3-tiny", "schedule": "constant"}
    model, outcomes = take(Spoiling(), sound, spoilt, sound, **how)
    assert [bool(outcome.finite) for outcome in outcomes] == [True, False, True]
    assert not outcomes[1].terms["cross_entropy"].isfinite()
    twice, _ = take(Spoiling(), sound, sound, **how)
    assert difference(model, twice) == 0.0


def test_a_clipped_gradient_that_overflows_is_left_out() -> None:
    class Steep(FineTune):
        """A loss of 0 whose gradient is none: the root of 0."""

        shared_base = False

        def losses(
            self, batch: Batch, output: Output, previous: Output | None, context: StepContext
        ) -> dict[str, Tensor]:
            return {"root": (output.logits * 0.0).sum().abs().sqrt()}

    before, _ = take(Steep())
    clipped, (outcome,) = take(Steep(), batch(0), clip=1.0)
    assert outcome.terms["root"] == 0.0 and not outcome.finite
    assert difference(before, clipped) == 0.0
    spoilt, (outcome,) = take(Steep(), batch(0))
    assert outcome.finite and not all(parameter.isfinite().all() for parameter in spoilt.parameters())


class Remembering(FineTune):
    """Keeps a mean of what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(())

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        self.mean = batch.images.mean()
        return super().losses(batch, output, previous, context)

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean}


class Fickle(FineTune):
    """Counts by what it sees."""

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        return super().counts(batch, previous, context) if "a" in batch.ids else {}


class Late(FineTune):
    """Counts nothing in the first batch."""

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        return {} if batch.ids[0] in "abcd" else super().counts(batch, previous, context)


class Astray(FineTune):
    """Counts what it has no term of."""

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        return {"crossentropy": 1}


class Silent(FineTune):
    """Has nothing to learn from."""

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        return {}


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Remembering, "changes its state in `losses`, which sees only a part of each batch"),
        (Fickle, "counts nothing in one part of the data and cross_entropy in another"),
        (Astray, "counts 'crossentropy', and has terms cross_entropy"),
        (Silent, "returned no loss term at step 0"),
    ],
)
def test_a_method_that_cannot_be_divided_is_refused_where_it_is(method: type[Method], says: str) -> None:
    with pytest.raises(MethodError, match=says):
        take(method(), batch(0), micro_batch=2)
    if method is not Silent:  # on its own the method is as good as any
        take(method(), batch(0))


def test_a_method_that_counts_from_the_second_batch_on_is_refused() -> None:
    later = replace(batch(0), ids=("e", "f", "g", "h"))
    with pytest.raises(MethodError, match="counts cross_entropy in one part of the data and nothing in another"):
        take(Late(), batch(0), later, micro_batch=2)
    take(Late(), batch(0), later)
