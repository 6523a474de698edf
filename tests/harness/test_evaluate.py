"""The confusion matrix against a loop and against torchmetrics; evaluation against batching."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cispbench.harness import evaluate as evaluation
from cispbench.harness.evaluate import arg_max, confusion_matrix, evaluate, predictions, scattered_counts
from cispbench.harness.method import Batch, Output
from cispbench.harness.models.catalogue import build_model


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_against_a_loop(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (3, 4, 5), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    prediction = torch.randint(classes, (3, 4, 5), generator=generator)
    expected = np.zeros((classes, classes), np.int64)
    for t, p in zip(target.flatten().tolist(), prediction.flatten().tolist(), strict=True):
        if t != 255:
            expected[t, p] += 1
    ours = confusion_matrix(prediction, target, classes)
    assert ours.dtype == torch.int64
    np.testing.assert_array_equal(ours.numpy(), expected)


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_a_gpu_counts_as_the_cpu_does(size):
    numbers = torch.randint(30, (size,), generator=torch.Generator().manual_seed(0)).int()
    expected = torch.bincount(numbers, minlength=40)
    found = scattered_counts(numbers, 40)
    assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_against_torchmetrics():
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    generator = torch.Generator().manual_seed(0)
    target = torch.randint(5, (2, 16, 16), generator=generator)
    target[:, :2] = 255
    prediction = torch.randint(5, (2, 16, 16), generator=generator)
    theirs = multiclass_confusion_matrix(prediction, target, num_classes=5, ignore_index=255)
    assert torch.equal(confusion_matrix(prediction, target, 5), theirs)


def test_wrong_shapes_and_classes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(torch.zeros(2, 2), torch.zeros(2, 3), 4)
    with pytest.raises(ValueError, match=r"outside 0\.\.3"):
        confusion_matrix(torch.full((2, 2), 4), torch.zeros(2, 2), 4)
    with pytest.raises(ValueError, match=r"outside 0\.\.3"):
        confusion_matrix(torch.zeros(2, 2), torch.full((2, 2), 9), 4)


KINDS = [(kind, ignored) for kind in (torch.uint8, torch.int16, torch.int32, torch.int64)
         for ignored in (255, 3, 0, -1, 7, 300) if kind != torch.uint8 or 0 <= ignored < 256]  # fmt: skip


@pytest.mark.parametrize(("kind", "ignored"), KINDS)
def test_every_kind_of_integer_and_every_number_of_void(kind, ignored):
    generator = torch.Generator().manual_seed(2)
    target, prediction = (torch.randint(4, (3, 9, 9), generator=generator).to(kind) for _ in range(2))
    target[0], prediction[0, 0, 0] = ignored, 99  # what is predicted for void may be anything
    kept = target != ignored
    expected = torch.zeros(4, 4, dtype=torch.int64)
    for row, column in zip(target[kept].tolist(), prediction[kept].tolist(), strict=True):
        expected[row, column] += 1
    assert torch.equal(confusion_matrix(prediction, target, 4, ignored), expected)


@pytest.mark.parametrize("wrong", [-1, 4, 254, 2**32])
def test_a_label_that_is_no_class_is_refused_wherever_it_lies(wrong):
    target = torch.zeros(5, 5, dtype=torch.int64)
    target[4, 3], target[0] = wrong, 255
    with pytest.raises(ValueError, match=r"target: a class is outside 0\.\.3"):
        confusion_matrix(torch.zeros_like(target), target, 4)
    with pytest.raises(ValueError, match=r"prediction: a class is outside 0\.\.3"):
        confusion_matrix(target, torch.zeros_like(target), 4)


class Brightness(torch.nn.Module):
    """Predict a pixel's class from its own value, so that nothing but counting is tested."""

    def forward(self, images):
        level = (images[:, 0] * 3).round().long().clamp(0, 3)
        logits = torch.nn.functional.one_hot(level, 4).movedim(-1, 1).float()
        empty = torch.empty(0)
        return Output(logits, empty, empty, empty, empty, empty)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_counts_do_not_depend_on_the_batch(batch):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(7, 3, 6, 6, generator=generator)
    target = torch.randint(4, (7, 6, 6), generator=generator)
    target[:, 0] = 255
    names = tuple(map(str, range(7)))
    whole = Batch(images, target, names)
    batches = [whole.part(slice(start, start + batch)) for start in range(0, 7, batch)]
    seen = []
    total = evaluate(Brightness(), batches, 4, torch.device("cpu"), "fp32", seen.append)
    prediction = Brightness()(images).logits.argmax(1)
    assert torch.equal(total, confusion_matrix(prediction, target, 4))
    assert total.sum() == 7 * 30
    assert seen[-1] == 7


@pytest.mark.parametrize("name", ["segmenter-tiny", "deeplabv3-tiny", "deeplabv3-tiny-branches"])
def test_images_predicted_one_at_a_time_are_predicted_as_together(name, monkeypatch):
    torch.manual_seed(0)
    model = build_model(name, 48)
    model.grow(9)
    images, ids = torch.randn(5, 3, 48, 48), tuple("abcde")
    batch = Batch(images, torch.zeros(5, 48, 48, dtype=torch.int64), ids)
    together, seen = predictions(model.eval(), batch, "fp32", lambda output: output.logits.argmax(1)), []

    def predict(output):
        seen.append(len(output.logits))
        return arg_max(output.logits)

    monkeypatch.setattr(evaluation, "MAPPED_BYTES", 2 * 4 * 9 * 48 * 48)
    apart = predictions(model, batch, "fp32", predict)
    assert seen == [2, 2, 1]
    assert (apart == together).float().mean() > 0.999  # a product of other sizes may be rounded otherwise


def test_the_first_of_equal_scores_wins():
    scores = torch.tensor([1.0, 3.0, 3.0, 2.0]).view(1, 4, 1, 1).expand(2, 4, 3, 3)
    assert (arg_max(scores) == 1).all()
