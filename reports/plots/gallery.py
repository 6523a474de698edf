"""All pictures of a store: which ones there are, in which files, and how they are drawn one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cispbench.reports.plots.confusion import draw_confusion
from cispbench.reports.plots.cost import costly, draw_cost
from cispbench.reports.plots.curves import draw_curves
from cispbench.reports.plots.heat_map import draw_heat_map
from cispbench.reports.plots.losses import draw_losses
from cispbench.reports.plots.page import FORMATS, Page, drawing, render
from cispbench.reports.plots.scatter import draw_scatter
from cispbench.reports.plots.subject import Subject, common_steps, subjects
from cispbench.reports.plots.wording import file_part
from cispbench.reports.tables.cells import Cell, by_group, cells
from cispbench.reports.tables.runs import Selection
from cispbench.reports.tables.scoring import load_runs
from cispbench.results.atomic import make_folder, write_atomic
from cispbench.results.store import Store
from cispbench.splits.errors import StoreError, UsageError, nearest

KINDS = ("curves", "losses", "classes", "scatter", "confusion", "cost")


@dataclass(frozen=True)
class PlotOptions:
    """Which pictures, in which format."""

    kinds: tuple[str, ...] = KINDS
    form: str = "svg"

    def __post_init__(self) -> None:
        for what, names, known in (("picture", self.kinds, KINDS), ("format", (self.form,), FORMATS)):
            for name in names:
                if name not in known:
                    raise UsageError(f"unknown {what} {name!r}.", hint=nearest(name, known))


class Picture(NamedTuple):
    """A picture to draw: its file below the folder of pictures, without an ending, and the function that draws it."""

    path: Path
    draw: Callable[[], Page]


def draw_store(
    store: Store, folder: Path, protocol: str = "strict", selection: Selection | None = None,
    options: PlotOptions | None = None,
) -> Iterator[Path]:  # fmt: skip
    """Draw the selected finished runs of a store into a folder, and yield each file once it is written.

    Each picture holds one kind of data and one profile. A file of the same name is replaced. Raises StoreError if there
    is nothing to draw or a file cannot be read or written, UsageError as ``load_runs`` does.
    """
    options = options or PlotOptions()
    for path, draw in plan_pictures(store, protocol, selection, options.kinds):
        with drawing():
            content = render(draw(), options.form)
        target = folder / path.with_name(f"{path.name}.{options.form}")
        make_folder(target.parent)
        write_atomic(target, content)
        yield target


def plan_pictures(
    store: Store, protocol: str = "strict", selection: Selection | None = None, kinds: Sequence[str] = KINDS
) -> list[Picture]:
    """Return the pictures of the selected finished runs. Raises StoreError if there are none."""
    runs = load_runs(store, protocol, selection)
    if not runs:
        raise StoreError(
            f"no finished run in {store.path}: there is nothing to draw.",
            hint="`cispbench status` shows what is missing; a run is drawn once its last step is recorded.",
        )
    pictures = []
    for group, members in by_group(cells(runs)).items():
        for subject in subjects(group, members, protocol):
            pictures += [picture for picture in _pictures(subject) if picture.path.name in kinds]
    if not pictures:
        raise StoreError(
            f"none of the {len(runs)} selected runs in {store.path} has what {', '.join(kinds)} would show.",
            hint="curves, classes and scatter need a run of several steps, losses and cost one that was trained.",
        )
    return pictures


def _pictures(subject: Subject) -> Iterator[Picture]:
    """Return the pictures of a setting: those of all methods, then those of each; the name of a file is its kind."""
    group = subject.group
    folder = Path(f"{group.dataset}-{group.kind}-{file_part(group.profile)}", file_part(subject.setting.name))
    if any(len(common_steps(cell)) > 1 for cell in subject.cells):
        yield Picture(folder / "curves", partial(draw_curves, subject))
    if subject.setting.last_step > 0:
        yield Picture(folder / "scatter", partial(draw_scatter, subject))
    if any(costly(cell) for cell in subject.cells):
        yield Picture(folder / "cost", partial(draw_cost, subject))
    for cell, label in zip(subject.cells, subject.labels, strict=True):
        own = folder / _name(cell)
        if cell.key.origin != "predictions":
            yield Picture(own / "losses", partial(draw_losses, subject, cell, label))
        if len(common_steps(cell)) > 1:
            yield Picture(own / "classes", partial(draw_heat_map, subject, cell, label))
        yield Picture(own / "confusion", partial(draw_confusion, subject, cell, label))


def _name(cell: Cell) -> str:
    key = cell.key
    origin = "" if key.origin == "measured" else key.origin
    devices = "" if key.devices == (1,) else f"{'+'.join(map(str, key.devices))}-devices"
    parts = filter(None, (key.variant, origin, "imported" if key.imported else "", devices))
    return "@".join(map(file_part, (key.method, key.model, *parts)))  # no part can hold an @
