"""Runs of methods with a memory and with companions: chosen once, kept with the step, the same however it is run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Exemplar, Memory
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.runs.execute import RunResult, execute
from cispbench.harness.runs.exemplars import memory_in
from cispbench.harness.runs.options import RunOptions
from cispbench.harness.runs.plan import RunPlan, plan_run, step_iterations
from cispbench.harness.runs.published import PublishedLists, PublishedSource
from cispbench.harness.runs.step_store import CHECKPOINT, EXEMPLARS, StepStore
from cispbench.harness.step import Companion
from cispbench.harness.training import monitor
from cispbench.methods.finetune import FineTune
from cispbench.results.store import Store
from cispbench.splits.errors import DataError, MethodError
from cispbench.splits.settings import parse_setting

SCENES = SyntheticSource("voc", train=60, val=6, size=24)
SETTING = parse_setting("overlapped-10-5")
SALIENCY = Companion("saliency", "saliency_map", fill=0)
SIZE = 5


class Keeper(FineTune):
    """Keeps the first images of each class that the previous network finds, and a random one; learns on all of them."""

    shared_base = False
    use, labels, own_companions, counted = "replace", "seen", (SALIENCY,), True

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.seen: list[dict[str, Any]] = []  # of each selection
        self.batches: list[Any] = []

    def memory(self) -> Memory | None:
        return Memory(SIZE, self.use, labels=self.labels)  # type: ignore[arg-type]

    def companions(self, setting: Any) -> tuple[Companion, ...]:
        return self.own_companions

    def select_exemplars(self, images: Any, kept: Any, context: Any) -> list[Exemplar]:
        assert context.previous is not None and not context.previous.training and not context.model.training
        assert not torch.is_grad_enabled()
        batches = list(images)
        self.seen.append({
            "step": context.step, "kept": tuple(kept), "ids": [name for batch in batches for name in batch.ids],
            "origins": {int(one) for batch in batches for one in batch.origin}, "batches": batches,
            "draw": (torch.rand(1).item(), torch.rand(1, generator=context.generator).item()),
        })  # fmt: skip
        names = [name for batch in batches for name in batch.ids]
        classes = [tuple(target.unique().tolist()) for batch in batches for target in batch.target]
        start = int(torch.randint(len(names) - 3, (1,)))
        new = [Exemplar(names[place], context.step - 1, classes[place]) for place in range(start, start + 3)]
        return [*kept[: SIZE - 3], *new]

    def initialise(self, context: Any) -> None:
        with torch.no_grad():  # so that what is drawn before it would be seen
            for parameter in context.model.parameters():
                parameter.add_(torch.rand_like(parameter), alpha=1e-3)

    def losses(self, batch: Any, output: Any, previous: Any, context: Any) -> Any:
        self.batches.append((context.step, batch))
        return super().losses(batch, output, previous, context)


class Base(Keeper):
    """The same with a base that other methods share."""

    shared_base = True


def planned(method: Any, *changes: str, seed: int = 0, source: Any = SCENES, **more: Any) -> RunPlan:
    short = ["optim.iterations=4", "later.iterations=6", "optim.warmup=0", "later.warmup=0", "optim.batch=4"]
    recipe = load_recipe(FineTune, SETTING, "quick", "deeplabv3-tiny", [*short, "data.crop=24", *changes])
    return plan_run(setting=SETTING, method=method, recipe=recipe, profile="quick", seed=seed, source=source, **more)


def run(
    method: Any, folder: Path, view: ProgressView | None = None, plan: RunPlan | None = None, **more: Any
) -> RunResult:
    options = RunOptions(
        records=Store(folder / "out"), steps=StepStore(folder / "steps"), device=torch.device("cpu"),
        view=view or ProgressView(), method=method, **{"source": SCENES, **more},
    )  # fmt: skip
    return execute(plan or planned(method), options)


def published(folder: Path, plan: RunPlan) -> list[tuple[Any, Any, bytes]]:
    """Return what the steps have kept, and the bytes of their weights."""
    store = StepStore(folder / "steps")
    manifests = [store.manifest(step.key) for step in plan.steps]
    weights = [(store.folder(step.key) / "weights.safetensors").read_bytes() for step in plan.steps]
    return [(memory_in(made), made.get("exemplars"), data) for made, data in zip(manifests, weights, strict=True)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Keeper, RunPlan, Path]:
    """A run without any interruption."""
    method, folder = Keeper(), tmp_path_factory.mktemp("whole")
    run(method, folder)
    return method, planned(method), folder


def test_a_method_chooses_from_the_last_step_and_what_it_kept(whole: Any) -> None:
    method, plan, folder = whole
    first, second = method.seen
    assert (first["step"], second["step"]) == (1, 2)
    # Each image of the step before once, in the order of its list, with its labels.
    for seen, before in ((first, 0), (second, 1)):
        assert tuple(seen["ids"]) == plan.steps[before].images and seen["origins"] == {before}
        table = torch.tensor(SETTING.label_table(before))
        for batch in seen["batches"]:
            assert set(batch.companions) == {"saliency"}
            for name, target in zip(batch.ids, batch.target, strict=True):
                assert torch.equal(target, table[SCENES.read("train", name)[1].long()])
    stored = published(folder, plan)
    assert first["kept"] == () and second["kept"] == stored[1][0]
    assert [len(kept) for kept, _, _ in stored] == [0, 3, SIZE]
    assert {one.step for one in stored[2][0]} == {0, 1}
    assert stored[0][1] is None
    assert [used["images"] for _, used, _ in stored[1:]] == [3, SIZE]
    assert all(used["bytes"] == used["images"] * 24 * 24 * 4 for _, used, _ in stored[1:])


def test_the_record_names_what_a_step_was_given(whole: Any) -> None:
    _, _, folder = whole
    result = run(Keeper(), folder)
    assert result.finished_before
    records = result.records
    assert [record.supervision for record in records] == [("saliency",)] * 3
    assert records[0].exemplars is None
    assert [record.exemplars.images for record in records[1:]] == [3, SIZE]
    assert all(record.exemplars.bytes == record.exemplars.images * 24 * 24 * 4 for record in records[1:])


def test_batches_say_which_images_are_exemplars_and_show_the_classes_seen(whole: Any) -> None:
    method, plan, folder = whole
    kept = [{(one.id, one.step) for one in memory} for memory, _, _ in published(folder, plan)]
    for step in range(3):
        batches = [batch for index, batch in method.batches if index == step]
        assert len(batches) == (4, 6, 6)[step]
        for batch in batches:
            old = batch.origin < step
            assert int(old.sum()) == (2 if step else 0)
            for name, origin, target in zip(batch.ids, batch.origin.tolist(), batch.target, strict=True):
                known = set(target.unique().tolist()) - {0, 255}
                if origin < step:
                    assert (name, origin) in kept[step] and known <= set(range(SETTING.num_classes(step)))
                else:
                    assert known <= set(range(SETTING.old_classes(step), SETTING.num_classes(step)))
            assert set(batch.companions) == {"saliency"}
    last = [batch for step, batch in method.batches if step == 2]
    shown = {one for batch in last for one in batch.target[batch.origin < 2].unique().tolist()}
    assert shown & set(range(1, 16))


class Stopped(ProgressView):
    """Stops a run: at an update, or (0) as soon as the training of a step is announced."""

    def __init__(self, step: int, iteration: int) -> None:
        self.at, self.step = (step, iteration), -1
        self.warnings: list[str] = []

    def start_step(self, step: int, *more: Any) -> None:
        self.step = step
        if self.at == (step, 0):
            raise KeyboardInterrupt

    def update(self, iteration: int, *more: Any) -> None:
        if self.at == (self.step, iteration):
            raise KeyboardInterrupt

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize("place", [(1, 0), (1, 3), (2, 0), (2, 5)])
def test_an_interrupted_step_has_the_same_exemplars_without_a_second_choice(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[int, int]
) -> None:
    _, plan, folder = whole
    monkeypatch.setattr(monitor, "CHECKPOINT_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        run(Keeper(), tmp_path, Stopped(*place))
    work = tmp_path / "steps" / "work" / plan.steps[place[0]].key / EXEMPLARS
    assert work.is_file()
    again = Keeper()
    run(again, tmp_path)
    assert place[0] not in [seen["step"] for seen in again.seen]
    assert published(tmp_path, plan) == published(folder, plan)
    assert not work.exists()


@pytest.mark.parametrize("how", ["damaged", "other code", "other step"])
def test_exemplars_that_cannot_be_relied_on_are_chosen_anew(whole: Any, tmp_path: Path, how: str) -> None:
    _, plan, folder = whole
    with pytest.raises(KeyboardInterrupt):
        run(Keeper(), tmp_path, Stopped(1, 0))
    work = tmp_path / "steps" / "work" / plan.steps[1].key / EXEMPLARS
    if how == "damaged":
        work.write_text(work.read_text().replace('"step": 0', '"step": 1', 1))
    else:
        from cispbench.results.checked_json import read_checked, write_checked

        content = read_checked(work)
        content |= {"code": ["finetune", "0" * 64]} if how == "other code" else {"key": plan.steps[2].key}
        write_checked(work, content)
    again, view = Keeper(), Stopped(-1, -1)
    run(again, tmp_path, view)
    assert [seen["step"] for seen in again.seen] == [1, 2]
    (said,) = [text for text in view.warnings if EXEMPLARS in text]
    assert "chosen anew" in said and list(work.parent.glob(f"{EXEMPLARS}.damaged-*"))
    assert published(tmp_path, plan) == published(folder, plan)


def test_a_training_whose_exemplars_are_lost_starts_anew(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plan, folder = whole
    monkeypatch.setattr(monitor, "CHECKPOINT_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        run(Keeper(), tmp_path, Stopped(1, 3))
    work = tmp_path / "steps" / "work" / plan.steps[1].key
    (work / EXEMPLARS).unlink()
    assert (work / CHECKPOINT).is_file()
    view = Stopped(-1, -1)
    run(Keeper(), tmp_path, view)
    (said,) = view.warnings
    assert "the exemplars of the checkpoint" in said and (work / f"{CHECKPOINT}.damaged-0").is_file()
    assert published(tmp_path, plan) == published(folder, plan)


@pytest.mark.parametrize("use", ["append", "replace"])
def test_micro_batches_train_on_the_same_exemplars(tmp_path: Path, use: str) -> None:
    def trained(micro_batch: int | None) -> list[tuple[str, int]]:
        method = Keeper()
        method.use = use
        # Batch norms see the parts alone, so that the weights differ; the images may not.
        plan = planned(method, micro_batch=micro_batch)
        run(method, tmp_path / str(micro_batch), plan=plan, until=1)
        batches = [batch for step, batch in method.batches if step == 1]
        assert len(batches) == (6 if micro_batch is None else 12)
        return [pair for batch in batches for pair in zip(batch.ids, batch.origin.tolist(), strict=True)]

    whole, parts = trained(None), trained(2)
    assert whole == parts and {origin for _, origin in whole} == {0, 1}
    assert use == "append" or sum(origin == 0 for _, origin in whole) == 6 * 2


def test_an_epoch_is_longer_by_what_was_appended_and_a_plan_says_the_most(tmp_path: Path) -> None:
    method = Keeper()
    method.use = "append"
    plan = planned(method, "later.iterations=null", "later.epochs=1", "later.batch=2")
    run(method, tmp_path, plan=plan, until=1)
    own = len(plan.steps[1].images)
    assert plan.epoch_images(0) == len(plan.steps[0].images) and plan.epoch_images(1) == own + SIZE
    assert StepStore(tmp_path / "steps").manifest(plan.steps[1].key)["iterations"] == (own + 3) // 2
    assert step_iterations(plan.recipe.phase(1), plan.epoch_images(1)) == (own + SIZE) // 2
    names = [(name, origin) for step, batch in method.batches if step == 1
             for name, origin in zip(batch.ids, batch.origin.tolist(), strict=True)]  # fmt: skip
    assert len(names) == len(set(names)) and sum(origin == 0 for _, origin in names) in (2, 3)
    method.use = "replace"
    assert planned(method).epoch_images(1) == own


def test_a_shared_base_knows_of_no_memory_and_no_companion(tmp_path: Path) -> None:
    method = Base()
    plan, plain = planned(method), planned(FineTune())
    assert plan.steps[0].key == plain.steps[0].key and "companions" not in plan.steps[0].made_of
    records = run(method, tmp_path, plan=plan, until=1).records
    assert not [batch for step, batch in method.batches if step == 0]
    assert [record.supervision for record in records] == [(), ("saliency",)]
    # The method's own choice has both.
    assert method.seen[0]["origins"] == {0} and set(method.seen[0]["batches"][0].companions) == {"saliency"}


def test_maps_are_a_part_of_the_keys_of_the_methods_that_use_them(whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plan, _ = whole
    without = Keeper()
    without.own_companions = ()
    bare = planned(without)
    assert "companions" not in bare.steps[1].made_of and not bare.test_maps
    assert [set(step.made_of["companions"]) for step in plan.steps] == [{"saliency"}] * 3
    # With a memory the maps of all images so far are needed.
    assert len({step.made_of["companions"]["saliency"] for step in plan.steps}) == 3
    assert bare.evaluation_key == plan.evaluation_key
    tested = Keeper()
    tested.own_companions = (replace(SALIENCY, at_test=True),)
    assert planned(tested).evaluation_key != plan.evaluation_key
    assert [step.key for step in planned(tested).steps] == [step.key for step in plan.steps]
    from cispbench.harness.data import synthetic

    monkeypatch.setattr(synthetic, "saliency", lambda rng, mask: mask // 2)
    changed = planned(Keeper())
    assert not {step.key for step in changed.steps} & {step.key for step in plan.steps}
    assert [step.key for step in planned(FineTune()).steps] == [step.key for step in planned(FineTune()).steps]
    assert [step.key for step in planned(without).steps] == [step.key for step in bare.steps]


def test_maps_that_change_after_the_plan_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cispbench.harness.data import synthetic

    method = Keeper()
    plan = planned(method)
    monkeypatch.setattr(synthetic, "saliency", lambda rng, mask: mask // 2)
    with pytest.raises(DataError, match=r"the maps of the companion saliency .* have changed since"):
        run(method, tmp_path, plan=plan)


def choosing(chosen: Any) -> Keeper:
    class Chooser(Keeper):
        def select_exemplars(self, images: Any, kept: Any, context: Any) -> Any:
            return chosen(next(iter(images)).ids[0], kept)

    return Chooser()


@pytest.mark.parametrize(
    ("chosen", "says"),
    [(lambda name, kept: [Exemplar("nobody", 0)], "'nobody' of step 0 .* neither in its memory nor an image"),
     (lambda name, kept: [Exemplar(name, 1)], "of step 1 after step 0, which is neither"),
     (lambda name, kept: [Exemplar(name, 0)] * 2, "is there twice"),
     (lambda name, kept: [Exemplar(one, 0) for one in SCENES.ids("train")[:6]], "6 exemplars .* its memory holds 5"),
     (lambda name, kept: [name], "no list of exemplars"), (lambda name, kept: None, "no list of exemplars")],
)  # fmt: skip
def test_a_choice_that_breaks_the_contract_is_refused(tmp_path: Path, chosen: Any, says: str) -> None:
    with pytest.raises(MethodError, match=says):
        run(choosing(chosen), tmp_path, until=1)


def test_a_method_may_keep_nothing(tmp_path: Path) -> None:
    method = choosing(lambda name, kept: [])
    run(method, tmp_path, until=1)
    assert [kept for kept, _, _ in published_until(tmp_path, planned(method), 1)] == [(), ()]
    assert all((batch.origin == step).all() for step, batch in method.batches)


def published_until(folder: Path, plan: RunPlan, last: int) -> list[tuple[Any, Any, bytes]]:
    return published(folder, replace(plan, steps=plan.steps[: last + 1]))


def test_a_method_that_says_nothing_of_its_choice_is_refused_before_step_0(tmp_path: Path) -> None:
    class Silent(FineTune):
        def memory(self) -> Memory | None:
            return Memory(3)

    with pytest.raises(MethodError, match="finetune has a memory, and nothing says which images are kept"):
        run(Silent(), tmp_path, until=0)


def test_passes_are_there_in_every_hook(tmp_path: Path) -> None:
    class Reader(Keeper):
        read: dict[str, list[str]]

        def select_exemplars(self, images: Any, kept: Any, context: Any) -> list[Exemplar]:
            own = [name for batch in context.batches(size=9) for name in batch.ids]
            assert tuple(own) == plan.steps[context.step].images
            return super().select_exemplars(images, kept, context)

        def initialise(self, context: Any) -> None:
            self.read = {"initialise": [name for batch in context.batches("centre", 7) for name in batch.ids]}

        def before_training(self, context: Any, batches: Any) -> None:
            first = list(batches)
            for one, other in zip(context.batches(), first, strict=True):
                assert one.ids == other.ids and torch.equal(one.images, other.images)

        def after_training(self, context: Any) -> None:
            named = context.batches(ids=self.read["initialise"][:3])
            self.read["after"] = [name for batch in named for name in batch.ids]

    method = Reader()
    plan = planned(method)
    run(method, tmp_path, plan=plan)
    assert tuple(method.read["initialise"]) == plan.steps[2].images
    assert method.read["after"] == list(plan.steps[2].images[:3])


def test_the_file_of_a_choice_is_small_and_readable(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Keeper(), tmp_path, Stopped(1, 0))
    (work,) = (tmp_path / "steps" / "work").glob(f"*/{EXEMPLARS}")
    content = json.loads(work.read_text())
    assert set(content) == {"sha256", "key", "code", "exemplars"}
    assert set(content["exemplars"][0]) == {"id", "step", "classes"}


def test_what_is_not_there_can_be_planned_all_the_same(tmp_path: Path) -> None:
    source = PublishedSource("voc")
    method = Keeper()
    method.own_companions = (replace(SALIENCY, at_test=True),)
    plan = planned(method, source=source, lists=PublishedLists(source))
    assert [set(step.made_of["companions"]) for step in plan.steps] == [{"saliency"}] * 3
    assert plan.steps[0].made_of["companions"]["saliency"].startswith("published ")
    with pytest.raises(DataError, match="no PASCAL VOC 2012"):
        source.maps(SALIENCY, "train", ()).read("2007_000032")
