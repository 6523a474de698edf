"""One run under every protocol, side by side: what the rules of counting alone change, and what they cannot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from cispbench.reports.tables.cells import by_group, cells, latest
from cispbench.reports.tables.markdown import escape
from cispbench.reports.tables.numbers import number_text
from cispbench.reports.tables.runs import SCORES, Run, Selection, nothing_finished, run_json, scores_json, setting_order
from cispbench.reports.tables.scoring import load_runs, scores_under
from cispbench.reports.tables.terminal import table_text, wrap_long
from cispbench.results.protocols import Protocol, load_protocol, protocol_names
from cispbench.results.record_fields import StepFacts
from cispbench.results.store import Store

_SCORED = ("absent", "forgotten", "background", "future", "void")
_FIXED = ("images", "view", "checkpoint")
_CHECKPOINTS = {"last": "last iteration", "best": "best checkpoint on val"}
_IMAGES = {"all": "all images", "seen": "images with a class seen"}


def protocols_table(store: Store, selection: Selection | None = None, terminal: bool = False) -> str:
    """Return old, new and all of each selected finished run under every protocol, and the switches of each protocol.

    The last column names what a protocol asks of the evaluation that the stored one is not: view, images and
    checkpoint were decided when the images were tested, and no rule of counting changes them after the fact.
    ``terminal``: the tables are for a terminal, not Markdown.
    """
    found = cells(load_runs(store, selection=selection))
    if not found:
        return nothing_finished(store)
    protocols = [load_protocol(name) for name in protocol_names()]
    parts = ["mIoU in percent after the last step, by the same predictions under every protocol."]
    for group, members in by_group(found).items():
        parts.append(_heading(2, f"{group.dataset}, {group.kind} data, profile {group.profile}", terminal))
        order = setting_order(cell.setting for cell in members)
        runs = [(run, cell.key.variant) for cell in members for run in cell.runs]
        runs.sort(key=lambda pair: (order[pair[0].facts.setting], pair[0].facts.method.title, pair[0].facts.seed))
        parts += [_run_text(run, variant, protocols, terminal) for run, variant in runs]
        parts += group.warnings
    superseded = sum(cell.superseded for cell in found)
    if superseded:
        parts.append(f"Superseded by a newer run of the same seed, and left out: {superseded} (--run KEY shows one).")
    text = "\n\n".join([*parts, _switches_text(protocols, terminal)])
    return wrap_long(text) if terminal else text


def protocols_json(store: Store, selection: Selection | None = None) -> str:
    """Return the selected finished runs with their scores by protocol (null where undefined), and all switches."""
    protocols = [load_protocol(name) for name in protocol_names()]
    runs = []
    for run in latest(load_runs(store, selection=selection)):
        scores = scores_under(run, protocol_names())
        scored = {
            protocol.name: {**scores_json(scores[protocol.name]), "unmet": list(unmet(run.facts, protocol))}
            for protocol in protocols
        }
        runs.append({**run_json(run.facts), "tested_on": list(_evaluation(run.facts)), "protocols": scored})
    return json.dumps({"runs": runs, "protocols": [asdict(protocol) for protocol in protocols]}, allow_nan=False)


def unmet(record: StepFacts, protocol: Protocol) -> tuple[str, ...]:
    """Return what a protocol asks of the evaluation that the record's is not: its view, images or checkpoint.

    A run tests the weights of the last iteration on all images, with the view of its recipe.
    """
    wanted = (switches(protocol)["view"], _IMAGES[protocol.images], _CHECKPOINTS[protocol.checkpoint])
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


def _run_text(run: Run, variant: str, protocols: Sequence[Protocol], terminal: bool) -> str:
    facts, rows = run.facts, []
    scores = scores_under(run, [protocol.name for protocol in protocols])
    for protocol in protocols:
        numbers = [number_text(getattr(scores[protocol.name], name), 2) for name in SCORES]
        rows.append([protocol.name, *numbers, ", ".join(unmet(facts, protocol)) or "-"])
    name = f"{facts.method.title} on {facts.setting}{f' (variant {variant})' if variant else ''}"
    model = facts.model.name if terminal else escape(facts.model.name)
    tested = f"{model}, seed {facts.seed}, run {facts.run_key[:10]}; tested on: {', '.join(_evaluation(facts))}."
    table = table_text(["protocol", *SCORES, "asked for, not met"], rows, SCORES, terminal=terminal)
    return f"{_heading(3, name, terminal)}\n\n{tested}\n\n{table}"


def _heading(level: int, text: str, terminal: bool) -> str:
    return text if terminal else f"{'#' * level} {escape(text)}"


def _switches_text(protocols: Sequence[Protocol], terminal: bool) -> str:
    """Return the switches in which the protocols differ, by which of them can still be changed."""
    rows = {f"{protocol.name} v{protocol.version}": switches(protocol) for protocol in protocols}
    tables, names = [], []
    for group in (_SCORED, _FIXED):
        differing = [name for name in group if len({row[name] for row in rows.values()}) > 1]
        shown = [[name, *(row[switch] for switch in differing)] for name, row in rows.items()]
        tables.append(table_text(["protocol", *differing], shown, terminal=terminal))
        names.append(", ".join(differing))
    return (
        f"{_heading(2, 'Switches in which the protocols differ', terminal)}\n\n"
        f"Applied to the stored confusion matrix: {names[0]}.\n\n{tables[0]}\n\n{_exceptions(protocols)}"
        "future changes nothing after the last step, and void nothing but label 0 of ADE20K.\n\n"
        f"WARNING: decided when the images were tested, and not changed here: {names[1]}.\n\n{tables[1]}\n\n"
        "Where something a protocol asks for is not met, its numbers are not those its paper's code would give."
    )


def _exceptions(protocols: Sequence[Protocol]) -> str:
    """Return a line for each data set on which a protocol has another ``future`` than the table says."""
    return "".join(
        f"On {dataset}, future of {protocol.name} is {value}.\n"
        for protocol in protocols
        for dataset, value in protocol.future_on.items()
    )


def switches(protocol: Protocol) -> dict[str, str]:
    """Return the switches of a protocol by name, in few words."""
    background = {(False, False): "in neither", (False, True): "in all", (True, True): "in old and all"}
    return {
        "absent": protocol.absent, "forgotten": protocol.forgotten,
        "background": background.get((protocol.background_in_old, protocol.background_in_all), "in old"),
        "future": protocol.future, "void": protocol.void, "images": protocol.images,
        "view": _view(protocol.size or None, protocol.size or None), "checkpoint": protocol.checkpoint,
    }  # fmt: skip
