"""The exemplars that a step trains on, with the labels that they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cispbench.harness.method import Exemplar, Memory
from cispbench.splits.errors import MethodError
from cispbench.splits.settings import VOID, Setting
from cispbench.splits.strict_fields import check_ranges


@dataclass(frozen=True)
class ExemplarSet:
    """The exemplars of ``step`` in the order of their selection, and how it trains on them.

    ``tables``: the label table of each; two of the same image may differ.
    """

    memory: Memory
    step: int
    kept: tuple[Exemplar, ...]
    tables: tuple[tuple[int, ...], ...]

    @property
    def ids(self) -> list[str]:
        """The images, in order."""
        return [exemplar.id for exemplar in self.kept]

    @property
    def origins(self) -> list[int]:
        """The step that each was selected for."""
        return [exemplar.step for exemplar in self.kept]


def exemplar_set(memory: Memory, kept: Sequence[Exemplar], setting: Setting, step: int) -> ExemplarSet:
    """Return the exemplars with the labels that ``memory.labels`` says."""
    tables = {
        "step": lambda exemplar: setting.label_table(step),
        "origin": lambda exemplar: setting.label_table(exemplar.step),
        "seen": lambda exemplar: seen_table(setting, step),
    }
    return ExemplarSet(memory, step, tuple(kept), tuple(map(tables[memory.labels], kept)))


def seen_table(setting: Setting, step: int) -> tuple[int, ...]:
    """Return a label table with the index of every class learnt up to ``step``; later classes are background."""
    known = setting.num_classes(step)
    return tuple(0 if known <= label < VOID else label for label in setting.test_table())


def check_memory(method: str, memory: Memory, batch: int) -> None:
    """Raise MethodError unless a method's memory can be used in batches of this size."""
    try:
        check_ranges(memory, MethodError)
    except MethodError as error:
        raise MethodError(f"the memory of {method}: {error.message}") from error
    if memory.use == "replace" and replaced_places(memory, batch) < 1:
        raise MethodError(
            f"the memory of {method} has no place in a batch of {batch}: its share is {memory.share:g}.",
            hint="Use a larger batch or a larger share.",
        )


def replaced_places(memory: Memory, batch: int) -> int:
    """Return how many places of a batch exemplars take with "replace"."""
    return int(memory.share * batch)
