"""The live view: what it says, how often, and that it says it on standard error alone."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from cispbench.harness.machine.progress import (
    BarView,
    PlainView,
    ProgressView,
    describe_loss,
    describe_seconds,
    index_progress,
    make_view,
)

TERMS = {"ce": 0.31, "kd": 0.22}


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """A pipe whose reader is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def screen(text: str) -> list[str]:
    """Return every state of the lines that ``text`` drew, without blanks and cursor movements."""
    drawn = text.replace("\x1b[A", "\r").replace("\n", "\r").split("\r")
    return [line.strip() for line in drawn if line.strip()]


@pytest.mark.parametrize(
    ("terms", "text"),
    [
        (TERMS, "loss 0.53 = ce 0.31 + kd 0.22"),
        ({"ce": 0.3, "pod": 0.00042}, "loss 0.30 = ce 0.30 + pod 4.2e-04"),
        ({"ce": 0.0}, "loss 0.00 = ce 0.00"),
        ({"ce": float("nan")}, "loss nan = ce nan"),
        ({}, "loss 0.00"),
    ],
)
def test_a_loss_is_written_as_its_sum(terms: dict[str, float], text: str) -> None:
    assert describe_loss(terms) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (12.4, "12 s"), (60, "1 min"), (12300, "3 h 25 min"), (2 * 86400 + 10800, "2 d 3 h")],
)
def test_a_duration_is_written_in_two_units(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text


def test_a_log_gets_one_line_a_minute() -> None:
    stream, clock = io.StringIO(), Clock()
    view = PlainView(stream, clock=clock)
    view.start_step(1, 6, "16-20", 487, 3000)
    for iteration in range(1, 181):
        clock.now += 1
        view.update(iteration, TERMS, 12.34)
    view.end_step("step 1/5: old 70.1, new 40.2, all 63.0")
    view.note("all done")
    assert stream.getvalue().splitlines() == [
        "step 1/5: classes 16-20, 487 images, 3000 iterations",
        "step 1/5: iteration 60/3000 (2 %), loss 0.53 = ce 0.31 + kd 0.22, 12.3 images/s, 49 min left",
        "step 1/5: iteration 120/3000 (4 %), loss 0.53 = ce 0.31 + kd 0.22, 12.3 images/s, 48 min left",
        "step 1/5: iteration 180/3000 (6 %), loss 0.53 = ce 0.31 + kd 0.22, 12.3 images/s, 47 min left",
        "step 1/5: old 70.1, new 40.2, all 63.0",
        "all done",
    ]


def test_the_time_left_of_a_resumed_step_counts_from_its_resumption() -> None:
    stream, clock = io.StringIO(), Clock()
    view = PlainView(stream, clock=clock)
    view.start_step(0, 1, "1-20", 10, 1100, start=1000)
    clock.now += 60
    view.update(1020, TERMS, 1.0)
    assert "1100 iterations from 1000" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("4 min left")


def test_evaluating_in_a_log_does_not_disturb_the_step_around_it() -> None:
    stream, clock = io.StringIO(), Clock()
    view = PlainView(stream, clock=clock)
    view.start_step(0, 2, "1-15", 10, 200)
    clock.now += 50
    view.update(50, TERMS, 1.0)
    for done in range(0, 21, 10):
        view.evaluating(done, 20)
        clock.now += 25
    clock.now += 35
    view.update(80, TERMS, 1.0)
    assert stream.getvalue().splitlines()[1:] == [
        "evaluating 10/20 (50 %), 25 s left",
        "step 0/1: iteration 80/200 (40 %), loss 0.53 = ce 0.31 + kd 0.22, 1.0 images/s, 4 min left",
    ]


def test_indexing_is_shown_as_a_count() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = index_progress(PlainView(stream, clock=clock))
    progress(0, 400)
    clock.now += 61
    progress(100, 400)
    progress(400, 400)
    assert stream.getvalue() == "reading data 100/400 (25 %), 3 min left\n"


def test_a_terminal_shows_a_bar_with_losses_speed_and_time_left() -> None:
    stream = Terminal()
    with BarView(stream) as view:
        view.start_step(1, 6, "16-20", 487, 4)
        view._step.mininterval = 0
        for iteration in range(1, 4):
            view.update(iteration, TERMS, 12.34)
        view.note("a remark")
        view.end_step("old 70.1")
    lines = screen(stream.getvalue())
    assert lines[0] == "step 1/5: classes 16-20, 487 images"
    bar = next(line for line in lines if "3/4" in line)
    assert bar.startswith("step 1/5:  75%|")
    assert bar.endswith("loss 0.53 = ce 0.31 + kd 0.22, 12.3 images/s]")
    assert "<00:" in bar
    assert "a remark" in lines
    assert lines[-1] == "old 70.1"


def test_a_terminal_shows_the_evaluation_below_the_step() -> None:
    stream = Terminal()
    with BarView(stream) as view:
        view.start_step(0, 2, "1-15", 10, 10, start=5)
        view.update(6, TERMS, 1.0)
        for done in range(4):
            view.evaluating(done, 3)
        assert view._counted is None
        view._step.mininterval = 0
        view.update(7, TERMS, 1.0)
    lines = screen(stream.getvalue())
    assert any(line.startswith("evaluating:   0%") for line in lines)
    assert any(line.startswith("step 0/1:  50%") for line in lines)
    assert any(line.startswith("step 0/1:  70%") for line in lines)


@pytest.mark.parametrize("terminal", [True, False])
def test_views_work_in_any_order(terminal: bool) -> None:
    view = make_view(Terminal() if terminal else io.StringIO())
    view.update(1, TERMS, 1.0)
    view.evaluating(0, 0)
    view.counting("reading masks", 1, 5)
    view.evaluating(1, 5)
    view.end_step("end")
    view.close()
    view.close()
    view.note("after the end")


def test_a_reader_that_leaves_does_not_end_the_training() -> None:
    view = PlainView(Broken())
    view.start_step(0, 1, "1-20", 1, 1)
    view.end_step("end")
    BarView(Broken()).note("remark")


def test_the_stream_decides_between_bar_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_view(Terminal()), BarView)
    assert isinstance(make_view(io.StringIO()), PlainView)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(make_view(), BarView)


def test_quiet_says_nothing_but_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    for view, said in ((make_view(quiet=True), "trouble\n"), (ProgressView(), "")):
        use(view)
        view.warn("trouble")
        assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("terminal", [True, False])
def test_every_other_view_shows_trouble_as_a_line_that_stays(terminal: bool) -> None:
    stream = Terminal() if terminal else io.StringIO()
    make_view(stream).warn("trouble")
    assert "trouble" in screen(stream.getvalue())


def test_a_standard_error_that_was_closed_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    for quiet in (True, False):
        make_view(quiet=quiet).warn("trouble")


def use(view: ProgressView) -> None:
    view.start_step(0, 1, "1-20", 1, 1)
    view.update(1, TERMS, 1.0)
    view.evaluating(1, 1)
    view.end_step("end")
    view.note("remark")
    view.close()


def test_nothing_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    for view in (make_view(), BarView(sys.stderr)):
        view.start_step(0, 1, "1-20", 1, 1)
        view.update(1, TERMS, 1.0)
        view.end_step("end")
    out, err = capsys.readouterr()
    assert out == ""
    assert "end" in err


def test_importing_the_view_imports_neither_tqdm_nor_torch() -> None:
    code = "import sys, cispbench.harness.machine.progress; print([m for m in ('tqdm', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
