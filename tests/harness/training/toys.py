"""A small step for tests of the training: two networks, a few batches, and a method that uses every hook."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cispbench.harness.cross_entropy import cross_entropy, labelled_pixels
from cispbench.harness.distributed.division import Division
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.machine.seeds import seed_everything
from cispbench.harness.method import Batch, Method, Output, StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.training.job import TrainingJob
from cispbench.splits.settings import VOID, Setting, parse_setting

SETTING = parse_setting("overlapped-19-1")
OLD, NEW = SETTING.old_classes(1), SETTING.new_classes(1)
RECIPE = OptimRecipe(lr=0.05, batch=4, iterations=3)


class Loader:
    """Stands in for the loader: four batches of four images, with void that is unevenly spread."""

    def __init__(self, division: Division | None = None, rank: int = 0) -> None:
        self._division, self._rank = division, rank

    def __len__(self) -> int:
        return 4

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch)
        for number in range(4):
            images = torch.randn(4, 3, 16, 16, generator=generator)
            target = torch.randint(0, OLD + NEW, (4, 16, 16), generator=generator)
            target[: number % 3, :14] = VOID
            batch = Batch(images, target, tuple(f"{epoch}{number}{place}" for place in range(4)))
            if number >= start:
                yield self._share(batch)

    def share(self, division: Division, rank: int) -> Loader:
        return Loader(division, rank)

    def close(self) -> None:
        """There are no workers."""

    def _share(self, batch: Batch) -> Batch:
        if self._division is None:
            return batch
        places = self._division.share(range(4), self._rank)
        return Batch(batch.images[places], batch.target[places], tuple(batch.ids[place] for place in places))


def context(name: str = "segmenter-tiny") -> StepContext:
    """Return step 1 with networks that are always the same."""
    seed_everything(0)
    model = build_model(name, 16)
    model.grow(OLD)
    previous = copy.deepcopy(model).eval().requires_grad_(False)
    model.grow(NEW)
    return StepContext(SETTING, 1, OLD, NEW, model, previous)


def job(method: Method, checkpoint: Path, **changes: Any) -> TrainingJob:
    """Return the training of step 1 in two phases."""
    fields: dict[str, Any] = {
        "method": method, "context": changes.pop("context", None) or context(),
        "phases": {"pretune": RECIPE, "train": RECIPE}, "loader": lambda name: Loader(), "device": torch.device("cpu"),
        "seed": 5, "checkpoint": checkpoint, "view": ProgressView(), "images": 16,
    }  # fmt: skip
    return TrainingJob(**{**fields, **changes})


class Toy(Method):
    """Notes each call in ``calls``; its state, gradients and weights depend on all of them, and on their order."""

    name = "toy"
    shared_base = False

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.seen = torch.zeros(4)  # how often each of the hooks with a state was called
        self.trace = torch.ones(2)

    def note(self, call: str) -> None:
        """Called at the beginning and at the end of each hook."""
        self.calls.append(call)

    def phases(self, setting: Setting, step: int) -> tuple[str, ...]:
        return "pretune", "train"

    def initialise(self, context: StepContext) -> None:
        self._outside("initialise", context)
        context.model.class_groups()[-1].bias.add_(torch.randn(NEW) + torch.randn(NEW, generator=context.generator))
        self._count(0)
        self.note("initialise done")

    def before_training(self, context: StepContext, batches: Iterable[Batch]) -> None:
        self._outside(f"before {context.phase}", context)
        mean = torch.stack([batch.images.mean() for batch in batches]).mean()
        self.trace = self.trace * 0.5 + mean + torch.rand(2) + torch.rand(2, generator=context.generator)
        self._count(1)
        self.note(f"before {context.phase} done")

    def prepare(self, batch: Batch, context: StepContext) -> Batch:
        assert not torch.is_grad_enabled()
        target = batch.target.masked_fill(batch.images[:, 0] > 1.5, VOID)
        return Batch(batch.images.flip(-1), target, batch.ids)

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        assert previous is not None and context.model.training
        self.note(f"losses {context.phase}")
        kept = functional.mse_loss(output.patches, previous.patches)
        context.log("kept", kept)
        scale = 2.0 if context.phase == "pretune" else 1.0
        return {"cross_entropy": scale * cross_entropy(output.logits, batch.target), "kept": self.trace[0] * kept}

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        return {"cross_entropy": labelled_pixels(batch.target)}

    def after_gradients(self, gradients: Mapping[str, Tensor], context: StepContext) -> None:
        assert gradients.keys() == {name for name, _ in context.model.named_parameters()}
        bias = gradients["decoder.mask_norm.bias.0"]
        self.trace = self.trace * 0.9 + bias.square().sum() * 0.1
        bias.mul_(0.5).add_(self.trace.mean() * 1e-3)
        context.log("trace", self.trace[0])
        self._count(2)

    def after_training(self, context: StepContext) -> None:
        self._outside(f"after {context.phase}", context)
        for parameter in context.model.parameters():
            parameter.mul_(0.99)
        self._count(3)
        self.note(f"after {context.phase} done")

    def state_dict(self) -> dict[str, Tensor]:
        return {"seen": self.seen.clone(), "trace": self.trace.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.seen, self.trace = state["seen"].clone(), state["trace"].clone()

    def _outside(self, call: str, context: StepContext) -> None:
        self.note(call)
        assert context.previous is not None and not context.previous.training
        assert not context.model.training and not torch.is_grad_enabled()

    def _count(self, place: int) -> None:
        self.seen = self.seen.clone()
        self.seen[place] += 1
