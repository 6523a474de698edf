"""What a method declares of itself, looked at when a run is planned: may it be trained, and as it was asked for?"""

from __future__ import annotations

from collections.abc import Sequence

from cispbench.harness.method import Companion, Group, Memory, Method
from cispbench.harness.wrapper import overrides
from cispbench.splits.errors import MethodError, UsageError
from cispbench.splits.settings import Setting
from cispbench.splits.strict_fields import check_ranges


def check_declared(method: Method, learnt: Setting, devices: int, micro_batch: int | None) -> None:
    """Raise MethodError for declarations that contradict each other, UsageError for a division that is not served.

    ``learnt``: the setting as the method learns it.
    """
    _check_division(method, devices, micro_batch)
    _check_companions(method.name, method.companions(learnt))
    memory: object = method.memory()
    if memory is not None and not isinstance(memory, Memory):
        raise MethodError(f"the memory of {method.name} is no Memory, but {memory!r}.", hint="Correct `memory`.")
    for step in range(len(learnt.steps)):
        _check_step(method, learnt, step)


def _check_division(method: Method, devices: int, micro_batch: int | None) -> None:
    reason = f"{method.name} has terms of the loss that need the whole batch"
    if micro_batch is not None and not method.micro_batches:
        raise UsageError(
            f"{reason}: --micro-batch would give other results without an error.", hint="Leave --micro-batch out."
        )
    if devices > 1 and not method.devices:
        raise UsageError(f"{reason} on one device: it cannot be trained on {devices}.", hint="Use --devices 1.")


def _check_companions(method: str, companions: Sequence[object]) -> None:
    names: set[str] = set()
    for one in companions:
        if not isinstance(one, Companion):
            raise MethodError(f"a companion of {method} is no Companion, but {one!r}.", hint="Correct `companions`.")
        try:
            check_ranges(one, MethodError)
        except MethodError as error:
            raise MethodError(f"a companion of {method}: {error.message}") from error
        if not one.name or one.name in names:
            fault = f"{one.name!r} is there twice" if one.name else "its name is empty"
            raise MethodError(f"a companion of {method}: {fault}.", hint="Batches hold the maps by their names.")
        names.add(one.name)


def _check_step(method: Method, learnt: Setting, step: int) -> None:
    name, layout = method.name, method.layout(learnt, step)
    if any(group.extra for group in layout) and not overrides(method, "scores"):
        raise MethodError(
            f"the layout of {name} at step {step} has channels that are no classes, and nothing says which class a "
            "pixel has.",
            hint="Write `scores`.",
        )
    held = sum(group.classes for earlier in range(step + 1) for group in method.layout(learnt, earlier))
    if not learnt.num_classes(step) <= held <= learnt.num_classes(len(learnt.steps) - 1):
        raise MethodError(
            f"the layouts of {name} up to step {step} hold {held} classes, and the steps add "
            f"{learnt.num_classes(step)}.",
            hint="Correct `layout`.",
        )
    if step == 0 and method.shared_base and layout != (Group(learnt.new_classes(0)),):
        raise MethodError(
            f"{name} shares its base with other methods, and has another layout at step 0.",
            hint="Set shared_base = False in its class.",
        )
