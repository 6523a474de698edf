"""Stored steps that a run takes over, and that other code of its method trained."""

from __future__ import annotations

from collections.abc import Mapping

from cispbench.harness.runs.method_code import UNKNOWN
from cispbench.harness.runs.plan import PlannedMethod

TrainedBy = tuple[str | None, str | None]  # the method that a stored step was trained for, and the digest of its code


def is_other_code(method: PlannedMethod, trained_by: TrainedBy) -> bool:
    """Return whether a step was trained for this method by other code than today's; False where that is not known.

    A step that was trained for another method is shared by what its key holds, and says nothing of this one.
    """
    name, code = trained_by
    return name == method.name and code not in (None, method.code)


def code_warning(method: PlannedMethod, trained: Mapping[int, TrainedBy]) -> str | None:
    """Return what to say of the code of stored steps that a run takes over, or None.

    ``trained``: what trained them, by their index.
    """
    if method.code == UNKNOWN:
        return (
            f"the source of {method.name} is not found, so an edit of it is not noticed. Raise its version "
            f"({method.version}) whenever its results change."
        )
    other = {step: str(code) for step, (name, code) in trained.items() if is_other_code(method, (name, code))}
    if not other:
        return None
    digests = " and ".join(sorted({code[:10] for code in other.values()}))
    return (
        f"stored steps of {method.name} were trained by other code: {', '.join(map(str, other))} (its digest was "
        f"{digests}, and is {method.code[:10]}; the version is still {method.version}). Raise the version if results "
        "change. To compare, train again in new folders (--out, --steps-dir)."
    )
