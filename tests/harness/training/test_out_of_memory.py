"""Too little memory, on the host or on a GPU, is explained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cispbench.harness.method import Output
from cispbench.harness.models.deeplab import DeepLabV3
from cispbench.harness.training.out_of_memory import explaining_memory
from cispbench.splits.errors import RunError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"), "for 2.50 GiB more"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1610612736 bytes."), "1.50 G"),
        (MemoryError(), "does not suffice for 8 images."),
        (RuntimeError("CUDA error: out of memory"), "does not suffice for 8 images."),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "for 8 images."),
    ],
)  # fmt: skip
def test_too_little_memory_is_told_with_what_to_set(error: Exception, asked: str) -> None:
    with pytest.raises(RunError) as told, explaining_memory("8 images", CPU, "Set --micro-batch 4."):
        raise error
    assert "the memory of cpu does not suffice for 8 images" in told.value.message and asked in told.value.message
    assert told.value.hint == "Set --micro-batch 4."
    assert told.value.__cause__ is error


def test_other_errors_are_no_matter_of_memory() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), explaining_memory("8 images", CPU, "-"):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize("place", ["forward", "to"])
def test_a_run_without_enough_memory_says_what_to_set(
    commands: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def ask(self: DeepLabV3, what: Any) -> Output:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.00 GiB. GPU 0 has a total")

    monkeypatch.setattr(DeepLabV3, place, ask)
    message = commands.refused(1, commands.tiny(method="finetune"), "4 images at once (batch 4, crop 32)",
                               "12.00 GiB", "--micro-batch 2", "optim.precision=bf16", "data.crop")  # fmt: skip
    assert "deeplabv3-tiny" in message
    assert not commands.leftovers()
