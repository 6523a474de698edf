"""What a person asks a run to be: names and values alone. ``runs/prepare.py`` makes a plan of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunRequest:
    """One run, as ``cispbench run``, ``sweep``, ``show`` and the Python API ask for it.

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
