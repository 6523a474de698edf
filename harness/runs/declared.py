"""What a method declares of itself, looked at when a run is planned: may it be trained, and as it was asked for?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cispbench.harness.data.exemplars import check_memory
from cispbench.harness.method import Companion, Group, Memory, Method
from cispbench.harness.models.catalogue import model_spec
from cispbench.harness.recipes.fields import Recipe
from cispbench.harness.recipes.selectors import check_selectors
from cispbench.harness.runs.method_code import code_of, is_built_in
from cispbench.harness.step import TRAIN
from cispbench.harness.wrapper import overrides
from cispbench.results.record_fields import method_title
from cispbench.splits.errors import MethodError, RecipeError, UsageError, nearest
from cispbench.splits.settings import Setting
from cispbench.splits.strict_fields import check_ranges


@dataclass(frozen=True)
class PlannedMethod:
    """The method by its entry point's name, with its version, all its options, and what it says of its steps.

    ``code``: the digest of its code, or UNKNOWN (see ``method_code.py``). ``built_in``: it comes with cispbench.
    ``companions`` and ``memory``: what it declares.
    """

    name: str
    version: int
    options: Mapping[str, Any]
    joint: bool
    shared_base: bool
    code: str
    built_in: bool
    companions: tuple[Companion, ...] = ()
    memory: Memory | None = None

    @property
    def title(self) -> str:
        """The name in tables: "mib", or "ewf over mib"."""
        return method_title(self.name, self.options)

    def trains(self, step: int) -> bool:
        """Whether the method itself trains a step: a step 0 that methods share is trained by the harness."""
        return step > 0 or not self.shared_base

    def trained_with(self, step: int) -> tuple[Companion, ...]:
        """Return the companions that a step is trained with."""
        return self.companions if self.trains(step) else ()

    def map_steps(self, step: int, first: int) -> tuple[int, ...]:
        """Return the steps whose maps ``step`` reads: its own, with a memory all from ``first`` on."""
        return tuple(range(first, step + 1)) if self.memory else (step,)


def plan_method(method: Method, learnt: Setting, recipe: Recipe) -> PlannedMethod:
    """Return the method with what it declares. Raises MethodError for a memory that cannot be used."""
    memory = method.memory()
    if memory is not None:
        later = range(1, len(learnt.steps))
        batches = {recipe.phase(step, name).batch for step in later for name in method.phases(learnt, step)}
        for batch in sorted(batches):
            check_memory(method.name, memory, batch)
    return PlannedMethod(
        method.name, method.version, asdict(method.options), method.joint, method.shared_base, code_of(method),
        is_built_in(type(method)), tuple(method.companions(learnt)), memory,
    )  # fmt: skip


def plan_phases(method: Method, learnt: Setting, recipe: Recipe) -> list[tuple[str, ...]]:
    """Return the names of each step's phases; those of a shared step 0, which the harness trains, are not asked for.

    Raises MethodError for a step without a phase, or with one twice; RecipeError for a phase that no step has, and for
    a selector that names nothing of the network.
    """
    found = [
        (TRAIN,) if step == 0 and method.shared_base else tuple(method.phases(learnt, step))
        for step in range(len(learnt.steps))
    ]
    for step, names in enumerate(found):
        if not names or len(set(names)) < len(names):
            raise MethodError(f"{method.name} has the phases {names} at step {step}: at least one, and each once.")
    known = dict.fromkeys(name for names in found for name in names)
    for name in recipe.phases:
        if name not in known:
            raise RecipeError(f"recipe: phases.{name}: {method.name} has no such phase.", hint=nearest(name, known))
    # Now, not when the step is trained: a slip in a later step would be found hours afterwards.
    roles: list[str] = []
    for step, names in enumerate(found):
        roles += [group.role for group in method.layout(learnt, step)]
        for name in names:
            check_selectors(recipe.phase(step, name), step, roles, model_spec(recipe.model).sections)
    return found


def check_declared(method: Method, learnt: Setting, devices: int, micro_batch: int | None) -> None:
    """Raise MethodError for declarations that contradict each other, UsageError for a division that is not served.

    ``learnt``: the setting as the method learns it.
    """
    _check_division(method, devices, micro_batch)
    _check_companions(method.name, method.companions(learnt))
    memory: object = method.memory()
    if memory is not None and not isinstance(memory, Memory):
        raise MethodError(f"the memory of {method.name} is no Memory, but {memory!r}.", hint="Correct `memory`.")
    if memory is not None and not overrides(method, "select_exemplars"):
        raise MethodError(
            f"{method.name} has a memory, and nothing says which images are kept.", hint="Write `select_exemplars`."
        )
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
