"""Measure the training of MBS, PLOP and DKD: images a second, share of the device's bf16 peak, memory.

    python -m tests.gpu.bench                                                  # on a GPU, in five minutes
    python -m tests.gpu.bench --device cpu --size 64 --batch 2 --iterations 2  # a dry run

Prints a Markdown table. Images are random: what is measured is the device, not the reading of data. The batch is the
paper's, halved until it fits.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.gpu.training_step import Case, batch_of, begin

CASES = (
    ("mbs", "segmenter-vit-b16"),
    ("plop", "deeplabv3-resnet101"),
    ("dkd", "deeplabv3-resnet101-dkd"),
)
# Dense bf16 with float32 sums, in TFLOP/s, by a part of the device's name; the first that fits.
PEAKS = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "GH200": 989, "A100": 312, "A800": 312,
    "L40S": 362, "L40": 181, "L4": 121, "A40": 150, "A30": 165, "A10": 125, "4090": 165, "3090": 71,
}  # fmt: skip
WARM_UP = 3


@dataclass(frozen=True)
class Measured:
    """What one case costs: ``flops`` of an iteration as torch counts them, ``memory`` in bytes (None on a CPU)."""

    case: Case
    batch: int
    seconds: float
    flops: int
    memory: int | None


def peak_of(device: torch.device) -> float | None:
    """Return the peak of a device in FLOP/s, None if it is not in the table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((tera * 1e12 for part, tera in PEAKS.items() if part in name), None)


def measure(case: Case, device: torch.device, iterations: int, limit: float) -> Measured:
    """Train for some iterations, at most ``limit`` seconds, and measure them."""
    try:
        return _measured(case, device, iterations, limit)
    except torch.OutOfMemoryError:
        batch = batch_of(case) // 2
        if batch < 1:
            raise
    # Outside the handler, whose error holds the tensors of what did not fit.
    torch.cuda.empty_cache()
    return measure(replace(case, batch=batch), device, iterations, limit)


def _measured(case: Case, device: torch.device, iterations: int, limit: float) -> Measured:
    training = begin(case, device, iterations + WARM_UP + 1)
    batches, recipe = training.batches(), training.phase.recipe
    with FlopCounterMode(display=False) as counter:
        training.iterate(next(batches))
    for _ in range(WARM_UP if device.type == "cuda" else 0):
        training.iterate(next(batches))
    _finish(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started, done = time.perf_counter(), 0
    for batch in batches:
        training.iterate(batch)
        done += 1
        if done % 10 == 0:
            _finish(device)  # or the host would run far ahead of the limit
        if done == iterations or time.perf_counter() - started > limit:
            break
    _finish(device)
    seconds = (time.perf_counter() - started) / done
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Measured(case, recipe.batch, seconds, counter.get_total_flops(), memory)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(found: list[Measured], device: torch.device) -> str:
    """Return the measurements as a Markdown table."""
    peak = peak_of(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    lines = [
        f"{name}, torch {torch.__version__}",
        "",
        "| method | network | size | batch | precision | images/s | TFLOP an image | of the bf16 peak | memory |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for one in found:
        case, rate = one.case, one.flops / one.seconds
        share = "-" if peak is None else f"{rate / peak:.0%}"
        memory = "-" if one.memory is None else f"{one.memory / 2**30:.1f} GiB"
        lines.append(
            f"| {case.method} | {case.model} | {case.size} | {one.batch} | {case.precision} | "
            f"{one.batch / one.seconds:.1f} | {one.flops / one.batch / 1e12:.3f} | {share} | {memory} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, help="images of an iteration; by default the paper's, or what fits")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--seconds", type=float, default=45.0, help="at most for the iterations of a method")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    found = []
    for method, model in CASES:
        case = Case(method, model, chosen.size, chosen.batch, chosen.precision)
        found.append(measure(case, device, chosen.iterations, chosen.seconds))
    print(table(found, device))


if __name__ == "__main__":
    main()
