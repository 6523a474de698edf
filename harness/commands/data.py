"""``cispbench data``: Check and index data sets."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cispbench.harness.commands.options import DATA_ROOT, JSON, collected

if TYPE_CHECKING:
    from cispbench.harness.data.check import DataReport
    from cispbench.harness.data.compare import ListCheck, SettingCheck
    from cispbench.splits.settings import Setting

DATASET = click.option("--dataset", metavar="NAME", help="Data set. [each that is found]")
STEPS_DIR = click.option(
    "--steps-dir",
    type=click.Path(path_type=Path),
    help="Folder of the index, below index/. [$CISPBENCH_STEPS, else .cispbench]",
)
MASKS_ONLY = click.option("--masks-only", is_flag=True, help="Do not ask for images: masks and lists are enough.")


@dataclass(frozen=True)
class DataChoice:
    """Which data sets are looked at, where they and their index are, and whether without their images."""

    dataset: str | None
    data_root: Path | None
    steps_dir: Path | None
    masks_only: bool


@click.group()
def data() -> None:
    """Check and index data sets."""


@data.command()
@collected(DataChoice, "choice", DATASET, DATA_ROOT, STEPS_DIR)
@click.option(
    "--setting", "names", multiple=True, metavar="NAME", help="Compare this setting alone; may be given several times."
)
@MASKS_ONLY
@click.option("--decode", is_flag=True, help="Decode every image and mask, and name each broken file.")
@JSON
@click.pass_context
def check(context: click.Context, choice: DataChoice, names: tuple[str, ...], decode: bool, as_json: bool) -> None:
    """Compare your data with the published image lists, step by step.

    Every listed file must exist (with --masks-only: every mask). All of them are read again, and compared with the
    index: this finds what has changed though size and times are the same. Of each setting the first step that differs
    is named, with the likely cause where there is one.

    \b
    Example:
      cispbench data check --dataset voc --data-root /data
      cispbench data check --setting overlapped-15-1 --setting disjoint-15-1 --decode
    """
    from cispbench.harness.data.check import check_data
    from cispbench.harness.machine.progress import make_view
    from cispbench.harness.runs.step_store import default_steps_dir
    from cispbench.reports.tables.terminal import wrap_long
    from cispbench.splits.settings import parse_setting

    settings = [parse_setting(name) for name in dict.fromkeys(names)]
    cache = choice.steps_dir or default_steps_dir()
    with make_view(quiet=as_json) as view:
        reports = [
            check_data(
                name, choice.data_root, cache, view,
                settings=[setting for setting in settings if setting.dataset == name],
                masks_only=choice.masks_only, decode=decode,
            )
            for name in _chosen(choice.dataset, choice.data_root, settings)
        ]  # fmt: skip
    if as_json:
        click.echo(json.dumps({"agrees": all(r.agrees for r in reports), "datasets": [_as_dict(r) for r in reports]}))
    else:
        text = "\n\n".join([*map(_as_text, reports), _summary(reports)])
        click.echo(wrap_long(text) if sys.stdout.isatty() else text)
    context.exit(0 if all(report.agrees for report in reports) else 1)


@data.command()
@collected(DataChoice, "choice", DATASET, DATA_ROOT, STEPS_DIR, MASKS_ONLY)
@JSON
def index(choice: DataChoice, as_json: bool) -> None:
    """Read all images and masks: the data's fingerprint and classes.


    What was read before is not read again. A run does this by itself; do it here before many runs start at once. An
    index made with --masks-only serves `data check --masks-only` alone.

    \b
    Example:
      cispbench data index --data-root /data
    """
    import time

    from cispbench.harness.data.index import build_index
    from cispbench.harness.data.source import list_data
    from cispbench.harness.machine.progress import index_progress, make_view
    from cispbench.harness.runs.step_store import default_steps_dir
    from cispbench.splits.datasets import dataset as find_dataset

    rows = []
    with make_view(quiet=as_json) as view:
        for name in _chosen(choice.dataset, choice.data_root, ()):
            start = time.perf_counter()
            folder, pairs = list_data(name, choice.data_root, choice.masks_only)
            cache = choice.steps_dir or default_steps_dir()
            found = build_index(name, pairs, cache, index_progress(view), choice.masks_only)
            rows.append({
                "dataset": name, "title": find_dataset(name).title, "folder": str(folder),
                "masks": {split: len(part) for split, part in pairs.items()}, "fingerprint": found.fingerprint,
                "index": str(found.path), "cached": found.cached, "seconds": round(time.perf_counter() - start, 2),
            })  # fmt: skip
    click.echo(json.dumps(rows) if as_json else "\n\n".join(map(_index_text, rows)))


def _chosen(dataset: str | None, data_root: Path | None, settings: Sequence[Setting]) -> list[str]:
    """Return the data set asked for, else those of the settings, else those found. Raises UsageError, DataError."""
    from cispbench.harness.data.source import locate, not_found
    from cispbench.splits.datasets import dataset as find_dataset
    from cispbench.splits.datasets import datasets
    from cispbench.splits.errors import DataError, SettingError

    if dataset is not None:
        home = find_dataset(dataset).name
        for setting in settings:
            if setting.dataset != home:
                raise SettingError(f"{setting.name} is a setting of {setting.dataset}, not of {home}.",
                                   hint="Leave --dataset out, or name a setting of that data set.")  # fmt: skip
        return [home]
    named = list(dict.fromkeys(setting.dataset for setting in settings))
    found = named or [name for name in datasets() if locate(name, data_root) is not None]
    if not found:
        raise DataError(
            "\n".join(not_found(name, data_root).message for name in datasets()),
            hint="Choose another folder by --data-root; with --dataset this says how to get the data.",
        )
    return found


def _index_text(row: dict[str, Any]) -> str:
    masks = row["masks"]
    how = "found in the cache" if row["cached"] else "read"
    return (
        f"{row['title']} in {row['folder']}: {sum(masks.values()):,} masks"
        f" ({', '.join(f'{count:,} {split}' for split, count in masks.items())}), {how} in {row['seconds']:.1f} s\n"
        f"  index        {row['index']}\n"
        f"  fingerprint  {row['fingerprint']}"
    )


def _as_text(report: DataReport) -> str:
    """Return a report: where, what is broken, a table of what differs, why."""
    from cispbench.reports.tables.terminal import table_text
    from cispbench.splits.datasets import dataset as find_dataset

    lines = [f"{find_dataset(report.dataset).title} in {report.folder}{', masks only' * report.masks_only}"]
    lines += [f"broken: {error.message}" for error in report.broken]
    if report.comparison is None or report.index is None:
        return "\n".join([*lines, "not compared: repair the broken files first."])
    lines.append(f"fingerprint {report.index.fingerprint}, of what was read just now")
    lines += [f"note: {note}" for note in report.notes]
    if not report.comparison.lists:
        return "\n".join([*lines, "not compared: no figures are published for this data set."])
    rows = [_row(f"{part.name} list", "-", part) for part in report.comparison.lists if not part.agrees]
    for check in report.comparison.settings:
        first = check.first_difference
        if first is not None:
            last = check.setting.last_step
            rows.append(_row(check.setting.name, f"{first.name} of 0..{last}", first))
    if rows:
        headers = ["differs", "first at step", "images published", "images found"]
        lines += ["", table_text(headers, rows, headers[2:], terminal=sys.stdout.isatty()), ""]
    lines += [f"Likely cause: {cause}" for cause in report.causes]
    whole = [check.setting.name for check in report.comparison.settings if check.setting.given_lists]
    if whole:
        lines.append(f"Compared by their number of images alone, as no lists are published: {', '.join(whole)}.")
    return "\n".join(lines)


def _row(what: str, step: str, check: ListCheck) -> list[str]:
    published, found = check.published[0], check.found[0]
    return [what, step, f"{published:,}", f"{found:,}" + ", not the same ones" * (published == found)]


def _summary(reports: Sequence[DataReport]) -> str:
    compared = [r.comparison for r in reports if r.comparison is not None and r.comparison.lists]
    checks = [check for comparison in compared for check in comparison.settings]
    steps = [step for check in checks for step in check.steps]
    if not compared and all(report.agrees for report in reports):
        return "No file is broken; nothing was compared."
    if all(report.agrees for report in reports):
        return f"{_count(checks, 'setting')}, {_count(steps, 'step')} agree, and so do the train and val lists."
    broken = [error for report in reports for error in report.broken]
    if not compared:
        return f"{_count(broken, 'file')} broken; nothing was compared."
    agreeing = sum(check.first_difference is None for check in checks), sum(step.agrees for step in steps)
    text = f"{agreeing[0]} of {_count(checks, 'setting')}, {agreeing[1]} of {_count(steps, 'step')} agree"
    lists = [f"{comparison.dataset} {part.name}" for comparison in compared for part in comparison.lists
             if not part.agrees]  # fmt: skip
    if lists:
        text += f"; lists that differ: {', '.join(lists)}"
    return f"{text}; {_count(broken, 'file')} broken." if broken else f"{text}."


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things):,} {name}{'s' if len(things) != 1 else ''}"


def _as_dict(report: DataReport) -> dict[str, Any]:
    compared, found = report.comparison, report.index
    return {
        "dataset": report.dataset, "folder": str(report.folder), "masks_only": report.masks_only,
        "agrees": report.agrees, "fingerprint": None if found is None else found.fingerprint,
        "broken": [error.message for error in report.broken], "causes": list(report.causes),
        "notes": list(report.notes),
        "lists": [] if compared is None else [{"list": part.name, **_figures(part)} for part in compared.lists],
        "settings": [] if compared is None else [_setting_dict(check) for check in compared.settings],
    }  # fmt: skip


def _setting_dict(check: SettingCheck) -> dict[str, Any]:
    """A step's name is its index, but for the whole of a setting of given lists."""
    numbers = [int(step.name) if step.name.isdecimal() else step.name for step in check.steps]
    steps = [{"step": number, **_figures(step)} for number, step in zip(numbers, check.steps, strict=True)]
    return {"setting": check.setting.name, "agrees": check.first_difference is None, "steps": steps}


def _figures(check: ListCheck) -> dict[str, Any]:
    published, found = (
        {"images": images, "sha256": sha256 or None} for images, sha256 in (check.published, check.found)
    )
    return {"agrees": check.agrees, "published": published, "found": found}
