"""``cispbench plots`` and ``panels``: pictures of a store's runs, and of what their models see."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import click

from cispbench.harness.commands.options import (
    DATA_ROOT,
    DEVICE,
    JSON,
    METHOD_GLOB,
    OUT,
    PROTOCOL,
    RUN_KEY,
    SETTING_GLOB,
    STEPS_DIR,
)

_FEW = 4
_LOST = (
    "The images that have lost most; beside each, how many of its pixels: those right after the step that learnt their "
    "class, less those right at the end."
)
_NOTHING_LOST = "No image has lost anything that was right once."
_HOME = "MPLCONFIGDIR"  # where matplotlib keeps its list of fonts


@click.command()
@OUT
@METHOD_GLOB
@SETTING_GLOB
@RUN_KEY
@PROTOCOL
@click.option("--pictures", metavar="NAME,...", help="Of curves, classes, scatter, confusion and cost only these.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Folder of the pictures. [plots below --out]")  # fmt: skip
@click.option("--format", "form", default="svg", show_default=True, metavar="svg|png", help="Format of the pictures.")
@JSON
def plots(
    out: Path, method: str | None, setting: str | None, run: str | None, protocol: str, pictures: str | None,
    output: Path | None, form: str, as_json: bool,
) -> None:  # fmt: skip
    """Draw the finished runs of a store, from its records alone.

    For each setting: mIoU after each step (curves), old against new classes (scatter), and time, memory and parameters
    (cost). For each method: IoU by class and step (classes: what is forgotten), and the confusion matrix with
    background shift marked. Kinds of data and profiles are kept apart; the same records give the same bytes.

    \b
    Example:
      cispbench plots --out results
      cispbench plots --method 'mi*' --setting 'overlapped-15-*' --pictures curves,classes --format png
    """
    import json

    from cispbench.reports.tables.runs import Selection
    from cispbench.results.store import Store
    from cispbench.splits.errors import StoreError

    if not out.is_dir():
        raise StoreError(f"the store {out} does not exist.", hint="Name the folder that --out of the runs named.")
    _load_matplotlib()
    from cispbench.reports.plots.gallery import KINDS, PlotOptions, draw_store

    kinds = KINDS if pictures is None else tuple(name.strip() for name in pictures.split(","))
    selection = Selection(method=method, setting=setting, run=run)
    written = []
    for path in draw_store(Store(out), output or out / "plots", protocol, selection, PlotOptions(kinds, form)):
        written.append(str(path))
        if not as_json:
            click.echo(path)
    if as_json:
        click.echo(json.dumps(written))


@click.command()
@click.argument("run")
@click.option("--images", metavar="ID,...", help="The test images to show, one a row.")
@click.option("--auto", "count", type=click.IntRange(1, 50), metavar="N", help="Show the N images that have lost most "
              f"of what was right once. [{_FEW}, without --images]")  # fmt: skip
@OUT
@STEPS_DIR
@DATA_ROOT
@DEVICE
@click.option("--workers", type=click.IntRange(min=0), help="Processes that load images. [0 on the CPU]")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="File to write, .png or .svg. [panels-<method>-<setting>-seed<N>-<key>.png]")  # fmt: skip
@JSON
def panels(
    run: str, images: str | None, count: int | None, out: Path, steps_dir: Path | None, data_root: Path | None,
    device: str, workers: int | None, output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Draw test images with their ground truth and a run's prediction after every step.

    RUN is how the run's key starts, or its folder. Needs the run's data and the weights of its steps. Without --images
    those are shown that have lost most: pixels right after the step that learnt their class, less those right at the
    end, as a share of the image.

    \b
    Example:
      cispbench panels 13f6c0a2b4 --auto 3
      cispbench panels 13f6c0a2b4 --images 2007_000033,2007_000042 --data-root /data --output panels.svg
    """
    import json

    from cispbench.harness.machine.devices import choose_device
    from cispbench.harness.machine.environment import usable_cores
    from cispbench.harness.machine.progress import make_view
    from cispbench.harness.predictions.from_weights import Panels, recorded_run
    from cispbench.harness.runs.inputs import open_source
    from cispbench.harness.runs.step_store import StepStore, default_steps_dir
    from cispbench.results.atomic import write_atomic
    from cispbench.results.store import Store
    from cispbench.splits.errors import UsageError

    if images is not None and count is not None:
        raise UsageError("--images names the images, and --auto has them picked.", hint="Leave one of them out.")
    found = recorded_run(Store(out), run)
    last = found.records[-1]
    _load_matplotlib()
    from cispbench.reports.plots.page import FORMATS, drawing, render
    from cispbench.reports.plots.panels import PanelRow, draw_panels
    from cispbench.reports.plots.wording import file_part

    name = f"panels-{file_part(last.method.name)}-{file_part(last.setting)}-seed{last.seed}-{last.run_key[:10]}.png"
    path = output or Path(name)
    if path.suffix[1:].lower() not in FORMATS:
        raise UsageError(f"the ending of {path} tells no format.", hint="It has to be .png or .svg.")
    steps, where = StepStore(steps_dir or default_steps_dir()), choose_device(device)
    processes = workers if workers is not None else min(8, usable_cores()[1]) * (where.type == "cuda")
    with make_view(quiet=as_json) as view:
        source = open_source(found.setting.dataset, last.profile, data_root, steps.root, view)
        asked = Panels(found, source, steps, where, processes, view.counting)
        lost: dict[str, float] = {}
        if images is None:
            lost = {entry.name: entry.share for entry in asked.most_forgotten(count or _FEW)}
        names = asked.known([name.strip() for name in images.split(",")]) if images is not None else tuple(lost)
        seen = asked.predict(names)
    rows = [PanelRow(*entry, note=_change(lost[entry.name]) if lost else "") for entry in seen]
    caption = "" if not lost else _LOST if max(lost.values()) > 0 else _NOTHING_LOST
    with drawing():
        data = render(draw_panels(rows, found.records, caption), path.suffix[1:].lower())
    write_atomic(path, data)
    if as_json:
        shown = [{"image": name, "lost_percent": 100 * lost[name] if lost else None} for name in names]
        click.echo(json.dumps({"file": str(path), "run_key": last.run_key, "steps": found.steps, "images": shown}))
        return
    click.echo(f"{path}: {', '.join(names)}")


def _change(lost: float) -> str:
    from cispbench.reports.tables.numbers import signed

    return signed(-100 * lost, 0).replace("-", "\N{MINUS SIGN}") + " %"


def _load_matplotlib() -> None:
    """Import matplotlib, which lists the fonts it finds in a folder of the user's, with a folder that is removed again.

    One that the user has named by MPLCONFIGDIR is used and kept.
    """
    if "matplotlib" in sys.modules or os.environ.get(_HOME):
        return
    with tempfile.TemporaryDirectory(prefix="cispbench-") as folder:
        os.environ[_HOME] = folder
        try:
            import matplotlib.font_manager  # noqa: F401
        finally:
            del os.environ[_HOME]
