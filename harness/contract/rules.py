"""A rule of the contract: a function that examines what the trainings of a ``Bench`` have recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cispbench.harness.contract.bench import Bench
from cispbench.harness.contract.verdict import NotApplicable, RuleOutcome, RuleResult, Unchecked, Violation

# A rule yields violations. A string that it yields is a note: what the rule had to leave out, and why.
Examination = Callable[[Bench], Iterator[Violation | str]]


@dataclass(frozen=True)
class Rule:
    """A rule with its stable name; ``requirement`` says in one sentence what every method must do."""

    name: str
    requirement: str
    examine: Examination

    def result(self, bench: Bench) -> RuleResult:
        """Examine the method and model of a bench."""
        violations: list[Violation] = []
        notes: list[str] = []
        outcome: RuleOutcome = "kept"
        try:
            for found in self.examine(bench):
                if isinstance(found, Violation):
                    violations.append(found)
                else:
                    notes.append(found)
        except NotApplicable as reason:
            outcome, notes = "skipped", [str(reason)]
        except Unchecked as reason:
            outcome, notes = "unchecked", [str(reason)]
        # A violation found before the rule gave up still counts.
        if violations:
            outcome = "broken"
        note = "; ".join(dict.fromkeys(notes))
        return RuleResult(self.name, self.requirement, bench.model, outcome, note, tuple(violations))


def rule(examine: Examination) -> Rule:
    """Make a rule of a function: from its name, with hyphens, and from the first paragraph of its docstring."""
    requirement = (examine.__doc__ or "").strip().partition("\n\n")[0]
    return Rule(examine.__name__.replace("_", "-"), " ".join(requirement.split()), examine)
