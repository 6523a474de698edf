"""On a GPU no iteration waits for it between two reads of losses: torch itself makes an error of each wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest
import torch

from cispbench.harness import pixel_bands
from cispbench.harness.cross_entropy import cross_entropy
from cispbench.harness.data.exemplars import exemplar_set
from cispbench.harness.data.loader import TrainLoader
from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.distributed.group import ALONE
from cispbench.harness.evaluate import arg_max, count_on_device, evaluate
from cispbench.harness.method import Exemplar, Memory
from cispbench.harness.recipes.fields import DataRecipe
from cispbench.harness.training.nonfinite import read_losses
from cispbench.methods.losses import unbiased_distillation
from cispbench.splits.settings import parse_setting
from tests.gpu.training_step import Case, begin

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
CASES = {
    "mbs": Case("mbs", "segmenter-tiny", 64, batch=4, profile="quick"),
    "plop": Case("plop", "deeplabv3-tiny", 64, batch=4, profile="quick"),
    "dkd": Case("dkd", "deeplabv3-tiny-dkd", 64, batch=4, profile="quick"),
}


@contextmanager
def waits_are_errors() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_the_mode_makes_an_error_of_a_wait() -> None:
    with waits_are_errors(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device="cuda").item()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", CASES)
def test_iterations_do_not_wait(name: str, precision: str) -> None:
    case = Case(**{**vars(CASES[name]), "precision": precision})
    training = begin(case, torch.device("cuda", 0), iterations=6)
    batches = training.batches()
    first = training.iterate(next(batches))  # cuDNN chooses its algorithms, and the optimiser makes its state
    read_losses([first], ALONE)
    with waits_are_errors():
        pending = [training.iterate(batch) for batch in batches]
    assert len(pending) == 5
    for losses in read_losses(pending, ALONE):
        assert losses.finite and losses.terms


@pytest.mark.parametrize("name", CASES)
def test_an_evaluation_does_not_wait_before_its_end(name: str) -> None:
    device = torch.device("cuda", 0)
    training = begin(CASES[name], device, iterations=1)
    model, batches = training.context.model, list(training.state.phase.loader.epoch(0))

    def predict(output):  # type: ignore[no-untyped-def]
        return arg_max(training.job.method.scores(output))

    evaluate(model, batches, 21, device, "bf16", predict=predict)  # cuDNN chooses its algorithms
    with waits_are_errors():
        counts = count_on_device(model, batches, 21, device, "bf16", None, predict)
    assert int(counts.sum()) == sum(int((batch.target < 21).sum()) for batch in batches)


@pytest.mark.parametrize("use", ["append", "replace"])
def test_batches_with_exemplars_come_without_a_wait(use: Literal["append", "replace"]) -> None:
    device, setting, step = torch.device("cuda", 0), parse_setting("overlapped-10-5"), 1
    scenes = SyntheticSource("voc", train=16, val=2, size=24)
    own, others = scenes.ids("train")[:8], scenes.ids("train")[8:]
    kept = exemplar_set(Memory(20, use), [Exemplar(name, 0) for name in others], setting, step)
    recipe, table = DataRecipe(crop=16, resize="none"), setting.label_table(step)
    loader = TrainLoader(scenes, own, table, recipe, 4, seed=3, device=device, exemplars=kept)
    list(loader.epoch(0))  # the first page-locked memory is taken
    with waits_are_errors():
        batches = list(loader.epoch(1))
    assert len(batches) == len(loader)
    for batch in batches:
        assert batch.origin is not None and batch.origin.device == batch.images.device == device
    assert any(bool((batch.origin < step).any()) for batch in batches if batch.origin is not None)


def test_losses_in_bands_are_those_of_the_whole_and_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    generator = torch.Generator(device).manual_seed(0)
    scores = 4 * torch.randn(2, 11, 40, 48, device=device, generator=generator)
    target = torch.randint(0, 12, (2, 40, 48), device=device, generator=generator)
    target[target == 11] = 255
    ends = []
    for whole in (True, False):
        if not whole:
            monkeypatch.setitem(pixel_bands.WHOLE_BYTES, "cuda", 0)
            monkeypatch.setitem(pixel_bands.BAND_BYTES, "cuda", 4 * 11 * 1000)  # the last band is a shorter one
        logits = scores.clone(memory_format=torch.channels_last).requires_grad_()
        with waits_are_errors():
            loss = cross_entropy(logits, target) + unbiased_distillation(logits, scores[:, :6])
            loss.backward()
        ends.append((loss.detach(), logits.grad))
    for found, expected in zip(ends[1], ends[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
