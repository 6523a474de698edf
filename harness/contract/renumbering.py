"""Renumbered classes: the same training in which classes have other numbers, for the rule ``class-numbering``.

``order[i]`` is the class that gets the number i. Background stays 0, and a class stays among those it was learnt with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn

from cispbench.harness.method import VOID, Batch, Output
from cispbench.harness.models.interface import ClassGroup, IncrementalModel
from cispbench.splits.settings import Setting, Step

CLASS_DIMENSION = {"logits": 1, "masks": 1, "class_features": 1, "class_tokens": 0}


def rotated_classes(model: IncrementalModel) -> list[int]:
    """Return an order in which the classes of each group rotate by one; the background stays where it is."""
    order: list[int] = []
    for group in model.class_groups():
        numbers = list(range(len(order), len(order) + group.classes))
        fixed, ring = ([0], numbers[1:]) if 0 in numbers else ([], numbers)
        order += fixed + ring[1:] + ring[:1]
    return order


def renumber_batch(batch: Batch, order: list[int]) -> Batch:
    """Return the batch with renumbered labels."""
    table = torch.arange(VOID + 1)
    table[order] = torch.arange(len(order))
    return replace(batch, target=table[batch.target])


def renumber_setting(setting: Setting, order: list[int], last: int) -> Setting:
    """Return the setting whose steps up to ``last`` learn the classes in the new order."""
    learnt = [setting.learning_order[index] for index in order]
    steps = [
        Step(step.index, tuple(learnt[max(1, setting.old_classes(step.index)) : setting.num_classes(step.index)]))
        for step in setting.steps[: last + 1]
    ]
    return replace(setting, steps=(*steps, *setting.steps[last + 1 :]))


def renumber_model(model: IncrementalModel, order: Tensor) -> None:
    """Let a model show its classes in the new order, in its outputs and in ``class_groups``.

    The parameters themselves stay where they are: which of them belong to a class is the model's own affair.
    """
    original, in_forward = model.class_groups, False
    channels = _channels_by_group(original(), order.tolist())
    starts = [0, *accumulate(len(own) for own in channels)]
    everywhere = torch.cat([own + start for own, start in zip(channels, starts, strict=False)])

    def enter(*_: Any) -> None:
        nonlocal in_forward
        in_forward = True

    def leave(_: nn.Module, __: Any, output: Output) -> Output:
        nonlocal in_forward
        in_forward = False
        names = CLASS_DIMENSION.items()
        changed = {name: getattr(output, name).index_select(dim, everywhere) for name, dim in names}
        heads = [head.index_select(1, own) for head, own in zip(output.heads, channels, strict=True)]
        return replace(output, **changed, heads=tuple(heads))

    def class_groups() -> list[ClassGroup]:
        # A model that reads its own groups in its forward pass must see them as they are.
        if in_forward:
            return original()
        groups = []
        for group, own in zip(original(), channels, strict=True):
            # Results of an indexing, not parameters, but gradients flow through them into the parameters.
            weight = cast(nn.Parameter, group.rows[own].view_as(group.weight))
            groups.append(replace(group, weight=weight, bias=cast(nn.Parameter, group.bias[own])))
        return groups

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave)
    vars(model)["class_groups"] = class_groups


def _channels_by_group(groups: Sequence[ClassGroup], order: list[int]) -> list[Tensor]:
    """Return for each group where each of its channels comes from; those that are no classes stay."""
    found, first = [], 0
    for group in groups:
        classes = [group.extra + number - first for number in order[first : first + group.classes]]
        found.append(torch.tensor([*range(group.extra), *classes], dtype=torch.int64))
        first += group.classes
    return found
