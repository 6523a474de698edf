"""``cispbench submit``, ``accept`` and ``score``: share results, take them in, and enter with predictions alone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cispbench.harness.commands.options import DATA_ROOT, JSON, OUT, PROTOCOL, RESULTS, collected
from cispbench.harness.machine.progress import make_view, number_of
from cispbench.harness.predictions.score_request import ScoreRequest

if TYPE_CHECKING:
    from cispbench.results.record import StepRecord


@click.command()
@click.argument("run")
@RESULTS
@click.option("--to", "file", type=click.Path(path_type=Path, dir_okay=False),
              help="File to write. [<method>-<setting>-seed<N>-<key>.json]")  # fmt: skip
@JSON
def submit(run: str, out: Path, file: Path | None, as_json: bool) -> None:
    """Pack a finished run into one JSON file to be shared.

    The file holds the records of all its steps, and no weights. RUN is how the run's key starts; the key ends the
    name of the run's folder. A run that `cispbench accept` would refuse is refused here.

    \b
    Example:
      cispbench submit 13f6c0a2b4
      cispbench submit 13f6c0a2b4 --results measured --to my-run.json
    """
    from importlib.metadata import version

    from cispbench.results.store import Store
    from cispbench.results.submission import pack, write_submission

    records = Store(out).find_run(run)
    data = pack(records, version("cispbench"))
    last = records[-1]
    # ``pack`` has checked the names; the colon is that of a setting's prefix (voc:), which some systems do not allow.
    name = f"{last.method.name}-{last.setting.replace(':', '-')}-seed{last.seed}-{last.run_key[:10]}.json"
    path = file or Path(name)
    write_submission(path, data)
    if as_json:
        content = {"file": str(path), "run_key": last.run_key, "steps": [record.step for record in records]}
        click.echo(json.dumps({**content, "bytes": len(data)}))
        return
    click.echo(
        f"{path}: {_named(last)}, {number_of(len(records), 'step')}, {len(data):,} bytes.\n"
        f"Take it in: cispbench accept {path}"
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@OUT
@PROTOCOL
@JSON
def accept(file: Path, out: Path, protocol: str, as_json: bool) -> None:
    """Check a submission and take its records into the store.

    All of its records are taken, or none, and they are marked as submitted. The file is not trusted: its size is
    limited, its records are checked against the setting, the data set and each other, and nothing in it is run.
    Accepting it again changes nothing.

    \b
    Example:
      cispbench accept mib-overlapped-15-5-seed0-13f6c0a2b4.json --out measured
    """
    from cispbench.reports.tables.runs import run_json, score_record, scores_json
    from cispbench.results.protocols import load_protocol
    from cispbench.results.store import Store
    from cispbench.results.submission import accept as take_in

    load_protocol(protocol)
    taken = take_in(file, Store(out))
    last = taken.records[-1]
    if as_json:
        paths = {name: [str(path) for path in getattr(taken, name)] for name in ("written", "unchanged")}
        scores = scores_json(score_record(last, protocol))
        click.echo(json.dumps({**run_json(last), "protocol": protocol, **scores, **paths}))
        return
    for record in taken.records:
        click.echo(_scores(record, protocol))
    click.echo(
        f"{_warnings(last)}\nAccepted {_named(last)}: {number_of(len(taken.written), 'record')} written, "
        f"{len(taken.unchanged)} there before.\n"
        f"Records: {Store(out).place(last).parent}"
    )


@click.command()
@collected(
    ScoreRequest, "request",
    click.option("--pred", "folder", required=True, type=click.Path(path_type=Path, file_okay=False),
                 help="Folder with a mask <id>.png for every test image."),
    click.option("--setting", required=True, help="<scenario>-<task>, see `cispbench list settings`."),
    click.option("--step", required=True, type=click.IntRange(min=0),
                 help="Step after which the predictions were made."),
    click.option("--method", required=True, help="Name of the method that the predictions are of."),
    click.option("--model", required=True, help="Name of its network."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of its training."),
    click.option("--labels", type=click.Choice(["index", "number"]),
                 help="What the masks hold: index (place in the order of learning) or number (the data set's own class "
                 "number). [the same in a setting's natural order, required in others]"),
    click.option("--view", type=click.Choice(["crop", "full"]),
                 help="What is counted: the central 512 x 512 pixels at a shorter side of 512, as the papers do, or "
                 "the full image. [crop, full for built-in scenes]"),
    click.option("--profile", default="paper", show_default=True,
                 help="What the result counts as: paper, mini, or quick for the built-in scenes."),
)  # fmt: skip
@DATA_ROOT
@click.option(
    "--steps-dir",
    type=click.Path(path_type=Path),
    help="Folder of the data's index. [$CISPBENCH_STEPS, else .cispbench]",
)
@OUT
@PROTOCOL
@JSON
def score(
    request: ScoreRequest, data_root: Path | None, steps_dir: Path | None, out: Path, protocol: str, as_json: bool
) -> None:
    """Score a folder of predicted masks, made by any code.

    The result is recorded as scored from files. Masks are palette or 8-bit grey PNGs of the size of their image (or
    of the crop). Score one step at a time; with the last one the run is finished.

    \b
    Example:
      cispbench score --pred masks --setting overlapped-15-5 --step 1 --method mine --model vit
      cispbench score --pred masks --setting overlapped-15-1-b --step 5 --method mine --model vit \\
          --labels number --data-root /data
    """
    from cispbench.harness.predictions.from_files import checked_setting, score_folder
    from cispbench.harness.runs.inputs import open_source
    from cispbench.harness.runs.step_store import default_steps_dir
    from cispbench.reports.tables.runs import run_json, score_record, scores_json
    from cispbench.results.protocols import load_protocol
    from cispbench.results.store import Store

    load_protocol(protocol)
    setting, store = checked_setting(request), Store(out)
    with make_view(quiet=as_json) as view:
        source = open_source(setting.dataset, request.profile, data_root, steps_dir or default_steps_dir(), view)
        store.prepare()
        record = score_folder(request, source, partial(view.counting, "scoring"))
        path = store.write(record)
    if as_json:
        scores = scores_json(score_record(record, protocol))
        content = {**run_json(record), "step": record.step, "protocol": protocol, **scores, "record": str(path)}
        click.echo(json.dumps(content))
        return
    click.echo(f"{_named(record)}, scored from files\n{_scores(record, protocol)}\n{_warnings(record)}\nRecord: {path}")


def _named(record: StepRecord) -> str:
    return f"{record.method.title} on {record.setting}, seed {record.seed}"


def _warnings(record: StepRecord) -> str:
    """Return a line on what its numbers cannot be compared with, empty where there is nothing to say."""
    from cispbench.reports.tables.runs import group_of

    return "".join(f"{warning}\n" for warning in group_of(record).warnings)


def _scores(record: StepRecord, protocol: str) -> str:
    from cispbench.reports.tables.numbers import number_text
    from cispbench.reports.tables.runs import score_record

    scores = score_record(record, protocol)
    numbers = "  ".join(f"{name} {number_text(getattr(scores, name), 2)}" for name in ("old", "new", "all"))
    return f"step {record.step}/{record.steps - 1}  {numbers}  (mIoU in percent, protocol {protocol})"
