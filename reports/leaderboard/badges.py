"""Badges: what makes a row unfair to compare, by its method, network and who ran it; and what is not known of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from cispbench.reports.tables.cells import Cell
from cispbench.reports.tables.extras import Extras, published_extras
from cispbench.results.documents import OWN, QUOTED
from cispbench.results.published_methods import UNKNOWN, method_facts, network_facts

JOINT = "Joint"  # the ledger's name for training on all classes at once
NOT_KNOWN = "not known"
_RANDOM = "none"  # what a record calls weights that no data have trained
# How the names of weights end that come with cispbench: those of ImageNet-1k, and those of ImageNet-21k. Other weights,
# as those of a file, may have learnt from anything.
_LEARNT_MORE = {"-imagenet": False, "-augreg": True}


class Badge(NamedTuple):
    """What makes a comparison with a row unfair, in few words and in a sentence."""

    name: str
    why: str


def published_badges(dataset: str, backbone: str, kinds: Collection[str], method: str) -> tuple[Badge, ...]:
    """Return the badges of a published row. ``kinds``: those of its numbers; ``method``: the ledger's name."""
    facts = method_facts().get(method, UNKNOWN)
    selected, why = facts.selected_on_test, f"Its released code tests the best checkpoint (protocol {facts.protocol})."
    if not set(kinds) <= {OWN, QUOTED}:
        selected = None  # others may test another checkpoint than the released code does
    network = network_facts().get(backbone)
    learnt = f"Its network has learnt from more than ImageNet-1k: {network.pretraining}." if network else ""
    checks = [
        *_extra_checks(published_extras(facts, dataset)),
        ("test-selected", selected, f"The checkpoint is chosen on the test images. {why}"),
        ("pre-training", None if network is None else network.unusual, learnt),
    ]
    return _badges(checks, method == JOINT)


def measured_badges(cells: Iterable[Cell], extras: Extras) -> tuple[Badge, ...]:
    """Return the badges of the cells of a measured row; ``extras``: what they used."""
    badges = dict.fromkeys(badge for cell in cells for badge in _cell_badges(cell, extras))
    return tuple(badges)


def _cell_badges(cell: Cell, extras: Extras) -> tuple[Badge, ...]:
    # Never test-selected: our runs test the weights of the last iteration, whatever the released code does.
    weights = cell.runs[0].facts.model.weights
    found = [more for end, more in _LEARNT_MORE.items() if weights.endswith(end)]
    unusual = False if weights == _RANDOM else found[0] if found else None
    checks = [
        *_extra_checks(extras),
        ("no pre-training", weights == _RANDOM, "Its encoder starts from random weights."),
        ("pre-training", unusual, f"Its encoder starts from {weights}, which have learnt from ImageNet-21k."),
    ]
    return _badges(checks, cell.joint)


def _extra_checks(extras: Extras) -> list[tuple[str, bool | None, str]]:
    return [
        ("memory", extras.keeps_images, f"It keeps training images of earlier steps: {extras.memory}."),
        ("extra supervision", extras.more_than_labels,
         f"It learns from more than the data set's labels: {extras.supervision}."),
    ]  # fmt: skip


def _badges(checks: Iterable[tuple[str, bool | None, str]], joint: bool) -> tuple[Badge, ...]:
    """Return a badge for each check that is true, and one that names all checks whose answer is not known (None)."""
    checks = list(checks)
    badges = [Badge("upper bound", "Trained on all classes at once: shown, and not ranked.")] if joint else []
    badges += [Badge(name, why) for name, found, why in checks if found]
    unknown = ", ".join(name for name, found, _ in checks if found is None)
    if unknown:
        badges.append(
            Badge(f"{NOT_KNOWN}: {unknown}", f"Whether the row deserves these badges is not known: {unknown}.")
        )
    return tuple(badges)
