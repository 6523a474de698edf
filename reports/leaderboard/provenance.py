"""Where a number comes from, by the ledger or the record, as labels and texts. What they do not say is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cispbench.reports.ledger.lint import MEANING
from cispbench.reports.tables.cells import Cell
from cispbench.reports.tables.extras import NO, Extras, measured_extras
from cispbench.reports.tables.grid import TITLES
from cispbench.reports.tables.numbers import number_text
from cispbench.reports.tables.protocols import unmet
from cispbench.reports.tables.published import printed_texts
from cispbench.reports.tables.runs import SCORES, Run
from cispbench.results.continual import METRICS
from cispbench.results.conventions import Verdict
from cispbench.results.protocols import Protocol
from cispbench.results.published_methods import MethodFacts

Pairs = tuple[tuple[str, str], ...]
AGAIN = "Printed again in"
LINKS = "Links"  # the only text in which addresses may be opened
UNRECORDED = "not recorded"
_LONGEST = 1500  # characters of a text; a record may hold any
_VERSIONS = ("cispbench", "python", "torch", "torchvision", "timm", "numpy", "cuda")
_ORIGINS = {
    "measured": "measured: trained and tested by cispbench",
    "submitted": "submitted by somebody as a record; not run again here",
    "predictions": "scored by cispbench from a folder of predicted masks; not trained here",
}


def published_provenance(
    row: Mapping[str, Any], verdict: Verdict, facts: MethodFacts, others: Sequence[Mapping[str, Any]] = ()
) -> Pairs:
    """Return what the ledger says about a row: its source, kind and arithmetic, and the facts of its method.

    ``others``: further rows of the same setting, method, network and person.
    """
    inferred = ", inferred from the other rows of its table" if verdict.inferred else ""
    pairs = [
        ("Kind", row["kind"]),
        ("Run by", _run_by(row)),
        ("Source", row["source"]),
        (AGAIN, "; ".join(row["also"])),
        (LINKS, " ".join(row["links"])),
        ("Note", row["note"]),
        ("Assignment of the setting", row["assignment"]),
        ("Network", row["backbone"]),
        ("Arithmetic", f"{verdict.label}: {MEANING[verdict.label]}"),
        ("Readings that fit", ", ".join(verdict.readings)),
        ("Likely way of counting", verdict.likely and f"{verdict.likely}{inferred}"),
        ("Also printed (old / new / all)", "; ".join(_printed(other) for other in others)),
    ]
    only_on = f" (on {', '.join(facts.supervision_on)} alone)" if facts.supervision_on else ""
    return _filled(pairs, facts, Extras(facts.memory, facts.supervision and f"{facts.supervision}{only_on}"))


def measured_provenance(cell: Cell, facts: MethodFacts, rules: Protocol) -> Pairs:
    """Return what the records of a cell's runs say: how they were made, on what data and machine, by what code."""
    runs = cell.runs
    continual = {TITLES.get(name, name): cell.numbers[name].mean for name in METRICS}
    scores = [f"{run.facts.seed}: {' / '.join(number_text(run.number(name), 2) for name in SCORES)}" for run in runs]
    recorded = ", ".join(f"{len(run.steps)} of {run.facts.steps}" for run in runs)
    pairs = [
        ("Kind", _ORIGINS[cell.key.origin]),
        ("Protocol", f"{rules.name} v{rules.version}"),
        ("Asked for by the protocol, not met", ", ".join(unmet(runs[0].facts, rules))),
        ("Seeds", ", ".join(str(run.facts.seed) for run in runs)),
        ("By seed: old / new / all", "; ".join(scores) if len(runs) > 1 else ""),
        ("Over the steps", ", ".join(f"{n} {number_text(v, 2)}" for n, v in continual.items() if not math.isnan(v))),
        ("Run keys", " ".join(run.facts.run_key for run in runs)),
        ("Superseded runs", str(cell.superseded) if cell.superseded else ""),
        ("Steps recorded", "" if all(run.complete for run in runs) else recorded),
    ]
    described = [_run_texts(run) for run in runs]
    # Most texts are the same for every seed, and are shown once.
    pairs += [(label, "; ".join(dict.fromkeys(texts[label] for texts in described))) for label in described[0]]
    used = measured_extras(runs, facts)
    return _filled(pairs, facts, Extras(*("none" if text == NO else text for text in used)))


def _run_by(row: Mapping[str, Any]) -> str:
    return (row["run_by"] or "not known") + (
        " (inferred: the document does not say so)" if row["run_by_inferred"] else ""
    )


def _printed(row: Mapping[str, Any]) -> str:
    return f"{' / '.join(printed_texts(row))} ({row['kind']}, {row['source']})"


def _run_texts(run: Run) -> dict[str, str]:
    facts = run.facts
    model, data, git, environment = facts.model, facts.data, facts.git, facts.environment
    digest = f" (SHA-256 {model.weights_sha256[:12]})" if model.weights_sha256 else ""
    dirty = " (with changes that are not committed)" if git.dirty else ""
    train, test, host, device = zip(*(step.cost for step in run.steps), strict=True)
    time = f"{_duration(sum(train))} of training and {_duration(sum(test))} of testing in {len(train)} steps"
    resumed = " (the last one resumed, without what was lost)" if facts.timing.resumed else ""
    on_device = max((peak for peak in device if peak is not None), default=None)
    machine, devices = environment.get("device_name") or environment.get("cpu"), facts.execution.devices
    hardware = [
        f"{devices} x {machine}" if devices > 1 else machine,
        f"threads: {environment['threads']}" if environment.get("threads") else "",
        environment.get("platform"),
    ]
    versions = [f"{name} {environment[name]}" for name in _VERSIONS if environment.get(name)]
    return {
        "Model": f"{model.name}, {model.parameters:,} parameters, weights {model.weights}{digest}",
        "Recipe": ", ".join(_settings({name: value for name, value in facts.recipe.items() if name != "method"})),
        "Options of the method": ", ".join(_settings(facts.method.options)),
        "Version of the method": str(facts.method.version),
        "Quirks in force": ", ".join(facts.quirks) or "none",
        "Profile": facts.profile,
        "Data": f"{data.kind}, fingerprint {data.fingerprint}, tested on {data.val_images:,} images",
        "Git commit": UNRECORDED if git.commit is None else git.commit + dirty,
        "Time": time + resumed,
        "Peak memory": f"{_gib(max(host))}" + ("" if on_device is None else f", {_gib(on_device)} on the device"),
        "Hardware": ", ".join(str(part) for part in hardware if part) or UNRECORDED,
        "Versions": ", ".join(versions) or UNRECORDED,
        "Recorded": facts.created,
    }


def _filled(pairs: Sequence[tuple[str, str | None]], facts: MethodFacts, extras: Extras) -> Pairs:
    whole = [
        *pairs,
        ("Method's paper", facts.venue),
        ("Exemplar memory", extras.memory),
        ("Extra supervision", extras.supervision),
        ("Protocol of its released code", facts.protocol),
        ("Known of the method from", facts.source),
    ]
    return tuple((label, text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…") for label, text in whole if text)


def _settings(values: Mapping[str, Any], front: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{front}{name}.")
        elif value is not None:
            yield f"{front}{name}={str(value).lower() if isinstance(value, bool) else value}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
