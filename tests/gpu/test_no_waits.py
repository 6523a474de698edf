"""On a GPU no iteration waits for it between two reads of losses: torch itself makes an error of each wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from cispbench.harness.distributed.group import ALONE
from cispbench.harness.evaluate import count_on_device, evaluate
from cispbench.harness.training.nonfinite import read_losses
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
        return training.job.method.scores(output).argmax(1)

    evaluate(model, batches, 21, device, "bf16", predict=predict)  # cuDNN chooses its algorithms
    with waits_are_errors():
        counts = count_on_device(model, batches, 21, device, "bf16", None, predict)
    assert int(counts.sum()) == sum(int((batch.target < 21).sum()) for batch in batches)
