"""One run under every protocol, side by side: what the rules of counting alone change, and what they cannot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from cispbench.reports.tables.markdown import escape, markdown_table, number_text
from cispbench.reports.tables.runs import (
    Group,
    Selection,
    comparable,
    comparison_warning,
    finished_runs,
    grouped,
    newest,
    run_json,
    score_record,
    scores_json,
    sorted_settings,
    variants,
)
from cispbench.results.protocols import Protocol, load_protocol, protocol_names
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import StepFacts
from cispbench.results.store import Store

_NUMBERS = ("old", "new", "all")
_SCORED = ("absent", "forgotten", "background", "future", "void")
_FIXED = ("images", "view", "checkpoint")
_CHECKPOINTS = {"last": "last iteration", "best": "best checkpoint on val"}
_IMAGES = {"all": "all images", "seen": "images with a class seen"}


def protocols_table(store: Store, selection: Selection | None = None) -> str:
    """Return old, new and all of each selected finished run under every protocol, and the switches of each protocol.

    The last column names what a protocol asks of the evaluation that the stored one is not: view, images and
    checkpoint were decided when the images were tested, and no rule of counting changes them after the fact.
    """
    finished = finished_runs(store, selection)
    if not finished:
        return f"No finished runs in {store.path}."
    rules = [load_protocol(name) for name in protocol_names()]
    kept = newest(finished)
    parts = [_group_text(group, records, rules) for group, records in grouped(kept).items()]
    superseded = len(finished) - len(kept)
    if superseded:
        parts.append(f"Superseded by a newer run of the same seed, and left out: {superseded} (--run KEY shows one).")
    head = "mIoU in percent after the last step, by the same predictions under every protocol."
    return "\n\n".join([head, *parts, _switches_text(rules)])


def protocols_json(store: Store, selection: Selection | None = None) -> str:
    """Return the selected finished runs with their scores by protocol (null where undefined), and all switches."""
    rules = [load_protocol(name) for name in protocol_names()]
    runs = [_run_entry(record, rules) for record in newest(finished_runs(store, selection))]
    return json.dumps({"runs": runs, "protocols": [asdict(entry) for entry in rules]}, allow_nan=False)


def unmet(record: StepFacts, rules: Protocol) -> tuple[str, ...]:
    """Return what a protocol asks of the evaluation that the record's is not: its view, images or checkpoint.

    A run tests the weights of the last iteration on all images, with the view of its recipe.
    """
    wanted = (_view(rules.size or None, rules.size or None), _IMAGES[rules.images], _CHECKPOINTS[rules.checkpoint])
    return tuple(asked for asked, had in zip(wanted, _evaluation(record), strict=True) if asked != had)


def _evaluation(record: StepFacts) -> tuple[str, str, str]:
    seen = record.recipe.get("evaluation")
    view = _view(seen.get("resize_short"), seen.get("crop")) if isinstance(seen, dict) else "a view not recorded"
    return view, _IMAGES["all"], _CHECKPOINTS["last"]


def _view(resize_short: int | None, crop: int | None) -> str:
    """Describe a view; one number where the shorter side is brought to the side of the crop."""
    if crop is None:
        return "full image" if resize_short is None else f"full image at {resize_short}"
    return f"crop {crop}" if resize_short == crop else f"crop {crop} of {resize_short or 'the unscaled image'}"


def _group_text(group: Group, records: list[StepRecord], rules: Sequence[Protocol]) -> str:
    digests = variants(records)
    places = {name: place for place, name in enumerate(sorted_settings({record.setting for record in records}))}
    ordered = sorted(records, key=lambda record: (places[record.setting], record.method.name, record.seed))
    parts = [
        f"## {escape(group.dataset)}, {group.kind} data, profile {escape(group.profile)}",
        *(_run_text(record, digests[record.run_key], rules) for record in ordered),
    ]
    if not comparable(group.kind, group.profile):
        parts.append(comparison_warning(group.kind, group.profile))
    return "\n\n".join(parts)


def _run_text(record: StepRecord, variant: str, rules: Sequence[Protocol]) -> str:
    rows = []
    for entry in rules:
        scores = score_record(record, entry.name)
        numbers = [number_text(getattr(scores, name), 2) for name in _NUMBERS]
        rows.append([entry.name, *numbers, ", ".join(unmet(record, entry)) or "-"])
    name = f"{record.method.name} on {record.setting}{f' (variant {variant})' if variant else ''}"
    return "\n".join(
        [
            f"### {escape(name)}",
            "",
            f"{escape(record.model.name)}, seed {record.seed}, run {record.run_key[:10]}; "
            f"tested on: {', '.join(_evaluation(record))}.",
            "",
            markdown_table(["protocol", *_NUMBERS, "asked for, not met"], rows),
        ]
    )


def _run_entry(record: StepRecord, rules: Iterable[Protocol]) -> dict[str, Any]:
    scored = {
        entry.name: {**scores_json(score_record(record, entry.name)), "unmet": list(unmet(record, entry))}
        for entry in rules
    }
    return {**run_json(record), "tested_on": list(_evaluation(record)), "protocols": scored}


def _switches_text(rules: Sequence[Protocol]) -> str:
    """Return the switches in which the protocols differ, by which of them can still be changed."""
    rows = {f"{entry.name} v{entry.version}": switches(entry) for entry in rules}
    differing = [name for name in (*_SCORED, *_FIXED) if len({row[name] for row in rows.values()}) > 1]
    applied, fixed = ([name for name in group if name in differing] for group in (_SCORED, _FIXED))
    table = markdown_table(
        ["protocol", *differing], [[name, *(row[switch] for switch in differing)] for name, row in rows.items()]
    )
    return "\n".join(
        [
            "## Switches in which the protocols differ",
            "",
            table,
            "",
            f"Applied to the stored confusion matrix: {', '.join(applied)}.",
            "future changes nothing after the last step, and void nothing but label 0 of ADE20K.",
            "",
            f"WARNING: decided when the images were tested, and not changed here: {', '.join(fixed)}.",
            "Where something a protocol asks for is not met, its numbers are not those its paper's code would give.",
        ]
    )


def switches(rules: Protocol) -> dict[str, str]:
    """Return the switches of a protocol by name, in few words."""
    background = {(False, False): "in neither", (False, True): "in all", (True, True): "in old and all"}
    return {
        "absent": rules.absent,
        "forgotten": rules.forgotten,
        "background": background.get((rules.background_in_old, rules.background_in_all), "in old"),
        "future": rules.future,
        "void": rules.void,
        "images": rules.images,
        "view": _view(rules.size or None, rules.size or None),
        "checkpoint": rules.checkpoint,
    }
