"""``cispbench submit``, ``accept`` and ``score``: share results, take them in, and enter with predictions alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cispbench.harness.commands.options import DATA_ROOT, JSON, OUT, PROTOCOL

if TYPE_CHECKING:
    from cispbench.results.record import StepRecord


@click.command()
@click.argument("run")
@OUT
@click.option("--to", "file", type=click.Path(path_type=Path, dir_okay=False),
              help="File to write. [<method>-<setting>-seed<N>-<key>.json]")  # fmt: skip
@JSON
def submit(run: str, out: Path, file: Path | None, as_json: bool) -> None:
    """Pack a finished run into one JSON file to be shared: the records of all its steps, no weights.

    RUN is how the run's key starts; the key ends the name of the run's folder. What `cispbench accept` would refuse is
    told here.

    \b
    Example:
      cispbench submit 13f6c0a2b4
      cispbench submit 13f6c0a2b4 --out results --to my-run.json
    """
    import json
    from importlib.metadata import version

    from cispbench.results.store import Store
    from cispbench.results.submission import pack, write_submission

    records = Store(out).find_run(run)
    data = pack(records, version("cispbench"))
    last = records[-1]
    # The names have been found fit for a path; a setting's prefix has a colon.
    name = f"{last.method.name}-{last.setting.replace(':', '-')}-seed{last.seed}-{last.run_key[:10]}.json"
    path = file or Path(name)
    write_submission(path, data)
    if as_json:
        content = {"file": str(path), "run_key": last.run_key, "steps": [record.step for record in records]}
        click.echo(json.dumps({**content, "bytes": len(data)}))
        return
    click.echo(
        f"{path}: {_named(last)}, {len(records)} steps, {len(data):,} bytes.\nTake it in: cispbench accept {path}"
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@OUT
@PROTOCOL
@JSON
def accept(file: Path, out: Path, protocol: str, as_json: bool) -> None:
    """Check a submission by anybody and take its records into the store, marked as submitted: all, or none.

    The file is taken for a stranger's: bounded, checked against the setting, the known images and pixels of the data
    set and itself, and never run. Accepting it again changes nothing.

    \b
    Example:
      cispbench accept mib-overlapped-15-5-seed0-13f6c0a2b4.json --out results
    """
    import json

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
        f"\nAccepted {_named(last)}: {len(taken.written)} records written, {len(taken.unchanged)} there before.\n"
        f"Records: {Store(out).place(last).parent}"
    )


@click.command()
@click.option("--pred", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="Folder with a mask <id>.png for every test image.")  # fmt: skip
@click.option("--setting", required=True, help="<scenario>-<task>, see `cispbench list settings`.")
@click.option("--step", required=True, type=click.IntRange(min=0), help="Step after which the predictions were made.")
@click.option("--method", required=True, help="Name of the method that the predictions are of.")
@click.option("--model", required=True, help="Name of its network.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of its training.")
@click.option("--labels", type=click.Choice(["index", "number"]),
              help="What the masks hold: index (place in the order of learning) or number (the data set's own class "
              "number). [the same in a setting's natural order, asked for in others]")  # fmt: skip
@click.option("--view", type=click.Choice(["crop", "full"]),
              help="What is counted: the central 512 x 512 pixels at a shorter side of 512, as the papers do, or the "
              "full image. [crop, full for built-in scenes]")  # fmt: skip
@click.option("--profile", default="paper", show_default=True,
              help="What the result counts as: paper, mini, or quick for the built-in scenes.")  # fmt: skip
@DATA_ROOT
@click.option("--steps-dir", type=click.Path(path_type=Path), help="Folder of the data's index. [.cispbench]")
@OUT
@PROTOCOL
@JSON
def score(
    pred: Path, setting: str, step: int, method: str, model: str, seed: int, labels: str | None, view: str | None,
    profile: str, data_root: Path | None, steps_dir: Path | None, out: Path, protocol: str, as_json: bool,
) -> None:  # fmt: skip
    """Score a folder of predicted masks, by whatever code, and record the result as scored from files.

    Masks are palette or 8-bit grey PNGs of the size of their image (or of the crop). Each step is scored for itself;
    the last one makes the run a finished one.

    \b
    Example:
      cispbench score --pred masks --setting overlapped-15-5 --step 1 --method mine --model resnet101 --data-root /data
      cispbench score --pred masks --setting overlapped-15-1-b --step 5 --method mine --model vit --labels number
    """
    import json

    from cispbench.harness.data.transforms import EvalView
    from cispbench.harness.machine.progress import make_view
    from cispbench.harness.predictions.from_files import Entry, Predictions, score_predictions
    from cispbench.harness.runs.inputs import open_source
    from cispbench.harness.runs.step_store import default_steps_dir
    from cispbench.reports.tables.runs import run_json, score_record, scores_json
    from cispbench.results.protocols import load_protocol
    from cispbench.results.store import Store
    from cispbench.splits.errors import UsageError
    from cispbench.splits.settings import parse_setting

    load_protocol(protocol)
    chosen, entry, store = parse_setting(setting), Entry(method, model, seed, profile), Store(out)
    if step > chosen.last_step:
        raise UsageError(f"--step {step}: the last step of {chosen.name} is {chosen.last_step}.")
    if labels is None and chosen.learning_order != tuple(range(len(chosen.learning_order))):
        raise UsageError(
            f"{chosen.name} learns its classes in another order than their numbers'.",
            hint="Say what the masks hold: --labels index or --labels number.",
        )
    with make_view(quiet=as_json) as live:
        source = open_source(chosen.dataset, profile, data_root, steps_dir or default_steps_dir(), live)
        counted = view or ("full" if source.kind == "synthetic" else "crop")
        size = load_protocol("strict").size if counted == "crop" else None
        predictions = Predictions(pred, chosen, step, "number" if labels == "number" else "index", EvalView(size, size))
        store.prepare()
        record = score_predictions(predictions, source, entry, lambda *done: live.counting("scoring", *done))
        path = store.write(record)
    if as_json:
        content = {
            **run_json(record),
            "step": step,
            "protocol": protocol,
            **scores_json(score_record(record, protocol)),
        }
        click.echo(json.dumps({**content, "record": str(path)}))
        return
    click.echo(f"{_named(record)}, scored from files\n{_scores(record, protocol)}\n\nRecord: {path}")


def _named(record: StepRecord) -> str:
    return f"{record.method.name} on {record.setting}, seed {record.seed}"


def _scores(record: StepRecord, protocol: str) -> str:
    from cispbench.reports.tables.numbers import number_text
    from cispbench.reports.tables.runs import score_record

    scores = score_record(record, protocol)
    numbers = "  ".join(f"{name} {number_text(getattr(scores, name), 2)}" for name in ("old", "new", "all"))
    return f"step {record.step}/{record.steps - 1}  {numbers}  (mIoU in percent, protocol {protocol})"
