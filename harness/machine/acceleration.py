"""What makes a training faster and changes its rounding: the compiler of torch, TF32, and cuDNN's choice by trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cispbench.harness.machine.lazy import torch


@dataclass(frozen=True)
class Acceleration:
    """What is switched on, all of it off by default. It enters no key, as devices do not; records name it.

    ``compile``: both networks are compiled (``training/compiled.py``). ``tf32``: float32 products are rounded to 10
    bits on GPUs that do so; torch does that in convolutions in any case. ``cudnn_benchmark``: cuDNN tries its
    algorithms at each new size of images and takes the fastest, so that two runs may take two.
    """

    compile: bool = False
    tf32: bool = False
    cudnn_benchmark: bool = False

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Set what holds for the whole process, and set it back at the end."""
        if not (self.tf32 or self.cudnn_benchmark):  # torch need not be imported
            yield
            return
        cudnn = torch.backends.cudnn
        before = torch.get_float32_matmul_precision(), cudnn.benchmark
        try:
            if self.tf32:
                torch.set_float32_matmul_precision("high")
            cudnn.benchmark = before[1] or self.cudnn_benchmark
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            cudnn.benchmark = before[1]


NONE = Acceleration()
