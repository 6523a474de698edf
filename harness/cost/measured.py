"""How fast a device of this machine computes a network: a pass of it, forward and backward, against the clock."""

from __future__ import annotations

import time
from functools import cache

import torch

from cispbench.harness.cost.counting import count_head, count_trunk
from cispbench.harness.cost.network import counting, on_meta
from cispbench.harness.machine.devices import autocast, to_device
from cispbench.harness.models.catalogue import build_model, least_images
from cispbench.harness.models.interface import IncrementalModel

CLASSES = 2
# Pixels a side at which a CPU is measured: from there on its pace hardly depends on the size, and full images of the
# papers would take half a minute.
CPU_SIDE = 256
PASSES = 2  # the first one loads kernels and finds its memory


@cache
def network_speed(model: str, crop: int, precision: str, device: torch.device) -> float:
    """Measure FLOP/s over one pass, forward and backward, of a network with random weights.

    ``crop``: pixels a side of the training images; a CPU is measured on smaller ones. No random state of the caller
    changes. Raises RuntimeError where the memory is too small, RunError
    for a network that cannot be counted.
    """
    side = min(crop, CPU_SIDE) if device.type == "cpu" else crop
    count = least_images(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network = build_model(model, side)
        with counting(model):
            network.grow(CLASSES)
            flops = _flops(network, side, count, precision)
        # In the order of memory that the training has (``data/normalise.py``), on which the pace depends.
        to_device(network, device).train()
        images = torch.randn(count, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
        took = min(_seconds(network, images, precision) for _ in range(PASSES))
    return flops / took


def _flops(network: IncrementalModel, side: int, images: int, precision: str) -> float:
    without_data = on_meta(network).train()
    trunk = count_trunk(without_data, (side, side), images, precision)
    head = count_head(without_data, trunk, precision)
    return images * sum(part.forward.total + part.backward.total for part in (trunk.count, head))


def _seconds(network: IncrementalModel, images: torch.Tensor, precision: str) -> float:
    _wait(images.device)
    began = time.perf_counter()
    with autocast(images.device, precision):
        loss = network(images).logits.float().mean()
    loss.backward()
    _wait(images.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
