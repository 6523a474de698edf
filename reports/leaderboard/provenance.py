"""Where a number comes from, by the ledger or the record, as labels and texts. What they do not say is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cispbench.reports.ledger.lint import MEANING
from cispbench.reports.tables.cells import Cell
from cispbench.reports.tables.grid import TITLES
from cispbench.reports.tables.numbers import number_text
from cispbench.reports.tables.protocols import unmet
from cispbench.reports.tables.runs import SCORES, Run
from cispbench.results.continual import METRICS
from cispbench.results.conventions import Verdict
from cispbench.results.protocols import Protocol
from cispbench.results.published_methods import MethodFacts

Pairs = tuple[tuple[str, str], ...]
UNRECORDED = "not recorded"
_LONGEST = 1500  # characters of a text; a record may hold any
_VERSIONS = ("cispbench", "python", "torch", "torchvision", "timm", "numpy", "cuda")
_ORIGINS = {
    "measured": "measured: trained and tested by cispbench",
    "submitted": "submitted by somebody as a record; not run again here",
    "predictions": "scored by cispbench from a folder of predicted masks; not trained here",
}


def published_provenance(row: Mapping[str, Any], verdict: Verdict, facts: MethodFacts) -> Pairs:
    """Return what the ledger says about a row: its source, kind and arithmetic, and the facts of its method."""
    pairs = [
        ("Kind", row["kind"]),
        ("Source", row["source"]),
        ("Note", row["note"]),
        ("Assignment of the setting", row["assignment"]),
        ("Backbone", row["backbone"]),
        ("Arithmetic", f"{verdict.label}: {MEANING[verdict.label]}"),
        ("Readings that fit", ", ".join(verdict.readings)),
        ("Likely way of counting", _likely(verdict)),
        *_method_pairs(facts),
    ]
    return _filled(pairs)


def measured_provenance(cell: Cell, facts: MethodFacts, rules: Protocol) -> Pairs:
    """Return what the records of a cell's runs say: how they were made, on what data and machine, by what code."""
    runs, last = cell.runs, cell.runs[0].facts
    pairs = [
        ("Kind", _ORIGINS[cell.key.origin]),
        ("Protocol", f"{rules.name} v{rules.version}"),
        ("Asked for by the protocol, not met", ", ".join(unmet(last, rules))),
        ("Seeds", ", ".join(str(run.facts.seed) for run in runs)),
        ("By seed: old / new / all", "; ".join(_scores(run) for run in runs) if len(runs) > 1 else ""),
        ("Over the steps", _continual(cell)),
        ("Run keys", " ".join(run.facts.run_key for run in runs)),
        ("Superseded runs", str(cell.superseded) if cell.superseded else ""),
        ("Steps recorded", _steps(runs)),
        ("Model", _distinct(runs, _model)),
        ("Recipe", _distinct(runs, lambda run: _settings(run.facts.recipe, leave="method"))),
        ("Options of the method", _distinct(runs, lambda run: _settings(run.facts.method.options))),
        ("Version of the method", _distinct(runs, lambda run: str(run.facts.method.version))),
        ("Quirks in force", _distinct(runs, lambda run: ", ".join(run.facts.quirks) or "none")),
        ("Profile", last.profile),
        ("Data", _distinct(runs, _data)),
        ("Git commit", _distinct(runs, _commit)),
        ("Time", _distinct(runs, _time)),
        ("Peak memory", _distinct(runs, _memory)),
        ("Hardware", _distinct(runs, _hardware)),
        ("Versions", _distinct(runs, _versions)),
        ("Recorded", _distinct(runs, lambda run: run.facts.created)),
        *_method_pairs(facts),
    ]
    return _filled(pairs)


def _filled(pairs: Sequence[tuple[str, str | None]]) -> Pairs:
    return tuple((label, text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…") for label, text in pairs if text)


def _likely(verdict: Verdict) -> str:
    if verdict.likely is None:
        return ""
    return f"{verdict.likely}{', inferred from the other rows of its table' if verdict.inferred else ''}"


def _method_pairs(facts: MethodFacts) -> list[tuple[str, str | None]]:
    return [
        ("Method's paper", facts.venue),
        ("Exemplar memory", facts.memory),
        ("Extra supervision", facts.supervision),
        ("Known of the method from", facts.source),
    ]


def _distinct(runs: Sequence[Run], describe: Callable[[Run], str]) -> str:
    return "; ".join(dict.fromkeys(map(describe, runs)))


def _scores(run: Run) -> str:
    return f"{run.facts.seed}: " + " / ".join(number_text(run.number(name), 2) for name in SCORES)


def _continual(cell: Cell) -> str:
    known = {name: cell.numbers[name].mean for name in METRICS}
    return ", ".join(
        f"{TITLES.get(name, name)} {number_text(value, 2)}" for name, value in known.items() if not math.isnan(value)
    )


def _steps(runs: Sequence[Run]) -> str:
    """Return how many steps are recorded, where some are missing; else ""."""
    if all(run.complete for run in runs):
        return ""
    return ", ".join(f"{len(run.steps)} of {run.facts.steps}" for run in runs)


def _model(run: Run) -> str:
    model = run.facts.model
    digest = f" (SHA-256 {model.weights_sha256[:12]})" if model.weights_sha256 else ""
    return f"{model.name}, {model.parameters:,} parameters, weights {model.weights}{digest}"


def _settings(values: Mapping[str, Any], leave: str = "") -> str:
    return ", ".join(f"{name}={value}" for name, value in _flat(values) if name.partition(".")[0] != leave)


def _flat(values: Mapping[str, Any], front: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{front}{name}.")
        elif value is not None:
            yield f"{front}{name}", str(value).lower() if isinstance(value, bool) else str(value)


def _data(run: Run) -> str:
    data = run.facts.data
    return f"{data.kind}, fingerprint {data.fingerprint}, tested on {data.val_images:,} images"


def _commit(run: Run) -> str:
    git = run.facts.git
    if git.commit is None:
        return UNRECORDED
    return git.commit + {True: " (with changes that are not committed)", False: "", None: ""}[git.dirty]


def _time(run: Run) -> str:
    train, test = (sum(costs) for costs in zip(*(step.cost[:2] for step in run.steps), strict=True))
    resumed = " (the last one resumed, without what was lost)" if run.facts.timing.resumed else ""
    steps = len(run.steps)
    return f"{_duration(train)} of training and {_duration(test)} of testing in {steps} steps{resumed}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _memory(run: Run) -> str:
    host = max(step.cost.peak_host_bytes for step in run.steps)
    device = [step.cost.peak_device_bytes for step in run.steps if step.cost.peak_device_bytes is not None]
    return f"{host / 2**30:.2f} GiB" + (f", {max(device) / 2**30:.2f} GiB on the device" if device else "")


def _hardware(run: Run) -> str:
    environment, devices = run.facts.environment, run.facts.execution.devices
    machine = environment.get("device_name") or environment.get("cpu")
    parts = [f"{devices} x {machine}" if devices > 1 else machine]
    if environment.get("threads"):
        parts.append(f"threads: {environment['threads']}")
    parts.append(environment.get("platform"))
    return ", ".join(str(part) for part in parts if part) or UNRECORDED


def _versions(run: Run) -> str:
    known = {name: run.facts.environment.get(name) for name in _VERSIONS}
    return ", ".join(f"{name} {version}" for name, version in known.items() if version) or UNRECORDED
