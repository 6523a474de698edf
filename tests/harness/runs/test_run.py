"""A run from plan to records: shared, resumed, repeated, and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.recipes.fields import load_strict
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import load_method
from cispbench.harness.runs.execute import execute
from cispbench.harness.runs.options import RunOptions
from cispbench.harness.runs.plan import RunPlan, plan_run
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.training import monitor
from cispbench.harness.training.checkpoint_file import read_checkpoint, write_checkpoint
from cispbench.harness.training.job import StoppedError
from cispbench.methods.finetune import FineTune
from cispbench.results.store import Store
from cispbench.splits.errors import RunError
from cispbench.splits.settings import parse_setting

SHORT = ("optim.iterations=4", "later.iterations=3", "optim.warmup=0", "later.warmup=0", "optim.batch=4")
METHODS = ["finetune", "joint", "lwf", "lwf_mc", "ilt", "mib", "plop", "mbs"]
SCENES = SyntheticSource("voc", train=60, val=12, size=24)


@pytest.fixture
def plan():
    def make(method="mbs", setting="overlapped-10-5", *, seed=0, model=None, overrides=()) -> RunPlan:
        cls, chosen = load_method(method), parse_setting(setting)
        recipe = load_recipe(cls, chosen, "quick", model, [*SHORT, "data.crop=24", *overrides])
        worker = cls(load_strict(cls.Options, recipe.method, "method"))
        return plan_run(setting=chosen, method=worker, recipe=recipe, profile="quick", seed=seed, source=SCENES)

    return make


def options(folder: Path, view: ProgressView | None = None) -> RunOptions:
    return RunOptions(
        records=Store(folder / "out"), steps=StepStore(folder / "steps"), device=torch.device("cpu"),
        view=view or ProgressView(), source=SCENES,
    )  # fmt: skip


def matrices(result) -> list[np.ndarray]:
    return [record.matrix() for record in result.records]


@pytest.mark.parametrize("model", ["segmenter-tiny", "deeplabv3-tiny"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_both_families(plan, tmp_path, method, model):
    made = plan(method, model=model)
    result = execute(made, options(tmp_path))
    assert [record.step for record in result.records] == list(range(1 if method == "joint" else 3))
    last = result.records[-1]
    assert last.finished
    assert last.matrix().shape == (21, 21)
    assert last.matrix().sum() > 0
    assert last.losses.iterations[-1] == last.iterations
    assert any(term.endswith("cross_entropy") for term in last.losses.terms)


def test_a_finished_run_returns_at_once_with_the_same_records(plan, tmp_path):
    first = execute(plan(), options(tmp_path))
    again = execute(plan(), options(tmp_path))
    assert (first.trained, again.trained) == (3, 0)
    assert again.records == first.records


def test_step_0_is_shared_among_methods_and_tasks(plan, tmp_path):
    keys = {method: [step.key for step in plan(method).steps] for method in ("finetune", "mib", "plop", "mbs")}
    assert len({steps[0] for steps in keys.values()}) == 1
    assert len({steps[1] for steps in keys.values()}) == 4
    assert plan("mbs", "overlapped-10-1").steps[0].key == keys["mbs"][0]
    assert not any(record.shared for record in execute(plan("mbs"), options(tmp_path)).records)
    second = execute(plan("finetune"), options(tmp_path))
    assert second.trained == 2
    assert [record.shared for record in second.records] == [True, False, False]
    assert second.records[0].trained_for.method == "mbs"


@pytest.mark.parametrize(
    ("change", "changed_steps"),
    [
        ({"overrides": ["optim.lr=0.01"]}, [0, 1, 2]),
        ({"overrides": ["later.lr=0.01"]}, [1, 2]),
        ({"overrides": ["method.threshold=0.6"]}, [1, 2]),
        ({"overrides": ["data.flip=0.1"]}, [0, 1, 2]),
        ({"overrides": ["evaluation.batch=5"]}, []),
        ({"seed": 1}, [0, 1, 2]),
        ({"model": "deeplabv3-tiny"}, [0, 1, 2]),
    ],
)
def test_what_a_key_depends_on(plan, change, changed_steps):
    before, after = plan(), plan(**change)
    differing = [a.step for a, b in zip(before.steps, after.steps, strict=True) if a.key != b.key]
    assert differing == changed_steps
    assert before.run_key != after.run_key


class Broken(ProgressView):
    """A view that stops the training at a chosen update, as a kill would."""

    def __init__(self, step: int, iteration: int) -> None:
        self.at, self.step, self.notes = (step, iteration), -1, []

    def start_step(self, step, steps, classes, images, iterations, start=0):
        self.step = step

    def update(self, iteration, terms, images_per_second):
        if (self.step, iteration) == self.at:
            raise KeyboardInterrupt

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize("method", ["mbs", "plop", "rcil"])
@pytest.mark.parametrize("place", [(0, 3), (1, 2), (2, 3)])
def test_a_broken_step_resumes_bit_for_bit(plan, tmp_path, monkeypatch, method, place):
    monkeypatch.setattr(monitor, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(monitor, "CHECKPOINT_SHARE", 1e9)
    whole = execute(plan(method), options(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        execute(plan(method), options(tmp_path / "broken", Broken(*place)))
    view = Broken(-1, -1)
    mended = execute(plan(method), options(tmp_path / "broken", view))
    assert any("resumed at iteration" in note for note in view.notes)
    for ours, theirs in zip(matrices(mended), matrices(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (
        StepStore(tmp_path / name / "steps").load(plan(method).steps[-1].key) for name in ("broken", "whole")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert mended.records[place[0]].timing.resumed
    assert not list((tmp_path / "broken" / "steps" / "work").glob("*/checkpoint.pt"))


def test_a_checkpoint_of_another_kind_of_device_is_gone_on_from_and_said_to_differ(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(monitor, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(monitor, "CHECKPOINT_SHARE", 1e9)
    with pytest.raises(KeyboardInterrupt):
        execute(plan(), options(tmp_path, Broken(0, 3)))
    (path,) = (tmp_path / "steps" / "work").glob("*/checkpoint.pt")
    state = read_checkpoint(path)
    state["random"]["cuda"] = torch.zeros(16, dtype=torch.uint8)  # as a GPU would have written it
    write_checkpoint(path, state)
    execute(plan(), options(tmp_path, view := Broken(-1, -1)))
    (note,) = (note for note in view.notes if "resumed" in note)
    assert note.startswith(f"step 0: resumed at iteration {state['iteration']} of 4, from a checkpoint of another kind")


@pytest.mark.parametrize("asked", [1, 3, 5])
def test_a_run_that_is_asked_to_stop_saves_how_far_it_was(plan, tmp_path, asked):
    whole = execute(plan(), options(tmp_path / "whole"))
    left = [asked]

    def stop() -> bool:
        left[0] -= 1
        return left[0] <= 0

    step, iteration = (0, asked) if asked < 4 else (1, asked - 3)  # the last iteration of a step is not asked about
    with pytest.raises(StoppedError, match=rf"stopped as asked, at iteration {iteration} of . of step {step}"):
        execute(plan(), replace(options(tmp_path / "asked"), stop=stop))
    mended = execute(plan(), options(tmp_path / "asked", view := Broken(-1, -1)))
    assert f"step {step}: resumed at iteration {iteration} of {4 - step}" in view.notes
    for ours, theirs in zip(matrices(mended), matrices(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_two_seeds_differ_and_one_seed_repeats(plan, tmp_path):
    a = execute(plan(seed=3), options(tmp_path / "a")).records[-1]
    b = execute(plan(seed=3), options(tmp_path / "b")).records[-1]
    c = execute(plan(seed=4), options(tmp_path / "c")).records[-1]
    assert a.confusion == b.confusion
    assert a.losses == b.losses
    assert a.losses != c.losses


def test_records_alone_or_weights_alone_survive_the_loss_of_the_other(plan, tmp_path):
    import shutil

    first = execute(plan(), options(tmp_path))
    shutil.rmtree(tmp_path / "out")
    again = execute(plan(), options(tmp_path))
    assert again.trained == 0
    assert matrices(again)[-1].tolist() == matrices(first)[-1].tolist()
    shutil.rmtree(tmp_path / "steps")
    assert execute(plan(), options(tmp_path)).trained == 0


def test_a_damaged_step_is_set_aside_and_trained_anew(plan, tmp_path):
    import shutil

    first = execute(plan(), options(tmp_path))
    shutil.rmtree(tmp_path / "out")
    weights = tmp_path / "steps" / "steps" / plan().steps[1].key / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    view = Broken(-1, -1)
    again = execute(plan(), options(tmp_path, view))
    assert again.trained == 1
    assert "is damaged" in view.notes[0]
    assert matrices(again)[-1].tolist() == matrices(first)[-1].tolist()


def test_the_previous_model_is_untouched(plan, tmp_path):
    made = plan("mbs")
    seen = {}

    class Watching(load_method(made.method.name)):
        def before_training(self, context, batches):
            seen[context.step] = context

        def after_training(self, context):
            if context.previous is not None:
                stored = StepStore(tmp_path / "steps").load(made.steps[context.step - 1].key)
                state = context.previous.state_dict()
                seen[f"same {context.step}"] = all(torch.equal(state[key], stored[key]) for key in stored)
                seen[f"frozen {context.step}"] = not any(p.requires_grad for p in context.previous.parameters())

    execute(made, replace(options(tmp_path), method=Watching(Watching.Options(**made.method.options))))
    assert [seen[f"same {step}"] and seen[f"frozen {step}"] for step in (1, 2)] == [True, True]
    assert [(seen[s].old_classes, seen[s].new_classes, seen[s].num_classes) for s in (1, 2)] == [
        (11, 5, 16), (16, 5, 21),
    ]  # fmt: skip


def test_a_loss_that_is_not_finite_stops_the_run_and_names_it(plan, tmp_path):
    made = plan("finetune")

    class Overflowing(FineTune):
        shared_base = False

        def losses(self, batch, output, previous, context):
            terms = super().losses(batch, output, previous, context)
            return {**terms, "broken": output.logits.sum() * float("nan")}

    with pytest.raises(RunError, match="the loss broken is not a finite number at iteration 1 to 4 of step 0"):
        execute(made, replace(options(tmp_path), method=Overflowing()))
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(plan, tmp_path, precision):
    result = execute(plan(overrides=[f"optim.precision={precision}"]), options(tmp_path))
    assert result.records[-1].recipe["optim"]["precision"] == precision
    assert result.records[-1].skipped_steps >= 0


def test_a_record_tells_what_decided_it(plan, tmp_path):
    record = execute(plan("mib", "disjoint-15-5", seed=7), options(tmp_path)).records[-1]
    assert (record.setting, record.seed, record.profile) == ("disjoint-15-5", 7, "quick")
    assert record.data.kind == "synthetic"
    assert record.data.train_images == len(plan("mib", "disjoint-15-5", seed=7).steps[1].images)
    assert record.data.val_images == 12
    assert record.method.options["distillation"] == 10.0
    assert torch.__version__.startswith(str(record.environment["torch"]))
    assert record.memory.peak_host_bytes > 50e6
    assert record.timing.images_per_second > 0


def test_a_shared_base_is_trained_by_the_harness_and_the_method_is_not_asked(plan, tmp_path):
    """Its key leaves the method out: whatever the method does, others must be able to take the base over."""
    made, asked, seen = plan("finetune"), [], []

    class Own(FineTune):
        def initialise(self, context):
            asked.append(context.step)

        def losses(self, batch, output, previous, context):
            asked.append(context.step)
            assert previous is not None
            return {name: 3 * term for name, term in super().losses(batch, output, previous, context).items()}

        def after_training(self, context):
            asked.append(context.step)

        def state_dict(self):
            return {"importance": torch.ones(1)}

        def load_state_dict(self, state):
            seen.append(set(state))

    first, other = made.steps[0].key, tmp_path / "other"
    execute(made, replace(options(tmp_path), method=Own()))
    assert set(asked) == {1, 2} and seen[:2] == [set(), {"importance"}]
    execute(made, options(other))
    theirs = StepStore(other / "steps").load(first)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in StepStore(tmp_path / "steps").load(first).items())


def test_what_a_method_keeps_reaches_the_next_step(plan, tmp_path):
    made, seen = plan("finetune"), {}

    class Counting(FineTune):
        shared_base = False

        def __init__(self):
            super().__init__()
            self.steps = torch.zeros(1)

        def initialise(self, context):
            seen[context.step] = float(self.steps)

        def after_training(self, context):
            self.steps = self.steps + 1

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["steps"].clone()

    execute(made, replace(options(tmp_path), method=Counting()))
    assert seen == {0: 0.0, 1: 1.0, 2: 2.0}
