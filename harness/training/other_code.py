"""Whether a checkpoint or a stored step was trained by other code of its method than today's."""

from __future__ import annotations

TrainedBy = tuple[str | None, str | None]  # a method's name, and the digest of its code


def is_other_code(now: TrainedBy, by: TrainedBy) -> bool:
    """Return whether a method was edited between ``by`` and ``now``; False where that is not known.

    What was trained for another method is the same for all that share it, and says nothing of this one.
    """
    return now[0] == by[0] and None not in (now[1], by[1]) and now[1] != by[1]
