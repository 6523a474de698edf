"""``cispbench plots`` and ``panels``: pictures of a store's runs, and of what their models predict."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from cispbench.harness.commands.options import (
    DATA_ROOT,
    DEVICE,
    JSON,
    METHOD_GLOB,
    PROTOCOL,
    RESULTS,
    RUN_KEY,
    SETTING_GLOB,
    STEPS_DIR,
    RunFilter,
    collected,
)

_FEW = 4
_FORGOTTEN = (
    "The images with the largest share of forgotten pixels. Beside each: the share of its pixels that were correct "
    "after the step that learnt their class, minus the share that is correct at the end."
)
_NOTHING_FORGOTTEN = "No image has forgotten pixels."
_HOME = "MPLCONFIGDIR"  # where matplotlib keeps its list of fonts


@dataclass(frozen=True)
class Pictures:
    """Which pictures are drawn, in which folder and format."""

    kinds: str | None
    output: Path | None
    form: str


@dataclass(frozen=True)
class PanelRequest:
    """The images of a run's panels: named, or the ``count`` most forgotten ones."""

    run: str
    images: str | None
    count: int | None


@dataclass(frozen=True)
class PanelPlaces:
    """Where the records, the weights and the images of the run are, and what computes its predictions."""

    out: Path
    steps_dir: Path | None
    data_root: Path | None
    device: str
    workers: int | None


@click.command()
@RESULTS
@collected(RunFilter, "runs", METHOD_GLOB, SETTING_GLOB, RUN_KEY)
@PROTOCOL
@collected(
    Pictures, "pictures",
    click.option("--pictures", "kinds", metavar="NAME,...",
                 help="Only these, of curves, losses, classes, scatter, confusion and cost."),
    click.option("--output", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="Folder of the pictures. [plots below the folder of --results]"),
    click.option("--format", "form", default="svg", show_default=True, metavar="svg|png",
                 help="Format of the pictures."),
)  # fmt: skip
@JSON
def plots(out: Path, runs: RunFilter, protocol: str, pictures: Pictures, as_json: bool) -> None:
    """Draw the finished runs of a store, from its records alone.

    For each setting: mIoU after each step (curves), old against new classes (scatter), and time, memory and parameters
    (cost). For each method: the loss over the iterations (losses), IoU by class and step (classes: what is forgotten),
    and the confusion matrix with background shift marked (confusion). Kinds of data and profiles are kept apart; the
    same records give the same bytes.

    \b
    Example:
      cispbench plots --results measured
      cispbench plots --method 'mi*' --pictures curves,classes --format png
    """
    from cispbench.harness.commands.stores import existing_store

    store = existing_store(out)
    _load_matplotlib()  # before the imports below, which import it
    from cispbench.reports.plots.gallery import KINDS, PlotOptions, draw_store

    kinds = KINDS if pictures.kinds is None else tuple(name.strip() for name in pictures.kinds.split(","))
    folder, wanted = pictures.output or out / "plots", PlotOptions(kinds, pictures.form)
    written = []
    for path in draw_store(store, folder, protocol, runs.selection(), wanted):
        written.append(str(path))
        if not as_json:
            click.echo(path)
    if as_json:
        click.echo(json.dumps(written))


@click.command()
@collected(
    PanelRequest, "request",
    click.argument("run"),
    click.option("--images", metavar="ID,...", help="The test images to show, one in each row."),
    click.option("--auto", "count", type=click.IntRange(1, 50), metavar="N",
                 help=f"Show the N images with the largest share of forgotten pixels. [{_FEW}, without --images]"),
)  # fmt: skip
@collected(
    PanelPlaces, "places", RESULTS, STEPS_DIR, DATA_ROOT, DEVICE,
    click.option("--workers", type=click.IntRange(min=0), help="Processes that load images. [0 on the CPU]"),
)  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="File to write, .png or .svg. [panels-<method>-<setting>-seed<N>-<key>.png]")  # fmt: skip
@JSON
def panels(request: PanelRequest, places: PanelPlaces, output: Path | None, as_json: bool) -> None:
    """Draw test images with the predictions after every step.

    Beside them stands the ground truth. RUN is how the run's key starts, or its folder. The command needs the run's
    data and the weights of its steps. Without --images those with the largest share of forgotten pixels are shown:
    pixels that were correct after the step that learnt their class, minus those of the same classes that are
    correct at the end.

    \b
    Example:
      cispbench panels 13f6c0a2b4 --auto 3
      cispbench panels 13f6c0a2b4 --images 2007_000033,2007_000042 --output panels.svg
    """
    from cispbench.harness.machine.devices import choose_device, default_loaders
    from cispbench.harness.machine.environment import usable_cores
    from cispbench.harness.machine.progress import make_view
    from cispbench.harness.predictions.from_weights import RunPredictor, recorded_run
    from cispbench.harness.runs.inputs import open_source
    from cispbench.harness.runs.step_store import StepStore, default_steps_dir
    from cispbench.results.atomic import write_atomic
    from cispbench.results.store import Store
    from cispbench.splits.errors import UsageError

    if request.images is not None and request.count is not None:
        raise UsageError("--images names the images, and --auto has them picked.", hint="Leave one of them out.")
    found = recorded_run(Store(places.out), request.run)
    last = found.records[-1]
    _load_matplotlib()  # before the imports below, which import it
    from cispbench.reports.plots.page import FORMATS, drawing, render
    from cispbench.reports.plots.panels import PanelRow, draw_panels
    from cispbench.reports.plots.wording import file_part

    name = f"panels-{file_part(last.method.name)}-{file_part(last.setting)}-seed{last.seed}-{last.run_key[:10]}.png"
    path = output or Path(name)
    if path.suffix[1:].lower() not in FORMATS:
        raise UsageError(f"the ending of {path} tells no format.", hint="It has to be .png or .svg.")
    # The file name is checked above and the data and weights here, before minutes of predicting.
    steps, device = StepStore(places.steps_dir or default_steps_dir()), choose_device(places.device)
    loaders = places.workers
    if loaders is None:
        loaders = default_loaders(device.type, usable_cores()[1])
    with make_view(quiet=as_json) as view:
        source = open_source(found.setting.dataset, last.profile, places.data_root, steps.root, view)
        predictor = RunPredictor(found, source, steps, device, loaders, view.counting)
        forgotten: dict[str, float] = {}
        if request.images is None:
            forgotten = {image.name: image.share for image in predictor.most_forgotten(request.count or _FEW)}
            names = tuple(forgotten)
        else:
            names = predictor.known([name.strip() for name in request.images.split(",")])
        images = predictor.predict(names)
    rows = [PanelRow(*image, note=_change(forgotten[image.name]) if forgotten else "") for image in images]
    caption = "" if not forgotten else _FORGOTTEN if max(forgotten.values()) > 0 else _NOTHING_FORGOTTEN
    with drawing():
        data = render(draw_panels(rows, found.records, caption), path.suffix[1:].lower())
    write_atomic(path, data)
    if as_json:
        shown = [{"image": name, "lost_percent": 100 * forgotten[name] if forgotten else None} for name in names]
        click.echo(json.dumps({"file": str(path), "run_key": last.run_key, "steps": found.steps, "images": shown}))
        return
    click.echo(f"{path}: {', '.join(names)}")


def _change(forgotten: float) -> str:
    from cispbench.reports.tables.numbers import signed

    return signed(-100 * forgotten, 0).replace("-", "\N{MINUS SIGN}") + " %"


def _load_matplotlib() -> None:
    """Import matplotlib without a trace: at its first import it writes a list of fonts into the user's home.

    Here it writes into a folder that is removed again, unless MPLCONFIGDIR names one.
    """
    if "matplotlib" in sys.modules or os.environ.get(_HOME):
        return
    with tempfile.TemporaryDirectory(prefix="cispbench-") as folder:
        os.environ[_HOME] = folder
        try:
            import matplotlib.font_manager  # noqa: F401
        finally:
            del os.environ[_HOME]
