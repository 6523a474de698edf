"""A method restored from its state: in the middle of a step, as a resumed process restores one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from cispbench.harness.contract.trace import State, StepTrace, copy_of
from cispbench.harness.machine.seeds import random_states, restore_random_states
from cispbench.harness.method import Batch, Method, Output, StepContext

CPU = torch.device("cpu")


def through_files(state: Mapping[str, Tensor]) -> State:
    """Return the state as it comes back from the step store's files. Raises whatever a state that is none causes."""
    return load(save({name: tensor.cpu().contiguous() for name, tensor in state.items()}))


class Shadow:
    """An instance restored from the state in the middle of a step, as a resumed process restores one."""

    def __init__(self, fresh: Callable[[], Method], inner: Method, step: StepTrace, context: StepContext) -> None:
        chance = random_states(CPU)
        self._error: str | None = None
        self._model = copy.deepcopy(step.start)
        self._method = fresh()
        try:
            if step.kept_before is not None:
                self._method.load_state_dict(copy_of(step.kept_before))
            self._method.initialise(replace(context, model=self._model))
            self._method.load_state_dict(through_files(inner.state_dict()))
        except Exception as error:  # noqa: BLE001 (whatever a plug-in raises is a finding)
            self._error = _told("it cannot be restored", error)
        restore_random_states(chance, CPU)

    def losses(
        self, batch: Batch, output: Output, previous: Output | None, context: StepContext, chance: dict[str, Any]
    ) -> dict[str, Tensor] | str:
        """Return the terms for the same arguments and the same chance, or what went wrong."""
        if self._error is not None:
            return self._error
        after = random_states(CPU)
        restore_random_states(chance, CPU)
        self._model.load_state_dict(context.model.state_dict())
        self._model.train(context.model.training)
        try:
            terms = self._method.losses(batch, output, previous, replace(context, model=self._model))
            return {name: term.detach().clone() for name, term in terms.items()}
        except Exception as error:  # noqa: BLE001 (whatever a plug-in raises is a finding)
            return _told("its losses fail", error)
        finally:
            restore_random_states(after, CPU)

    def part(
        self, batch: Batch, output: Output, previous: Output | None, context: StepContext
    ) -> tuple[dict[str, float], dict[str, float]] | str:
        """Return the terms of a part of a batch, and over how many things each is a mean ("": images)."""
        if self._error is not None:
            return self._error
        self._model.load_state_dict(context.model.state_dict())
        self._model.train(context.model.training)
        context = replace(context, model=self._model)
        try:
            terms = self._method.losses(batch, output, previous, context)
            counts = self._method.counts(batch, previous, context)
            found = {name: float(term.detach()) for name, term in terms.items()}
            return found, {"": float(len(batch.ids)), **{name: float(count) for name, count in counts.items()}}
        except Exception as error:  # noqa: BLE001 (whatever a plug-in raises is a finding)
            return _told("for a part of a batch it fails", error)


def _told(what: str, error: Exception) -> str:
    return f"{what}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"


def file_error(state: Any) -> str | None:
    """Return why a method's state cannot be kept in the step store's files, None if it can."""
    try:
        through_files(state)
    except Exception as error:  # noqa: BLE001 (a state of the wrong kind fails in its own way)
        return _told("it cannot be written", error)
    return None
