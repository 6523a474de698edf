"""A batch cut in two: what a method says of the halves, put together as the training on several devices does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from cispbench.harness.contract.shadow import CPU, Shadow
from cispbench.harness.contract.trace import Halved, StepTrace
from cispbench.harness.machine.seeds import random_states, restore_random_states, seed_everything
from cispbench.harness.method import VOID, Batch, Method, Output, StepContext

Part = tuple[dict[str, float], dict[str, float]]  # the terms, and what they are means over
WITHOUT_IMAGES = ("class_tokens",)  # parts of an output that are the same for every image


def halved(
    fresh: Callable[[], Method], inner: Method, step: StepTrace, batch: Batch, output: Output, previous: Output | None,
    context: StepContext,
) -> Halved | str:  # fmt: skip
    """Ask instances restored from the method's state for the terms of a batch and of its halves; a str is an error.

    Much of the first half is void, so that a mean over labelled pixels is not one over images.
    """
    chance = random_states(CPU)
    batch, size = _unlike(batch), len(batch.ids)

    def ask(first: int, last: int, seed: int = 0) -> Part | str:
        images = slice(first, last)
        part = Batch(batch.images[images], batch.target[images].clone(), batch.ids[images])
        old = None if previous is None else _sliced(previous, images)
        shadow = Shadow(fresh, inner, step, context)
        seed_everything(seed)
        return shadow.part(part, _sliced(output, images), old, context)

    try:
        # With the network's graph: a method may ask for gradients of its own (torch.autograd.grad).
        asked = [ask(0, size), ask(0, size // 2), ask(size // 2, size), ask(0, size, seed=1)]
    finally:
        restore_random_states(chance, CPU)
    parts: list[Part] = []
    for found in asked:
        if isinstance(found, str):
            return found
        parts.append(found)
    whole, *halves, redrawn = parts
    return Halved(whole[0], _combined(halves), redrawn[0])


def _unlike(batch: Batch) -> Batch:
    target = batch.target.clone()
    target[: len(batch.ids) // 2, : 3 * target.shape[1] // 4] = VOID
    return Batch(batch.images, target, batch.ids)


def _sliced(output: Output, images: slice) -> Output:
    changes: dict[str, Any] = {}
    for part in fields(Output):
        value = getattr(output, part.name)
        if part.name not in WITHOUT_IMAGES:
            changes[part.name] = value[images] if isinstance(value, Tensor) else tuple(item[images] for item in value)
    return replace(output, **changes)


def _combined(halves: list[Part]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name in dict.fromkeys(name for terms, _ in halves for name in terms):
        shares = [counts.get(name, counts[""]) for _, counts in halves]
        total = sum(shares)
        pairs = zip(halves, shares, strict=True)
        sums[name] = sum(terms.get(name, 0.0) * share / total for (terms, _), share in pairs) if total > 0 else 0.0
    return sums
