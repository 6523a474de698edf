"""The paper profile of the methods with other recipes than MiB's, held number by number against their releases."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cispbench.harness.method import Batch, Output, StepContext
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import load_method
from cispbench.methods.losses import cross_entropy
from cispbench.methods.reminder import REMINDER, REMINDEROptions
from cispbench.splits.settings import parse_setting

# Learning rate, epochs and batch at step 0, then later; rates are those of what learns fastest.
SCHEDULES = {
    ("ewc", "overlapped-15-1"): ((0.01, 30, 24), (0.001, 30, 24)),
    ("pi", "disjoint-100-50"): ((0.01, 60, 24), (0.001, 60, 24)),
    ("rw", "overlapped-19-1"): ((0.01, 30, 24), (0.001, 30, 24)),
    ("rcil", "overlapped-10-1"): ((0.02, 30, 24), (0.001, 30, 24)),
    ("rcil", "overlapped-100-50"): ((0.01, 60, 24), (0.001, 60, 24)),
    ("ewf", "overlapped-15-1"): ((0.01, 30, 24), (0.001, 30, 24)),
    ("ewf", "overlapped-100-10"): ((0.01, 60, 24), (0.001, 60, 24)),
    ("reminder", "overlapped-15-1"): ((0.01, 30, 16), (0.001, 30, 16)),
    ("reminder", "disjoint-19-1"): ((0.01, 30, 32), (0.001, 30, 32)),
    ("reminder", "overlapped-15-5"): ((0.01, 30, 32), (0.001, 30, 32)),
    ("reminder", "overlapped-100-10"): ((0.01, 60, 10), (0.001, 70, 10)),
    ("reminder", "overlapped-100-50"): ((0.01, 60, 10), (0.0008, 70, 10)),
    ("ssul", "overlapped-15-1"): ((0.01, 50, 32), (0.01, 50, 32)),
    ("ssul_m", "overlapped-100-50"): ((0.01, 100, 24), (0.05, 100, 24)),
    ("barm", "overlapped-15-1"): ((0.01, 50, 16), (0.001, 10, 8)),
    ("barm", "overlapped-100-10"): ((0.01, 60, 8), (0.01, 50, 4)),
    ("dkd", "overlapped-15-1"): ((0.01, 60, 32), (0.001, 60, 32)),
    ("dkd_m", "overlapped-100-50"): ((0.025, 100, 24), (0.0025, 100, 24)),
}
# By selector: the learning rate of a part of the network relative to the fastest, step 0 and later; 1 where not named.
RATES = {
    ("ssul", "overlapped-15-1"): (
        {"encoder": 0.1},
        {"encoder": 0, "decoder": 0, "old": 0, "background": 1e-4},
    ),
    ("barm", "overlapped-15-1"): ({"encoder": 0.1}, {"encoder": 0.1, "old": 0.1}),
    ("barm", "overlapped-100-10"): ({"encoder": 0.1}, {"encoder": 0.01, "decoder": 0.1, "old": 0.01}),
    ("dkd", "overlapped-100-10"): ({"encoder": 0.1}, {"encoder": 0.1}),
    ("ewf", "overlapped-15-1"): ({}, {"old": 0}),
    ("rcil", "overlapped-15-1"): ({}, {}),
}
OPTIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("ewc", "overlapped-15-1", {"importance": 500, "alpha": 0.9, "decay_on": "new", "normalise": True}),
    ("pi", "overlapped-15-1", {"importance": 500, "path_gradient": "after", "normalise": True}),
    ("rw", "overlapped-15-1", {"importance": 100, "interval": 10, "alpha": 0.9, "decay_on": "new"}),
    ("rcil", "overlapped-15-1", {"distillation": 100, "cube": 0.01, "cube_last": 5e-4, "balanced_bias": False}),
    ("rcil", "overlapped-100-5", {"distillation": 100, "cube": 5e-6, "cube_last": 5e-7}),
    ("reminder", "overlapped-15-1", {"class_similarity": 0.5, "temperature": 3, "delta": 0, "pod": 0.01}),
    ("reminder", "overlapped-100-5", {"delta": 1, "pod": 0.001, "pod_logits": 1e-5}),
    ("ssul", "overlapped-15-1", {"unknown": "saliency", "threshold": 0.7, "branch_init": True}),
    ("ssul", "overlapped-100-50", {"unknown": "background", "threshold": 0.7}),
    ("ssul_m", "overlapped-15-1", {"memory": 100, "memory_labels": "unshifted"}),
    ("ssul_m", "overlapped-100-50", {"memory": 300, "memory_labels": "unshifted"}),
    ("barm", "overlapped-15-1", {"triplet": 5, "feature": 4, "group": 1, "background": 1, "ear_statistics": "fresh"}),
    ("dkd", "overlapped-15-1", {"distillation": 5, "decomposed": 5, "auxiliary": 1, "void_is_negative": True}),
    ("dkd", "disjoint-19-1", {"base_positive_weight": 2, "positive_weight": 1}),
    ("dkd", "overlapped-100-50", {"base_positive_weight": 35, "positive_weight": 35}),
    ("dkd_m", "overlapped-15-1", {"memory": 100, "threshold": 0.9, "selection_on_crops": True}),
    ("dkd_m", "overlapped-100-50", {"memory": 300, "threshold": 0.9, "selection_on_crops": True}),
]
MIB_VIEW, SSUL_VIEW = (512, 512), (513, 513)
# Precision, the void of VOC's training masks, the crop, how it is resized and padded, the view of test images.
DATA = {
    "ewc": ("fp32", "background", 512, "area", "ends", MIB_VIEW),
    "pi": ("fp32", "background", 512, "area", "ends", MIB_VIEW),
    "rw": ("fp32", "background", 512, "area", "ends", MIB_VIEW),
    "rcil": ("fp16", "void", 512, "area", "ends", MIB_VIEW),
    "ewf": ("fp16", "void", 512, "area", "ends", MIB_VIEW),
    "reminder": ("fp16", "void", 512, "area", "ends", MIB_VIEW),
    "ssul": ("fp16", "void", 513, "scale", "all-sides", SSUL_VIEW),
    "ssul_m": ("fp16", "void", 513, "scale", "all-sides", SSUL_VIEW),
    "barm": ("fp16", "void", 513, "scale", "all-sides", SSUL_VIEW),
    "dkd": ("fp16", "void", 512, "area", "ends", (None, None)),
    "dkd_m": ("fp16", "void", 512, "area", "ends", (None, None)),
}
NETWORKS = {"rcil": "-rcil", "ssul": "-branches", "barm": "-branches", "dkd": "-dkd"}


def recipe_of(name: str, setting: str, *overrides: str) -> Any:
    return load_recipe(load_method(name), parse_setting(setting), "paper", overrides=overrides)


@pytest.mark.parametrize(("name", "setting"), SCHEDULES)
def test_rates_epochs_and_batches(name: str, setting: str) -> None:
    recipe = recipe_of(name, setting)
    found = [(phase.lr, phase.epochs, phase.batch) for phase in (recipe.phase(0), recipe.phase(1))]
    assert found == list(SCHEDULES[name, setting])


@pytest.mark.parametrize(("name", "setting"), RATES)
def test_rates_of_parts(name: str, setting: str) -> None:
    recipe = recipe_of(name, setting)
    for phase, expected in zip((recipe.phase(0), recipe.phase(1)), RATES[name, setting], strict=True):
        assert {word: rate for word, rate in phase.rates.items() if rate != 1} == expected


@pytest.mark.parametrize(("name", "setting", "expected"), OPTIONS)
def test_weights_and_quirks(name: str, setting: str, expected: dict[str, Any]) -> None:
    options = recipe_of(name, setting).method
    assert {option: options[option] for option in expected} == expected


@pytest.mark.parametrize("name", DATA)
def test_data_precision_and_view(name: str) -> None:
    recipe = recipe_of(name, "overlapped-15-1")
    data, view, precision = recipe.data, recipe.evaluation, {recipe.phase(step).precision for step in (0, 1)}
    found = (data.void, data.crop, data.resize, data.pad, (view.resize_short, view.crop))
    assert ({DATA[name][0]}, DATA[name][1:]) == (precision, found)
    assert (recipe.model, recipe.weights) == (
        f"deeplabv3-resnet101{NETWORKS.get(name.split('_m')[0], '')}",
        "pretrained",
    )
    if data.pad == "all-sides":
        assert data.pad_label == 0


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("setting", ["overlapped-15-1", "overlapped-100-50"])
def test_optimiser_and_schedule(name: str, setting: str) -> None:
    family, dataset = name.removesuffix("_m"), parse_setting(setting).dataset
    for step in (0, 1):
        phase = recipe_of(name, setting).phase(step)
        assert (phase.optimizer, phase.momentum, phase.nesterov, phase.weight_decay) == ("sgd", 0.9, True, 1e-4)
        assert (phase.schedule, phase.power, phase.clip, phase.warmup) == ("poly", 0.9, None, 0)
        floored = family == "barm" or (family == "ssul" and dataset == "voc")
        assert phase.floor == (1e-6 if floored else 0)
        share = {"ssul": 0.1, "dkd": 0.2}.get(family, 0) if dataset == "ade" else 0
        assert (phase.warmup_share, phase.warmup_start) == (share, 1e-3)
        frozen = ("all",) if step and family in ("ssul", "barm", "dkd") else ()
        assert (tuple(phase.frozen_norms), tuple(phase.frozen_dropout)) == (frozen, frozen if family == "dkd" else ())
        undecayed = {"encoder": 0, "decoder": 0, "old": 0} if step and family == "dkd" else {}
        assert phase.decay == undecayed


@pytest.mark.parametrize(
    ("setting", "weight"),
    [("overlapped-15-1", 10), ("overlapped-100-50", 10), ("overlapped-100-10", 100), ("overlapped-100-5", 100)],
)
def test_ewf_weighs_the_distillation_of_mib_by_its_own_scripts(setting: str, weight: float) -> None:
    assert recipe_of("ewf", setting).method["base_options"]["distillation"] == weight


def test_ewf_over_plop_trains_ten_one_as_long_as_the_rest() -> None:
    assert recipe_of("plop", "overlapped-10-1").phase(1).epochs == 10
    assert recipe_of("ewf", "overlapped-10-1", "method.base=plop").phase(1).epochs == 30


@pytest.mark.parametrize("void_in_mean", [True, False])
def test_void_counts_in_the_mean_of_reminders_step_0_as_in_later_ones(void_in_mean: bool) -> None:
    method = REMINDER(REMINDEROptions(void_in_mean=void_in_mean))
    setting = parse_setting("overlapped-15-1")
    context = StepContext(setting, 0, 0, setting.num_classes(0), None, None)  # type: ignore[arg-type]
    logits, target = torch.arange(32.0).view(1, 2, 4, 4).sin(), torch.full((1, 4, 4), 255)
    target[:, :2] = 1
    none = torch.empty(0)
    batch, output = Batch(torch.empty(1, 3, 4, 4), target, ("a",)), Output(logits, none, none, none, none, none)
    found = method.losses(batch, output, None, context)["cross_entropy"]
    torch.testing.assert_close(found, cross_entropy(logits, target) * (0.5 if void_in_mean else 1.0))
    assert method.counts(batch, None, context) == ({} if void_in_mean else {"cross_entropy": 8})
