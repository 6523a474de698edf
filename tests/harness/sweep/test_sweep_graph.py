"""The graph of a sweep's steps: what is shared, what is known of each, what is left and what it costs."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Method
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import load_method
from cispbench.harness.runs.image_lists import ImageLists
from cispbench.harness.runs.plan import RunPlan, plan_run, step_iterations
from cispbench.harness.runs.request import RunRequest
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.sweep.display import LiveView, SweepView
from cispbench.harness.sweep.graph import Graph, Need, Node, StepState, build_graph
from cispbench.harness.sweep.matrix import SweepRequest, expand
from cispbench.harness.sweep.planning import SweepPlan, plan_sweep
from cispbench.harness.sweep.slots import WorkerSlots
from cispbench.methods.mbs import MBS
from cispbench.splits.errors import DataError, UsageError
from cispbench.splits.selection import golden_list, golden_steps
from cispbench.splits.settings import parse_setting


@pytest.fixture(scope="module")
def scenes() -> SyntheticSource:
    return SyntheticSource("voc", train=40, val=4, size=24)


@pytest.fixture(scope="module")
def plan(scenes: SyntheticSource) -> Callable[..., RunPlan]:
    def make(method: str, setting: str, seed: int = 0, **more: object) -> RunPlan:
        cls, chosen = load_method(method), parse_setting(setting)
        recipe = load_recipe(cls, chosen, "quick", "segmenter-tiny", ["optim.iterations=10", "later.iterations=4"])
        return plan_run(setting=chosen, method=cls(cls.Options()), recipe=recipe, profile="quick", seed=seed,
                        source=scenes, **more)  # type: ignore[arg-type]  # fmt: skip

    return make


def graph_of(runs: Sequence[RunPlan], **states: str) -> Graph:
    """Return the graph where a step whose name holds a key's text is in that state, and every other one missing."""

    def find(key: str, needs: Sequence[Need], iterations: int) -> StepState:
        first = needs[0]
        name = f"{first.run.method.name}_{first.planned.step}"
        return StepState(states.get(name, "missing"), seconds=float(iterations), bytes=100)  # type: ignore[arg-type]

    return build_graph(runs, find)


def test_a_base_is_one_step_for_all_methods_and_tasks_that_share_it(plan: Callable[..., RunPlan]) -> None:
    runs = [plan(m, s) for s in ("overlapped-10-5", "overlapped-10-10") for m in ("finetune", "mib")]
    graph = graph_of(runs)
    base, *later = graph.nodes
    assert (base.step, base.shared_by, base.methods) == (0, 4, ("finetune", "mib"))
    assert base.settings == ("overlapped-10-5", "overlapped-10-10")
    # Step 1 of 10-5 and of 10-10 learn different classes; step 2 exists in 10-5 alone.
    assert [(node.step, node.shared_by) for node in later] == [(1, 1)] * 4 + [(2, 1)] * 2
    assert {node.previous for node in later if node.step == 1} == {base.key}


def test_counts_with_and_without_sharing(plan: Callable[..., RunPlan]) -> None:
    runs = [plan(method, "overlapped-10-10") for method in ("finetune", "mib", "plop")]
    base, last = (len(step.images) for step in runs[0].steps)
    graph = graph_of(runs)
    shared, alone = graph.shared(), graph.unshared()
    assert (shared.steps, shared.images, shared.iterations) == (4, base + 3 * last, 10 + 3 * 4)
    assert (alone.steps, alone.images, alone.iterations) == (6, 3 * (base + last), 3 * (10 + 4))
    done = graph_of(runs, finetune_0="done", mib_1="trained", plop_1="stale")
    assert done.remaining().steps == 2
    assert done.remaining_seconds() == (8.0, 0)
    assert done.remaining_bytes() == (200, 0)
    assert done.states() == {"done": 1, "missing": 1, "trained": 1, "stale": 1}


def test_costs_that_nothing_measured_covers_are_counted_not_guessed(plan: Callable[..., RunPlan]) -> None:
    graph = build_graph([plan("mib", "overlapped-10-10")], lambda key, needs, iterations: StepState("missing"))
    assert graph.remaining_seconds() == (0, 2)
    assert graph.remaining_bytes() == (0, 2)


def test_weights_that_are_gone_are_trained_again_only_where_a_later_step_needs_them(
    plan: Callable[..., RunPlan],
) -> None:
    runs = [plan("mib", "overlapped-10-5")]
    kept = graph_of(runs, mib_0="recorded", mib_1="recorded", mib_2="recorded")
    assert kept.remaining().steps == 0
    needed = graph_of(runs, mib_0="recorded", mib_1="recorded")
    assert [node.state for node in needed.nodes] == ["missing"] * 3
    half = graph_of(runs, mib_0="recorded", mib_1="done")
    assert [node.state for node in half.nodes] == ["recorded", "done", "missing"]


def test_steps_kept_apart_share_nothing_and_differ_in_nothing_else(plan: Callable[..., RunPlan]) -> None:
    runs = [plan(method, "overlapped-10-10", share=False) for method in ("finetune", "mib")]
    graph = graph_of(runs)
    assert graph.shared() == graph.unshared()
    assert [step.list_sha256 for step in runs[0].steps] == [
        step.list_sha256 for step in plan("mib", "overlapped-10-10").steps
    ]


def test_lists_selected_once_lead_to_the_same_keys(plan: Callable[..., RunPlan], scenes: SyntheticSource) -> None:
    lists = ImageLists(scenes)
    for method in ("mib", "joint"):
        for setting in ("overlapped-10-5", "disjoint-10-5"):
            assert plan(method, setting, lists=lists).run_key == plan(method, setting).run_key


@pytest.mark.parametrize(
    ("phase", "images", "iterations"),
    [
        (OptimRecipe(epochs=30, batch=24), 10582, 30 * 440),
        (OptimRecipe(epochs=2.5, batch=10), 25, 5),
        (OptimRecipe(epochs=3, batch=24), 7, 3),
        (OptimRecipe(iterations=9), 7, 9),
    ],
)
def test_iterations_are_those_of_the_loader(phase: OptimRecipe, images: int, iterations: int) -> None:
    assert step_iterations(phase, images) == iterations


def planned(tmp_path: Path, asked: SweepRequest, *, to_train: bool = False) -> SweepPlan:
    common = RunRequest("", "", data_root=tmp_path / "none")
    return plan_sweep(expand(asked, common), StepStore(tmp_path / "steps"), ProgressView(), plan_only=not to_train)


def test_the_published_counts_stand_for_data_that_is_not_there(tmp_path: Path) -> None:
    plan = planned(tmp_path, SweepRequest(("mib", "joint"), ("overlapped-15-1", "overlapped-100-50"), (0,)))
    assert plan.without_data == ("voc", "ade")
    counts = {(run.setting.name, run.method.name): [len(step.images) for step in run.steps] for run in plan.runs}
    golden = golden_steps(parse_setting("overlapped-15-1"))
    assert golden is not None
    assert counts["overlapped-15-1", "mib"] == [images for images, _ in golden]
    assert counts["overlapped-100-50", "joint"] == [golden_list("ade", "train")[0]]
    assert not (tmp_path / "steps").exists()
    with pytest.raises(DataError, match="no PASCAL VOC 2012 found"):
        planned(
            tmp_path,
            SweepRequest(("mib",), ("overlapped-15-1",), (0,), "paper", None, ("weights=none",)),
            to_train=True,
        )


def test_what_a_method_declines_is_listed_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(self: Method, setting: object, model: str) -> str | None:
        return f"{model} will not do"

    monkeypatch.setattr(MBS, "unsupported", unsupported)
    asked = SweepRequest(("mib", "mbs"), ("overlapped-100-50", "ade:partitioned-100-50"), (0, 1))
    plan = planned(tmp_path, asked)
    assert [(run.method.name, run.setting.name, run.seed) for run in plan.runs] == [
        ("mib", "overlapped-100-50", 0), ("mib", "overlapped-100-50", 1),
    ]  # fmt: skip
    left = {(entry.method, entry.setting): entry.reason for entry in plan.left_out}
    assert set(left) == {
        ("mbs", "overlapped-100-50"), ("mbs", "partitioned-100-50"), ("mib", "partitioned-100-50"),
    }  # fmt: skip
    assert left["mbs", "overlapped-100-50"].endswith("will not do")
    assert "seed that is lost" in left["mib", "partitioned-100-50"]
    with pytest.raises(UsageError, match="nothing is left of the sweep: mbs on overlapped-100-50"):
        planned(tmp_path, replace(asked, methods=("mbs",), settings=("overlapped-100-50",)))


class Terminal(io.StringIO):
    """A stream that knows which lines a reader sees: it obeys the two codes that the live table writes."""

    def seen(self) -> list[str]:
        lines: list[str] = []
        for part in re.split(r"(\x1b\[\d+F\x1b\[J)", self.getvalue()):
            back = re.fullmatch(r"\x1b\[(\d+)F\x1b\[J", part)
            if back:
                del lines[len(lines) - int(back[1]) :]
            else:
                lines += part.splitlines()
        return lines


def test_the_live_table_stands_below_the_lines_that_stay(plan: Callable[..., RunPlan]) -> None:
    first, second, third = graph_of([plan("mib", "overlapped-10-5")]).nodes
    stream = Terminal()
    view = LiveView(stream, lambda node: f"all {node.step}")
    view.begin([first, second, third])
    assert view.seconds_left() is None
    view.start(first)
    view.progress(first, 5, 10)
    view.refresh()
    started, counts, _row = stream.seen()
    assert started.startswith("start   mib overlapped-10-5 seed 0 step 0/2")
    assert counts.startswith("1 running, 0 of 3 done")
    view.done(first, 2.0)
    view.start(second)
    view.failed(second, "a reason", Path("logs/x.log"))
    view.failed(third, "not tried", None)
    view.close()
    lines = stream.seen()
    assert [line.split()[0] for line in lines] == ["start", "done", "start", "failed", "failed"]
    assert "all 0 (2 s; 0 running, 1 of 3 done" in lines[1]
    assert lines[3].endswith("a reason (log: logs/x.log)")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The only number: the time that the display sees, seconds."""
    now = [100.0]
    monkeypatch.setattr("cispbench.harness.sweep.display.time.monotonic", lambda: now[0])
    return now


def begun(plan: Callable[..., RunPlan]) -> tuple[SweepView, tuple[Node, ...]]:
    """Return the view of a sweep whose first step has begun, and its steps of 10, 4 and 4 iterations."""
    nodes = graph_of([plan("mib", "overlapped-10-5")]).nodes
    view = SweepView(io.StringIO(), lambda node: "")
    view.begin(nodes)
    view.start(nodes[0])
    view.progress(nodes[0], 0, 10)
    return view, nodes


def test_time_left_follows_the_pace_of_what_is_done(plan: Callable[..., RunPlan], clock: list[float]) -> None:
    view, (first, second, third) = begun(plan)
    clock[0] += 6.0
    view.progress(first, 6, 10)
    assert view.seconds_left() == pytest.approx(12.0)
    clock[0] += 4.0
    view.done(first, 10.0)
    assert view.seconds_left() == pytest.approx(8.0)
    view.start(second)
    view.progress(second, 2, 4)  # resumed: these two were done before
    assert view.seconds_left() == pytest.approx(6.0)
    clock[0] += 1.0
    view.progress(second, 3, 4)
    assert view.seconds_left() == pytest.approx(11 * 5 / 11)
    view.failed(second, "", None)
    view.failed(third, "", None)
    assert view.seconds_left() == 0


def test_what_another_sweep_has_trained_does_not_quicken_the_pace(
    plan: Callable[..., RunPlan], clock: list[float]
) -> None:
    view, (first, second, _) = begun(plan)
    view.progress(first, 10, 10)
    clock[0] += 10.0
    view.back(first, "tested elsewhere")  # after it was trained here
    view.start(first)
    view.done(first, 0.0)
    view.start(second)
    view.done(second, 0.0)  # only recorded
    assert view.seconds_left() == pytest.approx(4.0)


def test_cores_and_devices_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cispbench.harness.sweep.slots.usable_cores", lambda: (8, 16))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machine = WorkerSlots(("cuda:0", "cuda:1"), 3)
    assert (machine.cores, machine.threads) == (2, 2)
    assert [machine.device(slot) for slot in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert WorkerSlots(("cpu",), 20).threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert WorkerSlots(("cpu",), 1).threads == 1
