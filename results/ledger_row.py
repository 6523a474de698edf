"""A row of the ledger as its file holds it, and what follows from its facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cispbench.results.documents import documents, kind_of
from cispbench.splits.errors import StoreError, nearest

NUMBERS = ("old", "new", "all")


@dataclass(frozen=True)
class Also:
    """Another place that prints a row's numbers.

    ``gives``: those that are taken from there, as the first place does not print them or with fewer digits; ``prints``:
    those that differ there in the last digit.
    """

    document: str
    place: str
    gives: tuple[Literal["old", "new", "all"], ...] = ()
    prints: Mapping[str, float] = field(default_factory=dict)
    note: str | None = None

    def __post_init__(self) -> None:
        wrong = [f"prints has {name!r}. {nearest(name, NUMBERS)}" for name in self.prints if name not in NUMBERS]
        if wrong:
            raise StoreError(" ".join(wrong))


@dataclass(frozen=True)
class LedgerRow:
    """A row as its file holds it: percentages, null where no document prints one; the facts its kind follows from."""

    dataset: str
    setting: str
    method: str
    backbone: str
    old: float | None
    new: float | None
    all: float | None
    document: str
    place: str
    run_by: str | None
    run_by_inferred: bool = False
    also: tuple[Also, ...] = ()
    note: str | None = None
    assignment: str | None = None

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in NUMBERS}
        wrong = [f"{name} is {text!r}, not text" for name, text in vars(self).items()
                 if isinstance(text, str) and not text.strip()]  # fmt: skip
        wrong += [f"{name} is {number}, not a percentage" for name, number in numbers.items()
                  if number is not None and not 0 <= number <= 100]  # fmt: skip
        if all(number is None for number in numbers.values()):
            wrong.append("none of old, new and all is given")
        places = [(self.document, self.place), *((other.document, other.place) for other in self.also)]
        if len(set(places)) < len(places):
            wrong.append("also names a place twice, or that of the row itself")
        if self.run_by_inferred and self.run_by is None:
            wrong.append("run_by_inferred is true, and run_by is null")
        cited = {"document": self.document, "run_by": self.run_by or self.document}
        cited |= {f"also[{n}].document": other.document for n, other in enumerate(self.also)}
        wrong += [f"{name} is {cited_id!r}, which documents.yaml does not list. {nearest(cited_id, documents())}"
                  for name, cited_id in cited.items() if cited_id not in documents()]  # fmt: skip
        if wrong:
            raise StoreError(f"{'; '.join(text.rstrip('.') for text in wrong)}.")

    def stated(self) -> dict[str, Any]:
        """Return what follows from the facts: the columns of the frame that the file does not hold."""
        known = documents()
        cited = (self.run_by, self.document, *(other.document for other in self.also))
        every = dict.fromkeys(link for name in cited if name is not None for link in known[name].links)
        return {
            "kind": kind_of(self.method, self.document, self.run_by),
            "source": f"{known[self.document].cited}, {self.place}",
            "run_by": None if self.run_by is None else known[self.run_by].runners,
            "also": tuple(_text(other) for other in self.also),
            "links": tuple(every),
        }


def _text(other: Also) -> str:
    parts = [f"{documents()[other.document].cited}, {other.place}"]
    if other.gives:
        parts.append(f"({' and '.join(other.gives)} from there)")
    if other.prints:
        parts.append(f"(prints {', '.join(f'{name} {number}' for name, number in other.prints.items())})")
    return " ".join([*parts, f"[{other.note}]"] if other.note else parts)
