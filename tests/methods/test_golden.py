"""The methods' functions against outputs recorded from the papers' released code (../shared/golden)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cispbench.methods import losses, mbs, mib, plop

pytestmark = pytest.mark.golden
TOLERANCE = 1e-5


@pytest.fixture
def golden(shared: Path) -> Callable[[str], dict[str, Tensor]]:
    def load(name: str) -> dict[str, Tensor]:
        return {
            key: torch.from_numpy(np.asarray(value))
            for key, value in np.load(shared / "golden" / f"{name}.npz").items()
        }

    return load


def close(ours: Tensor | float, recorded: Tensor) -> None:
    torch.testing.assert_close(
        torch.as_tensor(ours).double(), recorded.double(), rtol=TOLERANCE, atol=TOLERANCE, check_dtype=False
    )


def value_and_grad(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = function(x)
    value.backward()
    assert x.grad is not None
    return value.detach(), x.grad


def test_unbiased_cross_entropy(golden):
    d = golden("mib_unbiased_cross_entropy")
    target, old = d["target"].long(), int(d["old_classes"])
    close(losses.unbiased_cross_entropy(d["logits"], target, old, "none"), d["per_pixel"])
    value, grad = value_and_grad(lambda x: losses.unbiased_cross_entropy(x, target, old), d["logits"])
    close(value, d["mean"])
    close(grad, d["grad"])


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize(
    ("name", "function"),
    [("mib_unbiased_distillation", losses.unbiased_distillation), ("lwf_distillation", losses.distillation)],
)
def test_distillations(golden, name, function, alpha):
    d = golden(f"{name}_alpha{alpha}")
    value, grad = value_and_grad(lambda x: function(x, d["old_logits"], alpha), d["logits"])
    close(value, d["mean"])
    close(grad, d["grad"])


def test_binary_cross_entropy_that_skips_void(golden):
    d = golden("bce_ignore")
    value, grad = value_and_grad(lambda x: losses.bce_with_ignore(x, d["target"].long()), d["logits"])
    close(value, d["mean"])
    close(grad, d["grad"])


def test_balanced_init(golden):
    d = golden("mib_classifier_init")
    weight, bias, old_bias = mib.balanced_init(d["old_weight"], d["old_bias"], int(d["new_classes"]))
    close(weight, d["new_weight"])
    close(bias, d["new_bias"])
    close(old_bias, d["old_bias_after"])


def test_entropy(golden):
    d = golden("plop_entropy")
    close(plop.entropy(d["probabilities"]), d["entropy"])


@pytest.mark.parametrize("name", ["plop_entropy_thresholds", "plop_entropy_thresholds_fine"])
def test_entropy_thresholds(golden, name):
    d = golden(name)
    batches = zip(d["targets"].long(), d["old_logits"], strict=True)
    thresholds, largest = plop.entropy_thresholds(
        batches, int(d["total_classes"]), int(d["bins"]), float(d["base_threshold"])
    )
    close(thresholds, d["thresholds"])
    close(largest, d["max_entropy"])


def test_plop_pseudo_labels(golden):
    d = golden("plop_pseudo_labels")
    target, factor = plop.pseudo_labels(
        d["target"].long(), d["old_logits"], d["thresholds"], float(d["max_entropy"]), int(d["old_classes"])
    )
    assert torch.equal(target, d["pseudo_target"].long())
    close(factor, d["adaptive_factor"])


def test_local_pod_embedding(golden):
    d = golden("plop_local_pod_embedding")
    close(plop.local_pod_embedding(d["x"], d["scales"].tolist()), d["embedding"])


def test_pod_loss(golden):
    d = golden("plop_pod")
    features = [d[f"feature{i}"].clone().requires_grad_() for i in range(3)]
    logits = d["logits"].clone().requires_grad_()
    loss = plop.pod_loss(
        features, [d[f"old_feature{i}"] for i in range(3)], logits, d["old_logits"], int(d["old_classes"]),
        int(d["new_classes"]), float(d["factor"]), float(d["logits_factor"]), d["scales"].tolist(),
    )  # fmt: skip
    loss.backward()
    close(loss.detach(), d["loss"])
    assert logits.grad is not None
    close(logits.grad, d["grad_logits"])
    for i, feature in enumerate(features):
        assert feature.grad is not None
        close(feature.grad, d[f"grad{i}"])


def test_selective_pseudo_labels(golden):
    d = golden("mbs_selective_pseudo_labels")
    ours = mbs.selective_pseudo_labels(d["target"].long(), d["old_logits"], float(d["threshold"]))
    assert torch.equal(ours, d["pseudo_target"].long())


def test_patch_weights(golden):
    d = golden("mbs_patch_weights")
    close(mbs.patch_weights(d["old_masks"], d["labels"].long(), d["new_class_ids"].tolist()), d["weights"])


def test_adaptive_feature_distillation(golden):
    d = golden("mbs_adaptive_feature_distillation")
    value, grad = value_and_grad(
        lambda x: mbs.adaptive_feature_distillation(x, d["old_patches"], d["weights"]), d["patches"]
    )
    close(value, d["patch_loss"])
    close(grad, d["grad"])
    old = d["old_class_features"]
    close(mbs.adaptive_feature_distillation(d["class_features"][:, : old.shape[1]], old), d["class_loss"])


def test_label_guided_output_distillation(golden):
    d = golden("mbs_label_guided_output_distillation")
    value, grad = value_and_grad(
        lambda x: mbs.label_guided_output_distillation(x, d["old_logits"], d["target"].long()), d["logits"]
    )
    close(value, d["mean"])
    close(grad, d["grad"])


def test_orthogonality(golden):
    d = golden("mbs_orthogonality")
    value, grad = value_and_grad(
        lambda x: mbs.orthogonality(x, d["new_class_ids"].tolist(), float(d["weight"])), d["class_tokens"]
    )
    close(value, d["loss"])
    close(grad, d["grad"])
