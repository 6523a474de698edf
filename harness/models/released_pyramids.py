"""Names in checkpoints of SSUL, BARM and DKD, whose networks have torchvision's ResNet and pyramid.

``ssul``: ``classifier.head.g`` is the whole branch g, with unknown's first and background's second. ``barm``:
``classifier.head_pre`` and ``classifier.head.0`` are the first branch, ``classifier.ear.s`` and
``classifier.head.(s + 1)`` those of later steps, whose first channel is the background's residual. ``dkd``: ``cls.0``
is the auxiliary classifier, ``cls.k`` those of the steps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cispbench.harness.models.groups import AUXILIARY, Group
from cispbench.splits.errors import WeightsError

_ENCODER = (re.compile(r"^backbone\."), "encoder.net.")
_PYRAMID = (re.compile(r"^classifier\.aspp\."), "head.")
NAMES = {
    "ssul": (
        _ENCODER,
        _PYRAMID,
        (re.compile(r"^classifier\.head\.(\d+)\.3\."), r"branches.\1.classifier."),
        (re.compile(r"^classifier\.head\.(\d+)\."), r"branches.\1.features."),
    ),
    "barm": (
        _ENCODER,
        _PYRAMID,
        (re.compile(r"^classifier\.head_pre\."), "branches.0.features."),
        (re.compile(r"^classifier\.head\.(\d+)\."), r"branches.\1.classifier."),
    ),
    "dkd": (_ENCODER, (re.compile(r"^aspp\."), "head."), (re.compile(r"^cls\."), "classifiers.")),
}
_EAR = re.compile(r"^classifier\.ear\.(\d+)\.")
_BRANCH_BIAS = re.compile(r"branches\.(\d+)\.classifier\.bias$")
_CLASSIFIER_BIAS = re.compile(r"classifiers\.(\d+)\.bias$")
GROUPS = {"ssul": _BRANCH_BIAS, "barm": _BRANCH_BIAS, "dkd": _CLASSIFIER_BIAS}
# How many groups the first step has: unknown, background and classes; one; the auxiliary one and classes.
_FIRST_STEP = {"ssul": 3, "barm": 1, "dkd": 2}


def our_name(key: str, layout: str) -> str:
    """Return the name of a released tensor in our networks; one without a rule keeps its name."""
    if layout == "barm":
        key = _EAR.sub(lambda match: f"branches.{int(match[1]) + 1}.features.", key)
    for pattern, ours in NAMES[layout]:
        key = pattern.sub(ours, key)
    return key


def groups_of(layout: str, channels: Sequence[int], place: str) -> tuple[tuple[Group, ...], ...]:
    """Return the groups of each step from the channels of all of them.

    Raises WeightsError, naming ``place``, for numbers that the layout cannot have.
    """
    try:
        if layout == "ssul":
            found = [Group(extra=channels[0], role="unknown"), Group(channels[1], role="background")]
            found += [Group(count) for count in channels[2:]]
        elif layout == "barm":
            found = [Group(channels[0]), *(Group(count - 1, extra=1) for count in channels[1:])]
        else:
            found = [Group(channels[0], role=AUXILIARY), *(Group(count) for count in channels[1:])]
    except (IndexError, ValueError):  # too few groups, or a group without a channel
        found = []
    first = _FIRST_STEP[layout]
    without_classes = any(group.classes == 0 for group in found[first:])
    if len(found) < first or without_classes or any(count != 1 for count in channels[: first - 1]):
        raise WeightsError(
            f"{place} has groups of {', '.join(map(str, channels))} channels, which {layout} cannot have.",
            hint="Is --from the code base that wrote it?",
        )
    return (tuple(found[:first]), *((group,) for group in found[first:]))
