"""What the process of a step tells its sweep: events by type, and no meaning in their text."""

from __future__ import annotations

import pytest

from cispbench.harness.sweep.events import (
    EventView,
    StepEvent,
    StepFailed,
    StepFinished,
    StepProgress,
    StepTrouble,
    StepWaiting,
    sending_the_end,
)
from cispbench.splits.errors import RunError


def test_a_view_sends_progress_troubles_and_waits_and_no_other_line() -> None:
    sent: list[StepEvent] = []
    view = EventView(sent.append, every=0.0)
    view.note("another process is already at work")
    view.waiting("somebody is at it")
    view.warn("a file is damaged")
    view.start_step(1, 3, "11-15", 20, 100, start=40)
    view.update(41, {"cross_entropy": 1.0}, 2.0)
    assert sent[:2] == [StepWaiting("somebody is at it"), StepTrouble("a file is damaged")]
    assert sent[2:] == [StepProgress(40, 100), StepProgress(41, 100)]


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (RunError("a reason.", hint="Do this."), StepFailed("a reason. Do this.")),
        (ValueError("a slip\nand more"), StepFailed("ValueError: a slip")),
        (SystemExit(143), None),
        (None, StepFinished()),
    ],
)
def test_the_end_is_sent_and_the_error_goes_on(error: BaseException | None, event: StepEvent | None) -> None:
    sent: list[StepEvent] = []
    if error is None:
        with sending_the_end(sent.append):
            pass
    else:
        with pytest.raises(type(error)), sending_the_end(sent.append):
            raise error
    assert sent == ([] if event is None else [event])
