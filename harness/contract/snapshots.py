"""Snapshots of what a call of the method might change, by name, so that a change can be told afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from torch import Tensor, nn

from cispbench.harness.contract.recorded import Snapshot
from cispbench.harness.method import Batch, Output


def copied(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot with tensors of its own; without this it changes with what it shows."""
    return {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in snapshot.items()}


def of_model(model: nn.Module) -> Snapshot:
    """Return parameters, their gradients and the training mode; buffers may change in any forward pass."""
    parameters = dict(model.named_parameters())
    gradients = {f"{name}.grad": p.grad for name, p in parameters.items() if p.grad is not None}
    return {**parameters, **gradients, "training": model.training}


def of_frozen(model: nn.Module | None) -> Snapshot:
    """Return all of a model that must not change in any way: buffers and what requires gradients, too."""
    if model is None:
        return {}
    return {**of_model(model), **dict(model.named_buffers()), **_flags(dict(model.named_parameters()))}


def of_weights(model: nn.Module, *, buffers: bool) -> Snapshot:
    """Return the parameters, and the buffers if asked for."""
    return {**dict(model.named_parameters()), **(dict(model.named_buffers()) if buffers else {})}


def of_batch(batch: Batch) -> Snapshot:
    """Return the tensors of a batch."""
    origin = {} if batch.origin is None else {"batch.origin": batch.origin}
    companions = {f"batch.companions[{name}]": tensor for name, tensor in batch.companions.items()}
    return {"batch.images": batch.images, "batch.target": batch.target, **origin, **companions}


def of_call(batch: Batch, previous: Output | None) -> Snapshot:
    """Return the tensors of a batch and of the previous model's output, and whether they require gradients."""
    found = dict(of_batch(batch))
    for part in fields(Output) if previous is not None else ():
        value = getattr(previous, part.name)
        found |= {f"previous.{part.name}{index}": tensor for index, tensor in _tensors_in(value).items()}
    return {**found, **_flags({name: value for name, value in found.items() if isinstance(value, Tensor)})}


def of_output(output: Output) -> Snapshot:
    """Return the tensors of a model's output."""
    parts = {part.name: getattr(output, part.name) for part in fields(Output)}
    return {f"output.{name}{index}": t for name, value in parts.items() for index, t in _tensors_in(value).items()}


def _tensors_in(value: Tensor | tuple[Tensor, ...] | Mapping[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Return the tensors of a field of ``Output`` by their place in it."""
    if isinstance(value, Tensor):
        return {"": value}
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {f"[{place}]{index}": tensor for place, item in items for index, tensor in _tensors_in(item).items()}


def _flags(tensors: Mapping[str, Tensor]) -> Snapshot:
    return {f"{name}.requires_grad": tensor.requires_grad for name, tensor in tensors.items()}
