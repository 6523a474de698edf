"""The network as the processes of a group train it together."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cispbench.harness.distributed.group import Group

# torch 2.13 renamed this option.
OPTIONS = inspect.signature(DistributedDataParallel).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in OPTIONS else "broadcast_buffers"


def data_parallel(model: nn.Module, group: Group, device: torch.device) -> nn.Module:
    """Return the model wrapped in DDP, which averages gradients over the processes.

    Every process then has the first one's weights. Unwrapped for a group of one, and where nothing of it is learnt.
    """
    if group.size == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
        return model
    options: dict[str, Any] = {
        # The buffers are statistics of batch norms. ``batch_norm.synchronise`` has made them the same everywhere.
        SYNC_BUFFERS: False,
        "device_ids": [device] if device.type == "cuda" else None,
        # Gradients lie in what is sent, and are not copied there and back.
        "gradient_as_bucket_view": True,
        # Not static_graph: a method may read other outputs in another iteration, and so reach other parameters; and the
        # graph would be taken from the first backward pass, which with micro-batches exchanges nothing (no_sync).
    }
    return DistributedDataParallel(model, **options)


def without_all_reduce(network: nn.Module) -> AbstractContextManager[Any]:
    """Let backward passes add up gradients in this process alone; the next pass outside sends their sum."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()
