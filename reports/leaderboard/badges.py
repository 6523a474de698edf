"""Badges: what makes a comparison with a row unfair, as far as the ledger or the record says so."""

from __future__ import annotations

from typing import NamedTuple

from cispbench.reports.tables.cells import Cell
from cispbench.results.published_methods import MethodFacts


class Badge(NamedTuple):
    """What makes a comparison with a row unfair, in few words and in a sentence."""

    name: str
    why: str


_RANDOM, _USUAL = "none", "imagenet"  # what a record calls the weights that an encoder starts from
_UPPER_BOUND = Badge("upper bound", "Trained on all classes at once: shown, and not ranked.")


def published_badges(backbone: str, facts: MethodFacts, joint: bool) -> tuple[Badge, ...]:
    """Return the badges of published rows of a method on a backbone; ``joint``: trained on all classes at once."""
    found = [*([_UPPER_BOUND] if joint else []), *_of_method(facts)]
    if facts.selected_on_test:
        why = f"Its released code keeps the checkpoint that is best on the test images (protocol {facts.protocol})."
        found.append(Badge("test-selected", why))
    learnt = "images and texts of the web (CLIP)" if "CLIP" in backbone else facts.pretraining
    if learnt:
        found.append(Badge("pre-training", f"Its backbone has learnt from more than ImageNet-1k: {learnt}."))
    return tuple(found)


def measured_badges(cell: Cell, facts: MethodFacts) -> tuple[Badge, ...]:
    """Return the badges of a cell of measured runs; the runs test the weights of the last iteration."""
    found = [*([_UPPER_BOUND] if cell.joint else []), *_of_method(facts)]
    weights = cell.runs[0].facts.model.weights
    if weights == _RANDOM:
        found.append(Badge("no pre-training", "Its encoder starts from random weights."))
    elif _USUAL not in weights.lower():
        found.append(
            Badge("pre-training", f"Its encoder starts from {weights}, by its name not the usual ImageNet-1k.")
        )
    return tuple(found)


def _of_method(facts: MethodFacts) -> list[Badge]:
    found = []
    if facts.exemplars:
        found.append(Badge("memory", f"It keeps training images of earlier steps: {facts.memory}."))
    if facts.supervision:
        found.append(
            Badge("extra supervision", f"It learns from more than the data set's labels: {facts.supervision}.")
        )
    return found
