"""Stored steps that a run takes over, and that other code of its method trained."""

from __future__ import annotations

from collections.abc import Mapping

from cispbench.harness.runs.declared import PlannedMethod
from cispbench.harness.runs.method_code import UNKNOWN
from cispbench.harness.training.other_code import TrainedBy, is_other_code


def code_warning(method: PlannedMethod, trained: Mapping[int, TrainedBy]) -> str | None:
    """Return what to say of the code of stored steps that a run takes over, or None.

    ``trained``: what trained them, by their index.
    """
    if method.code == UNKNOWN:
        return (
            f"the source of {method.name} is not found, so an edit of it is not noticed. Raise its version "
            f"({method.version}) whenever its results change."
        )
    now = method.name, method.code
    other = {step: str(by[1]) for step, by in trained.items() if is_other_code(now, by)}
    if not other:
        return None
    digests = " and ".join(sorted({code[:10] for code in other.values()}))
    return (
        f"stored steps of {method.name} were trained by other code: {', '.join(map(str, other))} (its digest was "
        f"{digests}, and is {method.code[:10]}; the version is still {method.version}). Raise the version if results "
        "change. To compare, train again in new folders (--out, --steps-dir)."
    )
