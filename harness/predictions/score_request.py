"""What a person says of a folder of predictions: names and values alone. ``from_files.py`` checks and scores it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Labels = Literal["index", "number"]


@dataclass(frozen=True)
class ScoreRequest:
    """A ``folder`` with a mask ``<id>.png`` for every test image, predicted after ``step`` of a setting.

    ``method``, ``model``, ``seed``, ``profile``: what the result is listed as. ``labels``: what the masks hold,
    ``index``: places in the order of learning (0 background), or ``number``: the data set's own class numbers; None
    for settings where the two are the same. ``view``: what of each image is counted, ``crop``: the central square of
    the papers, or ``full``; None: ``crop``, and ``full`` for built-in scenes.
    """

    folder: Path
    setting: str
    step: int
    method: str
    model: str
    seed: int = 0
    profile: str = "paper"
    labels: Labels | None = None
    view: Literal["crop", "full"] | None = None
