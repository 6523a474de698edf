"""Batch norm over the images of all devices.

torch's SyncBatchNorm runs on CUDA alone. ``SharedBatchNorm`` does the same on the CPU, so that trainings on several
processes can be tested without a GPU, and give the result of a single process.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cispbench.harness.distributed.group import Group
from cispbench.harness.distributed.sums import sum_over_all


def synchronise(model: nn.Module, group: Group, device: torch.device) -> None:
    """Replace the model's batch norms by ones that share their statistics among the processes in training.

    Parameters and buffers stay the same tensors, under the same names. A group of one is left as it is.
    """
    if group.size == 1:
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                if device.type == "cuda":
                    setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]
                else:
                    setattr(parent, name, SharedBatchNorm.like(child))


class SharedBatchNorm(nn.BatchNorm2d):
    """A batch norm over the images of all processes, on any device; each forward pass makes three all-reduces."""

    @classmethod
    def like(cls, norm: nn.BatchNorm2d) -> SharedBatchNorm:
        """Return a norm that shares parameters and statistics with ``norm``, in the same mode."""
        shared = cls(norm.num_features, norm.eps, norm.momentum)
        for name, tensor in (*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)):
            setattr(shared, name, tensor)
        shared.train(norm.training)
        return shared

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (B, C, h, w)."""
        if not self.training:
            return super().forward(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))  # float64 stays as it is
        count = sum_over_all(values.new_tensor(values.numel() // values.shape[1]))
        # Mean first, then the squared distances: E[x^2] - E[x]^2 would cancel for large means.
        mean = sum_over_all(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = sum_over_all(centred.square().sum((0, 2, 3))) / count
        # As torch does: the running variance is the unbiased one, the output is scaled by the biased one.
        self._update_statistics(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)
