"""Check a method against the contract: every rule with every model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cispbench.harness.contract import gpu_rules, hook_rules, loss_rules, model_rules, run_rules
from cispbench.harness.contract.bench import Bench, Sizes
from cispbench.harness.contract.rules import Rule
from cispbench.harness.contract.verdict import ContractReport
from cispbench.harness.method import Method
from cispbench.harness.models.catalogue import model_spec
from cispbench.harness.pixel_bands import small_bands
from cispbench.harness.recipes.layers import load_recipe
from cispbench.splits.settings import parse_setting

MODELS = ("segmenter-tiny", "deeplabv3-tiny")  # one of each family
RULES: tuple[Rule, ...] = (
    hook_rules.declarations,
    loss_rules.losses_finite,
    model_rules.previous_untouched,
    run_rules.no_future_labels,
    run_rules.test_images_never_read,
    run_rules.state_exact,
    model_rules.new_classes_one_and_many,
    loss_rules.odd_batches,
    run_rules.deterministic,
    loss_rules.precisions,
    model_rules.initialise,
    loss_rules.hands_off,
    run_rules.learns,
    model_rules.class_numbering,
    loss_rules.halves_add_up,
    hook_rules.select_exemplars,
    hook_rules.prepare,
    hook_rules.weights_untouched,
    hook_rules.reads_previous,
    hook_rules.scores,
    gpu_rules.gpu_ready,
)


def models_to_check(cls: type[Method]) -> Sequence[str]:
    """Return the small models to check a method with, one of each family.

    A method with ``needs``, which few small models offer, is checked with the one of its quick recipe in its family.
    Raises MethodError for a class that cannot be instantiated.
    """
    if not Bench(cls, MODELS[0], Sizes(), Path()).method.needs:
        return MODELS
    by_family = {model_spec(name).family: name for name in MODELS}
    quick = load_recipe(cls, parse_setting(Sizes().setting), "quick").model
    return tuple((by_family | {model_spec(quick).family: quick}).values())


def check_method(
    cls: type[Method],
    models: Sequence[str] | None = None,
    sizes: Sizes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ContractReport:
    """Examine every rule with every model that the method supports; ``progress`` is called with (done, total) rules.

    ``models``: by default those of ``models_to_check``. Raises UsageError for an unknown model or a wrong recipe,
    MethodError for a class that cannot be instantiated.
    """
    started, results, unsupported = time.perf_counter(), [], {}
    models = models_to_check(cls) if models is None else models
    total = len(RULES) * len(models)
    for number, model in enumerate(models):
        # Images are small here: with usual bands no loss would be cut into any.
        with tempfile.TemporaryDirectory(prefix="cispbench-check-") as folder, small_bands():
            bench = Bench(cls, model, sizes or Sizes(), Path(folder))
            reason = bench.unsupported()
            if reason is not None:
                unsupported[model] = reason
                continue
            for index, rule in enumerate(RULES):
                results.append(rule.result(bench))
                if progress is not None:
                    progress(number * len(RULES) + index + 1, total)
    return ContractReport(cls.name, tuple(results), unsupported, time.perf_counter() - started)
