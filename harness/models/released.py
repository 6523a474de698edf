"""Translate checkpoints of the papers' released code into the parameter names of our models, and load them.

``abn-deeplab`` (MiB, PLOP): a residual network ``body.mod1`` to ``body.mod5`` with blocks counted from 1, the head,
and a classifier ``cls.k`` for every step. Its norms are in-place ABN, whose scale is |gamma| + 1e-5, or, where
batch counters are present, plain batch norms. ``rcil``: the same with second branches, see
``released_two_branches.py``. ``segmenter`` (MBS): a ViT and the mask transformer, whose first group of classes is the
background alone. ``ssul``, ``barm``, ``dkd``: see ``released_pyramids.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cispbench.harness.models import released_pyramids, released_two_branches
from cispbench.harness.models.groups import Group
from cispbench.splits.errors import UsageError, WeightsError, nearest
from cispbench.splits.strict_yaml import load_yaml

if TYPE_CHECKING:
    from torch import Tensor

    from cispbench.harness.models.interface import IncrementalModel

ABN_EPSILON = 1e-5  # inplace_abn adds it to |gamma|
COUNTER = "num_batches_tracked"
_BLOCK = re.compile(r"^body\.mod(\d)\.block(\d+)\.(?:convs\.)?")
_NAMES = (
    (re.compile(r"^body\.mod1\."), "encoder.net."),
    (re.compile(r"(?<=\.)proj_conv(?=\.)"), "downsample.0"),
    (re.compile(r"(?<=\.)proj_bn(?=\.)"), "downsample.1"),
    (re.compile(r"^cls\."), "classifiers."),
)
# ImageNet's classifiers, which releases carry along.
_DROPPED = ("encoder.vit.head.", "encoder.vit.head_dist.", "encoder.net.fc.")
_CLASSIFIERS = re.compile(r"classifiers\.(\d+)\.bias$")
_GROUPS = {
    "abn-deeplab": _CLASSIFIERS,
    "rcil": _CLASSIFIERS,
    "segmenter": re.compile(r"mask_norm\.bias\.(\d+)$"),
    **released_pyramids.GROUPS,
}


@dataclass(frozen=True)
class ReleasedCode:
    """A code base: where it is from, its naming ``layout``, and the ``models`` that it can fill."""

    name: str
    source: str
    layout: Literal["abn-deeplab", "rcil", "segmenter", "ssul", "barm", "dkd"]
    models: tuple[str, ...]


@dataclass(frozen=True)
class ReleasedState:
    """A checkpoint in our names: ``steps`` holds the groups of channels that each step added.

    ``in_place_abn``: the scales were converted from in-place ABN's.
    """

    state: dict[str, Tensor]
    steps: tuple[tuple[Group, ...], ...]
    in_place_abn: bool

    @property
    def groups(self) -> tuple[int, ...]:
        """How many classes each step added; background is in the first."""
        return tuple(sum(group.classes for group in step) for step in self.steps)


@cache
def _table() -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = load_yaml(Path(__file__).parent / "released.yaml")
    return entries


def released_names() -> list[str]:
    """Return the names of the code bases whose checkpoints can be imported."""
    return list(_table())


def released_code(name: str) -> ReleasedCode:
    """Return a code base by name. Raises UsageError with the nearest name."""
    if name not in _table():
        raise UsageError(f"checkpoints of {name!r} cannot be imported.", hint=nearest(name, released_names()))
    entry = _table()[name]
    return ReleasedCode(name, entry["source"], entry["layout"], tuple(entry["models"]))


def translate(state: Mapping[str, Tensor], layout: str, place: str) -> ReleasedState:
    """Return a released state dict in our names; ``place`` says in errors where it came from.

    Raises WeightsError if it holds no classes, which is what a file of another code base looks like.
    """
    names = {key: _translated(key, layout) for key in state}
    renamed = {new: state[key] for key, new in names.items() if not new.startswith(_DROPPED)}
    if len(firsts := {new: key for key, new in reversed(names.items())}) < len(names):
        twice = next(key for key, new in names.items() if firsts[new] != key)
        raise WeightsError(f"{place} holds {firsts[names[twice]]} again, as {twice}.", hint="Keep one of them.")
    channels = _class_groups(renamed, layout, place)
    if not channels:
        found = ", ".join(list(state)[:3])
        raise WeightsError(
            f"{place} holds no classifier of the layout {layout}: its first names are {found}.",
            hint="Is --from the code base that wrote it?",
        )
    _check_values(state, place)
    if layout == "rcil":
        renamed = released_two_branches.without_merged_norms(renamed, place)
    in_place = layout in ("abn-deeplab", "rcil") and not any(key.endswith(COUNTER) for key in renamed)
    # Only in-place ABN counts no batches; its scales must be converted, those of plain batch norms must not.
    if in_place:
        renamed = _plain_norms(renamed)
    plain = layout not in released_pyramids.NAMES
    steps = tuple((Group(n),) for n in channels) if plain else released_pyramids.groups_of(layout, channels, place)
    return ReleasedState(renamed, steps, in_place)


def _translated(key: str, layout: str) -> str:
    if layout in released_pyramids.NAMES:
        return released_pyramids.our_name(key, layout)
    if layout == "segmenter":
        return key.replace("encoder.", "encoder.vit.", 1) if key.startswith("encoder.") else key
    if block := _BLOCK.match(key):
        stage, number = int(block[1]) - 1, int(block[2]) - 1
        key = f"encoder.net.layer{stage}.{number}.{key[block.end() :]}"
    for pattern, ours in _NAMES:
        key = pattern.sub(ours, key)
    return released_two_branches.our_name(key) if layout == "rcil" else key


def _check_values(state: Mapping[str, Tensor], place: str) -> None:
    """Raise WeightsError for whole numbers, which no training can have left in a parameter."""
    for name, value in state.items():
        if not name.endswith(COUNTER) and not value.is_floating_point():
            raise WeightsError(f"{place}: {name} holds {value.dtype}, not floating-point numbers.")


def _class_groups(state: Mapping[str, Tensor], layout: str, place: str) -> tuple[int, ...]:
    found = {int(match[1]): value.numel() for key, value in state.items() if (match := _GROUPS[layout].search(key))}
    # Not up to the largest number, which a file can choose freely: as many as there are.
    missing = next((number for number in range(len(found)) if number not in found), None)
    if missing is not None:
        raise WeightsError(
            f"{place} has the classes of step group {max(found)} but not of group {missing}.",
            hint="The file is incomplete: fetch it again.",
        )
    sizes = [found[number] for number in range(len(found))]
    if layout == "segmenter" and len(sizes) > 1:  # the background comes with the first growth
        sizes = [sizes[0] + sizes[1], *sizes[2:]]
    return tuple(sizes)


def _plain_norms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with the scale of every norm as in-place ABN computes it: |gamma| + 1e-5."""
    import torch

    norms = {key.removesuffix("running_mean") for key in state if key.endswith(".running_mean")}
    plain = {
        key: value.abs() + ABN_EPSILON if key.endswith(".weight") and key.removesuffix("weight") in norms else value
        for key, value in state.items()
    }
    return plain | {f"{norm}{COUNTER}": torch.tensor(0) for norm in norms}


def load_released(model: IncrementalModel, released: ReleasedState, place: str) -> None:
    """Grow a bare model by the checkpoint's groups and copy the weights into it, all of them or nothing.

    A ViT's position embedding is resampled to the model's grid. Raises WeightsError with the first names that are
    missing, left over or of another shape.
    """
    from cispbench.harness.models.interface import Encoder
    from cispbench.harness.models.weight_files import load_backbone

    for groups in released.steps:
        model.grow(groups)
    encoder = model.sections()["encoder"]
    state = encoder.fitted(released.state, "encoder.vit.") if isinstance(encoder, Encoder) else released.state
    load_backbone(model, state, place=place)
