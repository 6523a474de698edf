"""The contract: every installed method keeps it, and for every rule there is a fault that this very rule names."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from cispbench.harness.contract.bench import Bench, Sizes
from cispbench.harness.contract.check import MODELS, RULES, check_method
from cispbench.harness.contract.recorded import RecordedStep, RecordedTraining
from cispbench.harness.contract.sources import monitored_sources, scrambled_labels
from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.method import VOID, Method, StepContext
from cispbench.harness.registry import load_method, method_names
from cispbench.methods.losses import cross_entropy, labelled_pixels, unbiased_cross_entropy
from cispbench.splits.errors import MethodError
from cispbench.splits.settings import parse_setting

LONGER = Sizes(grid=4, scenes=26, batch=4, iterations=2, learning=8)
SMALL = Sizes(setting="overlapped-10-10", grid=4, scenes=26, batch=4, iterations=2, learning=8)
MODEL, QUICKER = "segmenter-tiny", "deeplabv3-tiny"
NAMES = [
    "declarations", "losses-finite", "previous-untouched", "no-future-labels", "test-images-never-read", "state-exact",
    "new-classes-one-and-many", "odd-batches", "deterministic", "precisions", "initialise", "hands-off",
    "learns", "class-numbering", "halves-add-up", "select-exemplars", "prepare", "weights-untouched",
    "reads-previous", "scores", "gpu-ready",
]  # fmt: skip

WITH_MEMORY = {"dkd_m", "ssul_m"}
KEEPS_BY_CLASS = {"ewc", "pi", "rw", "reminder"}  # a state from step 0, which numbers may matter to

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", method_names())
def test_every_installed_method_keeps_the_contract(name):
    cls = load_method(name)
    report = check_method(cls, sizes=SMALL)
    assert report.keeps, report.errors()
    # What is not checked is a family without a small network that offers what the method needs, and says so.
    assert all(reason.startswith("it needs a network that offers ") for reason in report.unsupported.values())
    assert bool(report.unsupported) == bool(cls.needs)
    assert {result.rule for result in report.results} == set(NAMES)
    skipped = {result.rule for result in report.results} - {r.rule for r in report.results if r.outcome == "kept"}
    expected = set() if name in WITH_MEMORY else {"select-exemplars"}
    if cls.joint:
        expected |= {"no-future-labels", "new-classes-one-and-many", "reads-previous"}
    if not cls.micro_batches:
        expected |= {"halves-add-up"}
    if name in KEEPS_BY_CLASS:
        expected |= {"class-numbering"}
    assert skipped == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", method_names())
def test_every_installed_method_keeps_it_over_several_steps_of_the_usual_size(name):
    report = check_method(load_method(name))
    assert report.keeps, report.errors()


class Sound(Method):
    """Feature distillation, nothing wrong with it; the faulty methods below add a fault each."""

    name = "sound"

    def losses(self, batch, output, previous, context):
        terms = {"cross_entropy": cross_entropy(output.logits, batch.target)}
        if previous is not None:
            terms["features"] = functional.mse_loss(output.patches.float(), previous.patches.float())
        return self.spoil(terms, batch, output, previous, context) if previous is not None else terms

    def spoil(self, terms, batch, output, previous, context):
        return terms

    def counts(self, batch, previous, context):
        return {"cross_entropy": labelled_pixels(batch.target)}


class NotANumber(Sound):
    def spoil(self, terms, batch, output, previous, context):
        share = (batch.target > VOID).sum() / (batch.target > VOID).sum()
        return {**terms, "share": share * output.logits.mean()}


class Vector(Sound):
    def spoil(self, terms, batch, output, previous, context):
        return {**terms, "vector": output.logits.mean((0, 2, 3))}


class Detached(Sound):
    def spoil(self, terms, batch, output, previous, context):
        return {name: term.detach() for name, term in terms.items()}


class OwnLeaf(Sound):
    def spoil(self, terms, batch, output, previous, context):
        return {"own": torch.ones((), requires_grad=True) * 2}


class Empty(Sound):
    def spoil(self, terms, batch, output, previous, context):
        return {}


class Number(Sound):
    def spoil(self, terms, batch, output, previous, context):
        return {**terms, "number": 0.5}


class Raising(Sound):
    def spoil(self, terms, batch, output, previous, context):
        return {**terms, "missing": terms["features_"]}


class RootOfNothing(Sound):
    def spoil(self, terms, batch, output, previous, context):
        return {**terms, "norm": (output.patches - output.patches.detach()).pow(2).sum().sqrt()}


class SharpensPrevious(Sound):
    def spoil(self, terms, batch, output, previous, context):
        return {**terms, "kept": functional.mse_loss(output.logits[:, : context.old_classes], previous.logits.mul_(2))}


class WritesTarget(Sound):
    def spoil(self, terms, batch, output, previous, context):
        batch.target[batch.target == 0] = VOID
        return terms


class TeachesPrevious(Sound):
    def spoil(self, terms, batch, output, previous, context):
        again = context.previous(batch.images.flip(-1))
        return {**terms, "mirrored": functional.mse_loss(output.patches.mean(1), again.patches.mean(1))}


class MovesPrevious(Sound):
    def after_training(self, context):
        for parameter in () if context.previous is None else context.previous.parameters():
            parameter.mul_(0.5)


class PreviousInTraining(Sound):
    def after_training(self, context):
        if context.previous is not None:
            context.previous.train()


class ThawsPrevious(Sound):
    def after_training(self, context):
        if context.previous is not None:
            context.previous.requires_grad_(True)


class SeesOtherLabels(Sound):
    split = "train"

    def spoil(self, terms, batch, output, previous, context):
        source = SyntheticSource("voc", train=1, val=1, size=batch.target.shape[-1])
        masks = torch.stack([source.read(self.split, self.split + name[5:])[1] for name in batch.ids])
        masks = masks.to(batch.target.device, non_blocking=True)
        others = (masks > 0) & (masks < context.old_classes)
        sizes = output.logits.pow(2).mean((1, 2, 3)) * (1 + others.float().mean((1, 2)))
        return {**terms, "others": 0.1 * sizes.mean()}


class ReadsTestImages(SeesOtherLabels):
    split = "val"


class Counts(Sound):
    def __init__(self, options=None):
        super().__init__(options)
        self.seen = 0

    def spoil(self, terms, batch, output, previous, context):
        self.seen += 1
        return {**terms, "features": terms["features"] / self.seen}


class CountsAndKeepsCount(Counts):
    def state_dict(self):
        return {"seen": torch.tensor(self.seen)} if self.seen else {}

    def load_state_dict(self, state):
        self.seen = int(state["seen"]) if state else 0


class Remembers(Sound):
    """Forgets between steps, not within one: what it remembers is used after the last loss."""

    weights = None

    @torch.no_grad()
    def after_training(self, context):
        bias = context.model.class_groups()[0].bias
        if self.weights is not None:
            bias.lerp_(self.weights, 0.5)
        self.weights = bias.clone()


class CannotResume(Sound):
    """Its state within a step is one that it does not take back."""

    training = False

    def spoil(self, terms, batch, output, previous, context):
        self.training = True
        return terms

    def after_training(self, context):
        self.training = False

    def state_dict(self):
        return {"within": torch.ones(1)} if self.training else {}

    def load_state_dict(self, state):
        if state:
            raise KeyError("between")


class KeepsNumbers(Sound):
    shared_base = False

    def state_dict(self):
        return {"seen": 3}


class SharesMemory(Sound):
    shared_base = False
    importance = torch.ones(4)

    def state_dict(self):
        return {"one": self.importance, "two": self.importance}


class OneClassOnly(Sound):
    def spoil(self, terms, batch, output, previous, context):
        new = output.logits[:, context.old_classes :].squeeze(1)
        return {**terms, "spread": 0.01 * (new.std(1) if new.ndim == 4 else new[:, 0, 0, 0, 0]).mean()}


class TenAreTooMany(Sound):
    def initialise(self, context):
        if context.step > 0 and context.new_classes > 9:
            raise ValueError("too many classes")


class ForegroundOnly(Sound):
    def spoil(self, terms, batch, output, previous, context):
        cost = functional.cross_entropy(output.logits.float(), batch.target, ignore_index=VOID, reduction="none")
        shown = self.foreground(batch)
        return {**terms, "foreground": (cost * shown).sum() / shown.sum()}

    def foreground(self, batch):
        return (batch.target > 0) & (batch.target != VOID)

    def counts(self, batch, previous, context):
        more = {} if previous is None else {"foreground": self.foreground(batch).sum()}
        return {**super().counts(batch, previous, context), **more}


class OneImage(Sound):
    def spoil(self, terms, batch, output, previous, context):
        return {**terms, "pairs": 0.1 * output.patches[0].sub(output.patches[1]).pow(2).mean()}


class Unseeded(Sound):
    def spoil(self, terms, batch, output, previous, context):
        return {**terms, "features": terms["features"] * (1 + 0.01 * random.SystemRandom().random())}


class Rounds(Sound):
    def spoil(self, terms, batch, output, previous, context):
        rounded = (1000 + terms["cross_entropy"]).to(output.patches.dtype).float() - 1000
        return {**terms, "cross_entropy": rounded}


class ForgetsAtOnce(Sound):
    @torch.no_grad()
    def initialise(self, context):
        if context.step > 0:
            context.model.class_groups()[0].rows.mul_(0.9)


class BreaksTheNetwork(Sound):
    @torch.no_grad()
    def initialise(self, context):
        next(context.model.sections()["encoder"].parameters()).mul_(1.1)


class Infinite(Sound):
    @torch.no_grad()
    def initialise(self, context):
        context.model.class_groups()[-1].bias.fill_(float("inf"))


class CallsBackward(Sound):
    def spoil(self, terms, batch, output, previous, context):
        terms["features"].backward(retain_graph=True)
        return terms


class DecaysWeights(Sound):
    def spoil(self, terms, batch, output, previous, context):
        for parameter in context.model.parameters():
            parameter.data.mul_(0.999)
        return terms


class SwitchesMode(Sound):
    def spoil(self, terms, batch, output, previous, context):
        context.model.eval()
        return terms


class Climbs(Sound):
    def spoil(self, terms, batch, output, previous, context):
        return {name: 2 * term.detach() - term for name, term in terms.items()}


class CountsImagesAlone(Sound):
    def counts(self, batch, previous, context):
        return {}


class OneByOne(Sound):
    def counts(self, batch, previous, context):
        return {"cross_entropy": labelled_pixels(batch.target[:4])} if len(batch.ids) > 2 else {"cross_entropy": 1 / 0}


class OneTooFew(Sound):
    off = -1

    def spoil(self, terms, batch, output, previous, context):
        cost = unbiased_cross_entropy(output.logits, batch.target, context.old_classes + self.off)
        return {**terms, "cross_entropy": cost}

    def counts(self, batch, previous, context):  # the unbiased cross-entropy is a mean over all pixels, void ones, too
        return super().counts(batch, previous, context) if previous is None else {}


class OneTooMany(OneTooFew):
    off = 1


FAULTS = {
    "losses-finite": (
        NotANumber,
        f"a term is nan ({QUICKER}, overlapped-10-10, step 1, iteration 0, term share). Look",
    ),
    "previous-untouched": (SharpensPrevious, "losses changed previous.logits in place"),
    "no-future-labels": (SeesOtherLabels, "with the labels of other classes scrambled in the data, at step 1 the term"),
    "test-images-never-read": (ReadsTestImages, "the training read val_"),
    "state-exact": (Counts, "resumed by a new instance of the method, at step 1 the term features is"),
    "new-classes-one-and-many": (OneClassOnly, "with one new class losses raised IndexError"),
    "odd-batches": (ForegroundOnly, "a term is nan for a batch of void alone"),
    "deterministic": (Unseeded, "when the training is repeated, at step 1 the term"),
    "precisions": (Rounds, "under bf16 autocast and"),
    "initialise": (ForgetsAtOnce, "have changed: classifiers.0.weight"),
    "hands-off": (CallsBackward, "losses changed model.encoder.layers.0.0.weight.grad, "),
    "learns": (Climbs, "the loss goes from"),
    "class-numbering": (OneTooFew, "once classes swap numbers"),
    "halves-add-up": (CountsImagesAlone, "when put together from halves of a batch"),
}
# What a rule that cannot be judged any more is not reported as kept.
UNCHECKED = {
    "losses-finite": set(NAMES) - {"declarations", "losses-finite", "select-exemplars"},
    "state-exact": {"halves-add-up"},
    "deterministic": {"no-future-labels", "state-exact", "class-numbering", "halves-add-up"},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_by_its_rule_and_by_no_other(name):
    fault, says = FAULTS[name]
    report = check_method(fault, [QUICKER], SMALL)
    assert report.broken == [name], report.errors()
    assert not report.keeps
    (error,) = report.errors()
    assert error.startswith(f"sound breaks {name}: ")
    assert f"({QUICKER}, " in error
    assert says in error
    unchecked = {result.rule for result in report.results if result.outcome == "unchecked"}
    assert unchecked == UNCHECKED.get(name, set())


@pytest.mark.parametrize(
    ("name", "fault", "says"),
    [
        ("losses-finite", Vector, "a term has the shape (21,)"),
        ("losses-finite", Detached, "the loss carries no gradient"),
        ("losses-finite", OwnLeaf, "no parameter of the model receives a gradient"),
        ("losses-finite", Empty, "losses returned an empty dict"),
        ("losses-finite", Number, "a term is a float, not a tensor"),
        ("losses-finite", Raising, f"raised KeyError: 'features_' ({MODEL}, overlapped-10-10, step 1, iteration 0)"),
        ("losses-finite", RootOfNothing, f"is not finite ({MODEL}, overlapped-10-10, step 1, iteration 0)"),
        ("previous-untouched", WritesTarget, "losses changed batch.target in place"),
        ("previous-untouched", TeachesPrevious, ".grad and "),
        ("previous-untouched", MovesPrevious, "the previous model has changed: encoder."),
        ("previous-untouched", PreviousInTraining, "the previous model has changed: training ("),
        ("previous-untouched", ThawsPrevious, ".requires_grad and "),
        ("state-exact", Remembers, "resumed by a new instance of the method, after step 2 the weights or"),
        ("state-exact", CannotResume, "load_state_dict raised MethodError: the checkpoint"),
        ("state-exact", KeepsNumbers, "the state of the method is wrong: seen is a int"),
        ("state-exact", SharesMemory, "the state of the method is wrong: it cannot be written"),
        ("new-classes-one-and-many", TenAreTooMany, "with ten new classes initialise raised ValueError: too many"),
        ("odd-batches", OneImage, "for a batch of one image losses raised IndexError"),
        ("initialise", BreaksTheNetwork, "have changed: encoder."),
        ("initialise", Infinite, "parameters are not finite: decoder.mask_norm.bias.2"),
        ("hands-off", DecaysWeights, "losses changed model."),
        ("hands-off", SwitchesMode, "losses changed model.training ("),
        ("class-numbering", OneTooMany, "once classes swap numbers"),
        ("halves-add-up", OneByOne, "with a batch in two halves counts raised ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_rule_says_what_it_found_and_where(tmp_path, name, fault, says):
    sizes = LONGER if fault in (Remembers, TenAreTooMany) else SMALL
    result = RULES[NAMES.index(name)].result(Bench(fault, MODEL, sizes, tmp_path))
    assert result.outcome == "broken", result
    assert any(says in str(finding) for finding in result.findings), result.findings
    assert all(finding.advice for finding in result.findings)


def test_rules_have_stable_names_and_ask_in_a_sentence():
    assert [rule.name for rule in RULES] == NAMES
    for rule in RULES:
        assert rule.requirement.endswith(".") and rule.requirement.count(". ") == 0, rule.requirement


class Chance(Sound):
    """Losses by lot, but by the harness's own lots: repeatable, so no rule may complain."""

    def unsupported(self, setting, model):
        return None if model.startswith("segmenter") else "it needs class tokens"

    def spoil(self, terms, batch, output, previous, context):
        dropped = torch.rand(output.logits.shape[1], device=output.logits.device) < 0.3
        return {**terms, "some": 0.1 * (output.logits.pow(2) * dropped[:, None, None]).sum() / 1000}


class NowhereAtHome(Sound):
    def unsupported(self, setting, model):
        return "it needs a GPU"


def test_a_sound_method_of_chance_keeps_the_contract_with_the_models_that_it_serves():
    report = check_method(Chance, MODELS, SMALL)
    assert report.unsupported == {"deeplabv3-tiny": "it needs class tokens"}
    assert report.keeps and not report.errors()
    assert {result.model for result in report.results} == {"segmenter-tiny"}
    skipped = [row for row in report.rows() if row[1] == "skipped"]
    drawn = "its losses are drawn at random"
    assert skipped == [
        ("class-numbering", "skipped", drawn),
        ("halves-add-up", "skipped", drawn),
        ("select-exemplars", "skipped", "it has no memory"),
    ]


def test_a_method_that_serves_no_model_does_not_keep_the_contract():
    report = check_method(NowhereAtHome, MODELS, SMALL)
    assert not report.keeps and not report.results
    (error,) = report.errors()
    assert error.startswith("sound serves none of the models it was checked with: segmenter-tiny: it needs a GPU;")


class NotEvenMade(Sound):
    def __init__(self):
        super().__init__(None)


class Speechless(Sound):
    def unsupported(self, setting, model):
        raise KeyError(model)


def test_a_class_that_cannot_be_made_or_asked_is_an_error():
    with pytest.raises(MethodError, match="'sound' cannot be made from its options: TypeError"):
        check_method(NotEvenMade, [MODEL], SMALL)
    with pytest.raises(MethodError, match="'sound' fails to say whether it serves overlapped-10-10 with segmenter"):
        check_method(Speechless, [MODEL], SMALL)


class KeepsByNumber(Sound):
    shared_base = False

    def state_dict(self):
        return {"prototypes": torch.arange(11.0)}


def test_a_state_that_changes_with_every_loss_may_be_kept(tmp_path):
    result = RULES[NAMES.index("state-exact")].result(Bench(CountsAndKeepsCount, MODEL, LONGER, tmp_path))
    assert result.outcome == "kept", result


def test_numbers_may_matter_to_what_a_method_keeps_by_class(tmp_path):
    result = RULES[NAMES.index("class-numbering")].result(Bench(KeepsByNumber, MODEL, SMALL, tmp_path))
    assert (result.outcome, result.note[:20]) == ("skipped", "it keeps prototypes ")


def test_scrambled_labels_keep_nothing_of_other_classes_and_all_of_the_steps_own():
    setting = parse_setting("overlapped-10-5")
    for step, own in ((0, range(1, 11)), (1, range(11, 16)), (2, range(16, 21))):
        table = scrambled_labels(setting, step).tolist()
        others = set(range(1, 21)) - set(own)
        assert [table[number] for number in own] == list(own)
        assert all(table[number] != number and table[number] in {0, *others} for number in others)
        assert (table[0], table[VOID]) == (0, VOID)
        labels = setting.label_table(step)
        assert [labels[other] for other in table[:21]] == list(labels[:21])
    assert scrambled_labels(setting.joint(), 0).tolist() == list(range(256))


def test_sources_are_as_they_were_after_they_were_monitored():
    before = {name: getattr(SyntheticSource, name) for name in ("ids", "presence", "read")}
    training = RecordedTraining("no model", "overlapped-10-5")
    step = RecordedStep(StepContext(parse_setting("overlapped-10-5"), 0, 0, 11, None, None))
    with pytest.raises(RuntimeError), monitored_sources(training):
        source = SyntheticSource("voc", train=1, val=1, size=16)
        source.ids("val")
        training.steps.append(step)
        source.read("train", "train_00000")
        source.ids("val")
        raise RuntimeError
    assert step.test_reads == ["listed 'val'"]
    assert before == {name: getattr(SyntheticSource, name) for name in before}


def test_the_check_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    check_method(Raising, [MODEL], SMALL)
    assert not list(Path(tmp_path).iterdir())
