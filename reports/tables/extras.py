"""What a row used besides the images and labels of each step: exemplars (its memory), and supervision beyond labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from cispbench.reports.tables.runs import Run
from cispbench.results.published_methods import UNKNOWN, MethodFacts
from cispbench.results.record_fields import StepFacts

NO, NOT_KNOWN = "no", "not known"


class Extras(NamedTuple):
    """Texts such as ``100 images, 3.1 MiB`` and ``saliency maps``; ``no`` for nothing used, None where not known."""

    memory: str | None
    supervision: str | None

    @property
    def keeps_images(self) -> bool | None:
        """Whether training images of earlier steps are stored; None where not known."""
        return None if self.memory is None else self.memory != NO

    @property
    def more_than_labels(self) -> bool | None:
        """Whether it learns from more than the labels of the data set; None where not known."""
        return None if self.supervision is None else self.supervision != NO


def published_extras(facts: MethodFacts, dataset: str) -> Extras:
    """Return what is known of a published method on a data set."""
    memory = facts.memory if facts.exemplars in (True, None) else NO
    return Extras(memory, facts.supervision if facts.extra_supervision(dataset) in (True, None) else NO)


def measured_extras(runs: Iterable[Run], facts: MethodFacts = UNKNOWN) -> Extras:
    """Return what the records of runs on one data set say of their last steps.

    A record made here that names nothing used nothing. Of others, and of steps that were trained elsewhere, nothing
    follows from that: then the ``facts`` of the method count.
    """
    runs = list(runs)
    trained_here = all(run.facts.origin == "measured" and not run.imported for run in runs)
    otherwise = Extras(NO, NO) if trained_here else published_extras(facts, runs[0].facts.dataset)
    memory, supervision = recorded_texts([run.facts for run in runs])
    return Extras(memory or otherwise.memory, supervision or otherwise.supervision)


def recorded_texts(records: Sequence[StepFacts]) -> tuple[str, str]:
    """Return the memory and the supervision that records name, "" where they name none."""
    kept = [record.exemplars for record in records if record.exemplars is not None]
    sizes = _range(str, (one.images for one in kept)), _range(_size, (one.bytes for one in kept))
    maps = dict.fromkeys(name for record in records for name in record.supervision)
    return f"{sizes[0]} images, {sizes[1]}" if kept else "", f"{', '.join(maps)} maps" if maps else ""


def extra_columns(rows: Sequence[Extras]) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns that any of the rows has something to say in, and the texts of each row."""
    names = [name for name in Extras._fields if any(getattr(row, name) not in (None, NO) for row in rows)]
    return names, [[getattr(row, name) or NOT_KNOWN for name in names] for row in rows]


def _range(text: Callable[[int], str], values: Iterable[int]) -> str:
    found = sorted(values)
    return " to ".join(dict.fromkeys(text(value) for value in (*found[:1], *found[-1:])))


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
