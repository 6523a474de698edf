"""Methods that change another one, which their options name: EWF over MiB or PLOP, for example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cispbench.harness.method import Batch, Companion, Exemplar, Group, Memory, Method, Output, StepContext
from cispbench.splits.settings import Setting

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "base."  # of the base's names in the state


@dataclass(frozen=True)
class WrapperOptions:
    """``base``: the name of the method that is wrapped. ``base_options``: its options, as its own recipe has them."""

    base: str
    base_options: dict[str, Any] = field(default_factory=dict)


class Wrapper(Method):
    """A method that changes another one, its base: what it does not override is the base's.

    Its ``Options`` extend ``WrapperOptions``. The harness makes the base (``harness/registry.py``), and merges the
    base's recipe under the wrapper's. Facts of the class hold for both: a wrapper needs what its base needs.
    """

    Options = WrapperOptions

    def __init__(self, options: Any, base: Method) -> None:
        super().__init__(options)
        self.base = base
        cls = type(self)
        # Set on the instance: they depend on the base, which is known only now.
        facts = {
            "joint": base.joint,
            "shared_base": cls.shared_base and base.shared_base,
            "needs": cls.needs | base.needs,
            "reads_previous": base.reads_previous,
            "micro_batches": cls.micro_batches and base.micro_batches,
            "devices": cls.devices and base.devices,
        }
        vars(self).update(facts)

    def unsupported(self, setting: Setting, model: str) -> str | None:
        """Return the base's reason."""
        return self.base.unsupported(setting, model)

    def layout(self, setting: Setting, step: int) -> tuple[Group, ...]:
        """Return the base's groups."""
        return self.base.layout(setting, step)

    def phases(self, setting: Setting, step: int) -> tuple[str, ...]:
        """Return the base's phases."""
        return self.base.phases(setting, step)

    def companions(self, setting: Setting) -> tuple[Companion, ...]:
        """Return the base's companions."""
        return self.base.companions(setting)

    def memory(self) -> Memory | None:
        """Return the base's memory."""
        return self.base.memory()

    def select_exemplars(
        self, images: Iterable[Batch], kept: Sequence[Exemplar], context: StepContext
    ) -> list[Exemplar]:
        """Return the base's choice."""
        return self.base.select_exemplars(images, kept, context)

    def initialise(self, context: StepContext) -> None:
        """Initialise as the base does."""
        self.base.initialise(context)

    def before_training(self, context: StepContext, batches: Iterable[Batch]) -> None:
        """Measure what the base measures."""
        self.base.before_training(context, batches)

    def prepare(self, batch: Batch, context: StepContext) -> Batch:
        """Return the base's batch."""
        return self.base.prepare(batch, context)

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the base's terms."""
        return self.base.losses(batch, output, previous, context)

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        """Return the base's counts."""
        return self.base.counts(batch, previous, context)

    def after_gradients(self, gradients: Mapping[str, Tensor], context: StepContext) -> None:
        """Do what the base does."""
        self.base.after_gradients(gradients, context)

    def after_training(self, context: StepContext) -> None:
        """Do what the base does."""
        self.base.after_training(context)

    def scores(self, output: Output) -> Tensor:
        """Return the base's scores."""
        return self.base.scores(output)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the base's state; a wrapper adds its own."""
        return {f"{_PREFIX}{name}": tensor for name, tensor in self.base.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the base's state back."""
        own = {name: tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
        self.base.load_state_dict({name.removeprefix(_PREFIX): tensor for name, tensor in own.items()})


def overrides(method: Method, name: str) -> bool:
    """Return whether a method, or the one that it wraps, has a function ``name`` of its own, not that of ``Method``."""
    own = getattr(type(method), name)
    if isinstance(method, Wrapper) and own is getattr(Wrapper, name):
        return overrides(method.base, name)
    return own is not getattr(Method, name)
