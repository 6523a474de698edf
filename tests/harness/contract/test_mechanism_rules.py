"""The rules about memory, companions, layouts, phases and scores: sound methods keep them, planted faults break one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from cispbench.harness.contract.bench import Bench, Sizes
from cispbench.harness.contract.check import RULES, check_method
from cispbench.harness.contract.sources import scrambled_labels
from cispbench.harness.method import Companion, Exemplar, Group, Memory, Method
from cispbench.harness.training import loop
from cispbench.harness.wrapper import Wrapper, WrapperOptions
from cispbench.methods.losses import cross_entropy, labelled_pixels

SMALL = Sizes(setting="overlapped-10-10", grid=4, scenes=26, batch=4, iterations=2, learning=8)
MODEL = "segmenter-tiny"
RULE = {rule.name: rule for rule in RULES}

pytestmark = pytest.mark.usefixtures("one_thread")


class Plain(Method):
    """Cross-entropy at every step."""

    name = "toy"
    shared_base = False
    reads_previous = False

    def losses(self, batch, output, previous, context):
        return {"cross_entropy": cross_entropy(output.logits, batch.target)}

    def counts(self, batch, previous, context):
        return {"cross_entropy": labelled_pixels(batch.target)}


class Everything(Plain):
    """Uses every mechanism, none of them wrongly."""

    def __init__(self, options=None):
        super().__init__(options)
        self.largest = torch.zeros(())
        self.mean = torch.zeros(())

    def layout(self, setting, step):
        classes = Group(setting.new_classes(step))
        return (Group(extra=1, role="unknown"), classes) if step == 0 else (classes,)

    def phases(self, setting, step):
        return ("warm", "train") if step > 0 else ("train",)

    def companions(self, setting):
        return (Companion("saliency", "saliency_map", fill=0, how_to_get="The built-in scenes have them."),)

    def memory(self):
        return Memory(4, use="replace", share=0.5, labels="seen")

    def select_exemplars(self, images, kept, context):
        new = [Exemplar(name, context.step - 1) for batch in images for name in batch.ids]
        return [*kept, *new][:4]

    def before_training(self, context, batches):
        self.mean = torch.stack([batch.images.mean() for batch in batches]).mean()

    def prepare(self, batch, context):
        salient = (batch.companions["saliency"] > 0) & (batch.target == 0)
        old = torch.zeros_like(salient) if batch.origin is None else (batch.origin < context.step)[:, None, None]
        channels = torch.where(batch.target == 255, 255, batch.target + 1)
        return replace(batch, target=channels.masked_fill(salient & ~old, 0))

    def after_gradients(self, gradients, context):
        for gradient in gradients.values():
            self.largest = torch.maximum(self.largest, gradient.abs().max())
            gradient.mul_(1 + self.mean.abs())

    def after_training(self, context):
        for parameter in context.model.parameters():
            parameter.mul_(1 - 1e-4 * self.largest.clamp(max=1))

    def scores(self, output):
        unknown, background, classes = output.logits.softmax(1).tensor_split((1, 2), 1)
        return torch.cat([unknown + background, classes], 1)

    def state_dict(self):
        return {"largest": self.largest, "mean": self.mean}

    def load_state_dict(self, state):
        self.largest, self.mean = state["largest"].clone(), state["mean"].clone()


@dataclass(frozen=True)
class DoubledOptions(WrapperOptions):
    base: str = "lwf"


class Doubled(Wrapper):
    """The terms of its base twice."""

    name = "toy"
    Options = DoubledOptions

    def losses(self, batch, output, previous, context):
        return {name: 2 * term for name, term in super().losses(batch, output, previous, context).items()}


@pytest.mark.parametrize("cls", [Everything, Doubled])
def test_a_method_that_uses_every_mechanism_rightly_keeps_the_contract(cls):
    report = check_method(cls, [MODEL], SMALL)
    assert report.keeps, report.errors()
    skipped = {result.rule for result in report.results if result.outcome == "skipped"}
    # It keeps a mean from step 0, and the training says nothing of what that depends on.
    assert skipped == ({"class-numbering"} if cls is Everything else {"select-exemplars"})


class MissingClass(Plain):
    def layout(self, setting, step):
        return (Group(setting.new_classes(step) - 1),)


class NoScores(Plain):
    def layout(self, setting, step):
        return (Group(setting.new_classes(step), extra=1),)


class OtherLayouts(Plain):
    asked = 0

    def layout(self, setting, step):
        self.asked += 1
        return (Group(setting.new_classes(step), role=f"asked_{self.asked}"),)


class SilentCompanion(Plain):
    def companions(self, setting):
        return (Companion("saliency", "saliency_map"),)


class TwicePhased(Plain):
    def phases(self, setting, step):
        return ("train", "train")


class MemoryOfOne(Plain):
    def memory(self):
        return Memory(1)

    def select_exemplars(self, images, kept, context):
        return [Exemplar(name, context.step - 1) for batch in images for name in batch.ids][: self.number()]

    def number(self):
        return 1


class TooMany(MemoryOfOne):
    def number(self):
        return 2


class Stranger(MemoryOfOne):
    def select_exemplars(self, images, kept, context):
        return [Exemplar("nobody", 0)]


class Twice(MemoryOfOne):
    def memory(self):
        return Memory(2)

    def select_exemplars(self, images, kept, context):
        return super().select_exemplars(images, kept, context) * 2


class Names(MemoryOfOne):
    def select_exemplars(self, images, kept, context):
        return ["train_00000"]


class NotChosen(MemoryOfOne):
    def select_exemplars(self, images, kept, context):
        raise LookupError("no image is good enough")


class WritesLabels(Plain):
    def prepare(self, batch, context):
        batch.target[batch.target == 0] = 255
        return batch


class HalfABatch(Plain):
    def prepare(self, batch, context):
        return replace(batch, ids=batch.ids[:2])


class LosesOrigin(MemoryOfOne):
    def prepare(self, batch, context):
        return replace(batch, origin=None)


class FewerImages(Plain):
    def prepare(self, batch, context):
        return batch.part(slice(3)) if len(batch.ids) == 4 else batch


class FailsToPrepare(Plain):
    def prepare(self, batch, context):
        return replace(batch, target=batch.companions["saliency"])


class DecaysBefore(Plain):
    def before_training(self, context, batches):
        for parameter in context.model.parameters():
            parameter.mul_(0.9)


class MeasuresInTraining(Plain):
    def before_training(self, context, batches):
        context.model.train()
        for batch in batches:
            context.model(batch.images)


class DecaysAfter(Plain):
    def after_gradients(self, gradients, context):
        for parameter in context.model.parameters():
            parameter.mul_(0.99)


class DecaysInPrepare(Plain):
    def prepare(self, batch, context):
        context.model.class_groups()[0].bias.mul_(0.5)
        return batch


class SelectsAndWrites(MemoryOfOne):
    def select_exemplars(self, images, kept, context):
        context.model.class_groups()[0].bias.add_(1)
        return super().select_exemplars(images, kept, context)


class RunsPrevious(Plain):
    def losses(self, batch, output, previous, context):
        terms = super().losses(batch, output, previous, context)
        if context.previous is None:
            return terms
        with torch.no_grad():
            old = context.previous(*batch.inputs)
        return {**terms, "kept": (output.patches.float() - old.patches.float()).square().mean()}


class Scored(Plain):
    def scores(self, output):
        return output.logits.softmax(1)


class ScoresInPlace(Scored):
    def scores(self, output):
        return output.logits.mul_(0.5)


class ScoresByLot(Scored):
    def scores(self, output):
        return output.logits + torch.rand_like(output.logits)


class ScoresByState(Scored):
    steps = torch.zeros(())

    def after_training(self, context):
        self.steps = self.steps + 1

    def scores(self, output):
        return output.logits + self.steps * output.logits.mean()

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"].clone()


class ScoresOnTheGrid(Scored):
    def scores(self, output):
        return output.masks


class ScoresOfNothing(Scored):
    def scores(self, output):
        return output.logits.sub(output.logits.amax()).log()


class ScoresRaise(Scored):
    def scores(self, output):
        return output.heads[7]


class CountsInLosses(Plain):
    def __init__(self, options=None):
        super().__init__(options)
        self.seen = torch.zeros(())

    def losses(self, batch, output, previous, context):
        self.seen = self.seen + 1
        return super().losses(batch, output, previous, context)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"].clone()


class CountsAndSaysSo(CountsInLosses):
    micro_batches = False


class SelectsByLot(MemoryOfOne):
    drawn = 0

    def select_exemplars(self, images, kept, context):
        SelectsByLot.drawn += 1
        names = [name for batch in images for name in batch.ids]
        return [Exemplar(names[SelectsByLot.drawn % len(names)], context.step - 1)]


class ForgetsBetweenPhases(Plain):
    """What the first phase ends with is used by the second one, and is in no state."""

    factor = 1.0

    def phases(self, setting, step):
        return ("warm", "train")

    def after_training(self, context):
        self.factor = 2.0

    def losses(self, batch, output, previous, context):
        factor = self.factor if context.phase == "train" else 1.0
        return {"cross_entropy": factor * cross_entropy(output.logits, batch.target)}


@pytest.mark.parametrize(
    ("name", "fault", "says"),
    [
        ("declarations", MissingClass, "the layouts of toy up to step 0 hold 10 classes, and the steps add 11"),
        ("declarations", NoScores, "has channels that are no classes, and nothing says which class a pixel has"),
        ("declarations", OtherLayouts, "layout returns something else when it is asked again"),
        ("declarations", SilentCompanion, "the companion 'saliency' does not say where its maps come from"),
        ("declarations", TwicePhased, "the plan raised MethodError: toy has the phases ('train', 'train')"),
        ("select-exemplars", TooMany, "toy has chosen 2 exemplars after step 0; its memory holds 1"),
        ("select-exemplars", Stranger, "toy has chosen the exemplar 'nobody' of step 0 after step 0, which is neither"),
        ("select-exemplars", Twice, "which is there twice"),
        ("select-exemplars", Names, "the memory of toy is no list of exemplars"),
        ("select-exemplars", NotChosen, "select_exemplars raised LookupError: no image is good enough"),
        ("prepare", WritesLabels, "prepare changed batch.target in place"),
        ("prepare", HalfABatch, "parts of several lengths: batch.ids 2, batch.images 4, batch.target 4"),
        ("prepare", LosesOrigin, "prepare lost or added batch.origin"),
        ("prepare", FewerImages, "prepare returned 3 images for 4"),
        ("prepare", FailsToPrepare, "prepare raised KeyError: 'saliency'"),
        ("weights-untouched", DecaysBefore, "before_training changed encoder."),
        ("weights-untouched", MeasuresInTraining, "before_training changed encoder.layers.0.1.running_mean"),
        ("weights-untouched", DecaysAfter, "after_gradients changed encoder."),
        ("weights-untouched", DecaysInPrepare, "prepare changed decoder.mask_norm.bias.0 ("),
        ("weights-untouched", SelectsAndWrites, "select_exemplars changed decoder.mask_norm.bias.0 ("),
        ("reads-previous", RunsPrevious, "losses runs the previous network itself"),
        ("scores", ScoresInPlace, "scores changed output.logits in place"),
        ("scores", ScoresByLot, "scores differ between two calls with one output"),
        ("scores", ScoresByState, "scores depend on the method's state"),
        ("scores", ScoresOnTheGrid, "scores raised MethodError: the scores of the method have the shape"),
        ("scores", ScoresOfNothing, "scores are not finite"),
        ("scores", ScoresRaise, "scores raised IndexError: tuple index out of range"),
        ("hands-off", CountsInLosses, "losses changed state.seen"),
        ("deterministic", SelectsByLot, "when the training is repeated, at step 1 other exemplars are chosen"),
        ("state-exact", ForgetsBetweenPhases, "resumed by a new instance of the method, at step 0 the term"),
    ],
)
def test_a_planted_fault_is_named_by_its_rule(tmp_path, name, fault, says):
    model = "deeplabv3-tiny" if fault is MeasuresInTraining else MODEL
    bench = Bench(fault, model, SMALL, tmp_path)
    result = RULE[name].result(bench)
    assert result.outcome == "broken", result
    assert says in str(result.findings[0]), result.findings
    assert all(finding.advice for finding in result.findings)
    # The catch-all does not report what has a rule of its own.
    assert RULE["losses-finite"].result(bench).outcome in ("kept", "unchecked")


def test_a_hook_that_is_called_again_after_an_interruption_is_found(tmp_path, monkeypatch):
    resume = loop.resume

    def initialising(job):
        state = resume(job)
        if state is not None:
            job.method.initialise(job.context)
        return state

    monkeypatch.setattr(loop, "resume", initialising)
    result = RULE["state-exact"].result(Bench(Plain, MODEL, SMALL, tmp_path))
    assert "the hooks are called as initialise, before_training, initialise, after_training" in str(result.findings[0])


def test_what_may_change_in_losses_is_declared_by_micro_batches(tmp_path):
    bench = Bench(CountsAndSaysSo, MODEL, SMALL, tmp_path)
    assert RULE["hands-off"].result(bench).outcome == "kept"
    assert RULE["halves-add-up"].result(bench).note == "its terms need the whole batch (micro_batches = False)"


def test_a_pass_of_the_previous_network_that_nothing_reads_is_a_note(tmp_path):
    class Asks(Plain):
        reads_previous = True

    result = RULE["reads-previous"].result(Bench(Asks, MODEL, SMALL, tmp_path))
    assert (result.outcome, result.note) == (
        "kept", "losses read nothing of the previous network's output: reads_previous = False spares its pass",
    )  # fmt: skip


def test_odd_batches_of_a_memory_hold_exemplars_alone_and_none(tmp_path):
    class Divides(MemoryOfOne):
        def losses(self, batch, output, previous, context):
            terms = super().losses(batch, output, previous, context)
            if context.step > 0 and not (batch.origin < context.step).any():
                raise ValueError("no exemplar to learn from")
            return terms

        def memory(self):
            return Memory(2, use="replace", share=0.5)

    result = RULE["odd-batches"].result(Bench(Divides, MODEL, SMALL, tmp_path))
    assert "for a batch without exemplars losses raised ValueError" in str(result.findings[0])


@pytest.mark.parametrize(
    ("labels", "kept", "lost"),
    [("step", (11, 20), (1, 5)), ("origin", (1, 10, 11, 20), ()), ("seen", (1, 10, 11, 20), ())],
)
def test_labels_that_a_memory_may_see_are_not_scrambled(tmp_path, labels, kept, lost):
    class Keeps(MemoryOfOne):
        def memory(self):
            return Memory(1, labels=labels)

    step = Bench(Keeps, MODEL, SMALL, tmp_path).finished.steps[1]
    (exemplar,) = step.exemplars
    assert set(step.shown) == {exemplar.id}
    table = scrambled_labels(step.context.setting, 1, step.shown[exemplar.id]).tolist()
    assert [table[number] for number in kept] == list(kept)
    assert all(table[number] != number for number in lost)


def test_maps_that_the_scenes_do_not_have_are_said_and_no_error():
    class Proposals(Plain):
        def companions(self, setting):
            return (Companion("proposals", "proposals", how_to_get="From a detector."),)

    report = check_method(Proposals, [MODEL], SMALL)
    assert not report.keeps and not report.results
    assert "proposals" in report.unsupported[MODEL]
