"""A rule of the contract: a function that judges a bench, with its name and what it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cispbench.harness.contract.bench import Bench
from cispbench.harness.contract.verdict import Finding

# A rule yields what breaks it, and in plain words what it had to leave out.
Judge = Callable[[Bench], Iterator[Finding | str]]


@dataclass(frozen=True)
class Rule:
    """A rule by its stable name; ``asks`` says in one sentence what every method has to keep."""

    name: str
    asks: str
    judge: Judge


def rule(judge: Judge) -> Rule:
    """Make a rule of a function: its name with hyphens, and its docstring's first paragraph as what it asks."""
    asks = (judge.__doc__ or "").strip().partition("\n\n")[0]
    return Rule(judge.__name__.replace("_", "-"), " ".join(asks.split()), judge)
