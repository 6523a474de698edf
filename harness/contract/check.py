"""Check a method against the contract: every rule with every model, on a bench in a temporary folder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cispbench.harness.contract import data_rules, loss_rules, model_rules, run_rules
from cispbench.harness.contract.bench import Bench, Sizes
from cispbench.harness.contract.rules import Rule
from cispbench.harness.contract.verdict import Finding, NotApplicable, Outcome, Report, Result, Unchecked
from cispbench.harness.method import Method

MODELS = ("segmenter-tiny", "deeplabv3-tiny")  # one of each family
RULES: tuple[Rule, ...] = (
    loss_rules.losses_finite,
    model_rules.previous_untouched,
    data_rules.no_future_labels,
    data_rules.test_images_never_read,
    run_rules.state_exact,
    model_rules.new_classes_one_and_many,
    loss_rules.odd_batches,
    run_rules.deterministic,
    loss_rules.precisions,
    model_rules.initialise,
    loss_rules.hands_off,
    loss_rules.shared_base,
    run_rules.learns,
    model_rules.class_numbering,
    loss_rules.halves_add_up,
)


def check_method(
    cls: type[Method],
    models: Sequence[str] = MODELS,
    sizes: Sizes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Judge every rule with every model that the method serves; ``progress`` is called with (done, total) judgements.

    Raises UsageError for an unknown model or a recipe that is wrong, MethodError for a class that cannot be made.
    """
    started, results, unsupported = time.perf_counter(), [], {}
    total = len(RULES) * len(models)
    for number, model in enumerate(models):
        with tempfile.TemporaryDirectory(prefix="cispbench-check-") as folder:
            bench = Bench(cls, model, sizes or Sizes(), Path(folder))
            reason = bench.unsupported()
            if reason is not None:
                unsupported[model] = reason
                continue
            for place, rule in enumerate(RULES):
                results.append(judge(rule, bench))
                if progress is not None:
                    progress(number * len(RULES) + place + 1, total)
    return Report(cls.name, tuple(results), unsupported, time.perf_counter() - started)


def judge(rule: Rule, bench: Bench) -> Result:
    """Judge one rule on a bench."""
    findings: list[Finding] = []
    notes: list[str] = []
    outcome: Outcome = "kept"
    try:
        for found in rule.judge(bench):
            if isinstance(found, Finding):
                findings.append(found)
            else:
                notes.append(found)
    except NotApplicable as reason:
        outcome, notes = "skipped", [str(reason)]
    except Unchecked as reason:
        outcome, notes = "unchecked", [str(reason)]
    if findings:
        outcome = "broken"
    return Result(rule.name, rule.asks, bench.model, outcome, "; ".join(dict.fromkeys(notes)), tuple(findings))
