"""What a check reports: violations of rules, the result of each rule, and the report of a method."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

RuleOutcome = Literal["kept", "broken", "skipped", "unchecked"]
WORST_FIRST: tuple[RuleOutcome, ...] = ("broken", "unchecked", "kept", "skipped")


class NotApplicable(Exception):  # noqa: N818 (an answer of a rule, not an error)
    """The rule does not apply to this method with this model; the message says why."""


class Unchecked(Exception):  # noqa: N818 (an answer of a rule, not an error)
    """The rule cannot be checked, because the method breaks another rule."""


@dataclass(frozen=True)
class Location:
    """Where a violation was found; ``iteration`` counts from 0."""

    model: str
    setting: str
    step: int | None = None
    iteration: int | None = None
    term: str | None = None

    def __str__(self) -> str:
        parts = [self.model, self.setting]
        parts += [f"{name} {value}" for name, value in list(asdict(self).items())[2:] if value is not None]
        return ", ".join(parts)


@dataclass(frozen=True)
class Violation:
    """What breaks a rule, where, and what to do; ``found`` is a sentence without its full stop."""

    found: str
    place: Location
    advice: str

    def __str__(self) -> str:
        return f"{self.found} ({self.place}). {self.advice}"


@dataclass(frozen=True)
class RuleResult:
    """One rule's outcome with one model; ``note`` says why it was skipped or unchecked, or what was left out.

    ``asks`` is the rule's requirement, one sentence.
    """

    rule: str
    asks: str
    model: str
    outcome: RuleOutcome
    note: str = ""
    findings: tuple[Violation, ...] = ()


@dataclass(frozen=True)
class ContractReport:
    """All results of a method; ``unsupported`` gives the reason for each model that the method does not support."""

    method: str
    results: tuple[RuleResult, ...]
    unsupported: dict[str, str]
    seconds: float

    @property
    def broken(self) -> list[str]:
        """Return the names of the broken rules, in the contract's order."""
        return list(dict.fromkeys(result.rule for result in self.results if result.outcome == "broken"))

    @property
    def keeps(self) -> bool:
        """Whether the method keeps the contract with every model it supports, and supports at least one."""
        return bool(self.results) and all(result.outcome in ("kept", "skipped") for result in self.results)

    def rows(self) -> list[tuple[str, RuleOutcome, str]]:
        """Return one row per rule: its name, its worst outcome over the models, and notes."""
        lines = []
        for name in dict.fromkeys(result.rule for result in self.results):
            results = [result for result in self.results if result.rule == name]
            outcome = min((result.outcome for result in results), key=WORST_FIRST.index)
            notes: dict[str, list[str]] = {}
            for result in results:
                note = result.findings[0].found if result.findings else result.note
                if note:
                    notes.setdefault(note, []).append(result.model)
            # A note that holds for every model is shown without the models' names.
            shown = [note if len(m) == len(results) else f"{', '.join(m)}: {note}" for note, m in notes.items()]
            lines.append((name, outcome, "; ".join(shown)))
        return lines

    def errors(self) -> list[str]:
        """Return one line per broken rule and model: the rule, what was found, where, and what to do."""
        lines = [
            f"{self.method} breaks {result.rule}: {result.findings[0]}" for result in self.results if result.findings
        ]
        if not self.results:
            reasons = "; ".join(f"{model}: {reason}" for model, reason in self.unsupported.items())
            lines.append(
                f"{self.method} serves none of the models it was checked with: {reasons}. "
                "Check it with one that it serves (--model), or correct `unsupported`."
            )
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON holds it."""
        return {
            "method": self.method,
            "keeps": self.keeps,
            "broken": self.broken,
            "unsupported": self.unsupported,
            "seconds": round(self.seconds, 2),
            "results": [asdict(result) for result in self.results],
        }
