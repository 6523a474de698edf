"""What a person asks for: names and values alone. ``runs/prepare.py`` makes a plan of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunRequest:
    """One run, as ``cispbench run``, ``sweep`` and ``show`` ask for it.

    ``method``, ``setting``: names, as ``cispbench list`` prints them. ``seed``: of all random choices.
    ``profile``: paper, mini or quick; None: paper where the data set is found, else quick.
    ``model``, ``weights``: instead of the recipe's. ``overrides``: changes of the recipe, each ``section.key=value``.
    ``data_root``: the folder that holds the data set; None: where data is looked for by default.
    ``start_from``: how the key of an imported step starts, from which the run goes on.
    ``devices``: processes that share each batch. ``micro_batch``: images that a device holds at once, at most.
    ``share``: whether other runs may use the steps of this one. Without it the keys are the run's own; what is
    trained is the same.
    """

    method: str
    setting: str
    seed: int = 0
    profile: str | None = None
    model: str | None = None
    overrides: tuple[str, ...] = ()
    weights: str | None = None
    data_root: Path | None = None
    start_from: str | None = None
    devices: int | None = None
    micro_batch: int | None = None
    share: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "overrides", tuple(self.overrides))  # a list could not be part of a key of a dict


@dataclass(frozen=True)
class ImportRequest:
    """A checkpoint ``file`` of released ``code``, and what it is said to be.

    ``setting``: the one it was trained on, by name. ``model``: None for the first that the code base fills.
    ``crop``: side of the training images in pixels, for a ViT's position grid.
    """

    file: Path
    code: str
    setting: str
    model: str | None = None
    crop: int = 512
