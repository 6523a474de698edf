"""The rule ``gpu-ready``: what a GPU minds is named with its line and by no other rule; what only seems so is not."""

from __future__ import annotations

import importlib
import inspect
import sys

import pytest
import torch

from cispbench.harness import contract
from cispbench.harness.contract import gpu_rules
from cispbench.harness.contract.bench import Bench, Sizes
from cispbench.harness.contract.check import RULES, check_method
from cispbench.harness.contract.gpu_rules import gpu_ready
from cispbench.harness.contract.imitated_gpu import ImitatedGpu
from cispbench.harness.method import Exemplar, Memory, Method
from cispbench.methods.losses import cross_entropy, labelled_pixels

SMALL = Sizes(setting="overlapped-10-10", grid=4, scenes=26, batch=4, iterations=2, learning=8)
MODEL = "deeplabv3-tiny"

pytestmark = pytest.mark.usefixtures("one_thread")


class Sound(Method):
    """Cross-entropy, and what ``extra`` adds to it from step 1 on."""

    name = "sound"

    def losses(self, batch, output, previous, context):
        terms = {"cross_entropy": cross_entropy(output.logits, batch.target)}
        return terms if previous is None else {**terms, **self.extra(batch, output, previous, context)}

    def extra(self, batch, output, previous, context):
        return {}

    def counts(self, batch, previous, context):
        return {"cross_entropy": labelled_pixels(batch.target)}


class ReadsItem(Sound):
    def extra(self, batch, output, previous, context):
        scale = context.model.class_groups()[0].bias.detach().norm().item()  # here
        return {"scaled": output.logits.pow(2).mean() / (1 + scale)}


class Asks(Sound):
    def extra(self, batch, output, previous, context):
        if (batch.target > 0).any():  # here
            return {"more": output.logits.pow(2).mean()}
        return {"more": output.logits.abs().mean()}


class IndexesByMask(Sound):
    def extra(self, batch, output, previous, context):
        return {"background": output.logits[:, 0][batch.target == 0].sum() / batch.target.numel()}  # here


class WritesUnderMask(Sound):
    def extra(self, batch, output, previous, context):
        weights, shown = torch.zeros_like(batch.target), batch.target > 0
        weights[shown] = torch.arange(shown.numel(), device=shown.device)[: int(1e9)][shown.flatten()]  # here
        return {"weighted": (output.logits[:, 0] * weights).mean() * 1e-6}


class MeetsTheCPU(Sound):
    def extra(self, batch, output, previous, context):
        weights = torch.ones(output.logits.shape[1])
        return {"weighted": (output.logits.mean((0, 2, 3)) * weights).mean()}  # here


class CopiesList(Sound):
    def extra(self, batch, output, previous, context):
        chosen = torch.as_tensor([*range(context.num_classes)], device=batch.target.device)  # here
        return {"chosen": output.logits.index_select(1, chosen).pow(2).mean()}


class IndexesByList(Sound):
    def extra(self, batch, output, previous, context):
        return {"chosen": output.logits[:, [0, context.old_classes]].pow(2).mean()}  # here


class IndexesByTheCPU(Sound):
    def extra(self, batch, output, previous, context):
        chosen = torch.randperm(output.logits.shape[1], generator=context.generator)[:2]
        return {"chosen": output.logits[:, chosen].pow(2).mean()}  # here


class SortsAllLabels(Sound):
    def extra(self, batch, output, previous, context):
        known = torch.arange(100, device=batch.target.device)
        return {"known": (output.logits[:, 0] * torch.isin(batch.target, known)).mean()}  # here


class Counts(Sound):
    def counts(self, batch, previous, context):
        shown = [int(labelled_pixels(batch.target))]  # here
        return {"cross_entropy": shown[0]}


class ReadsGradients(Sound):
    def after_gradients(self, gradients, context):
        for gradient in gradients.values():
            if float(gradient.abs().max()) > 1e9:  # here
                gradient.zero_()


class Prepares(Sound):
    def prepare(self, batch, context):
        batch.target.flatten().bincount()  # here
        return batch


class ScoresOnTheCPU(Sound):
    def scores(self, output):
        return output.logits * torch.ones(output.logits.shape[1])[:, None, None]  # here


class StartsOnTheCPU(Sound):
    def initialise(self, context):
        with torch.no_grad():
            *_, new = context.model.class_groups()
            new.rows.copy_(new.rows * torch.ones(new.rows.shape))  # here


class MeasuresOnTheCPU(Sound):
    def before_training(self, context, batches):
        seen = torch.zeros(256, dtype=torch.int64)
        for batch in batches:
            seen += torch.bincount(batch.target.flatten(), minlength=256)  # here


class Decomposes(Sound):
    def extra(self, batch, output, previous, context):
        pixels = output.logits.detach().flatten(2).float()
        values = torch.linalg.svdvals(pixels @ pixels.mT)  # here
        return {"scaled": output.logits.pow(2).mean() / (1 + values.max())}


class WritesText(Sound):
    def extra(self, batch, output, previous, context):
        self.said = f"the mean is {output.logits.mean().detach():.3f}"  # here
        return {"more": output.logits.pow(2).mean()}


class SelectsOnTheCPU(Sound):
    def memory(self):
        return Memory(2)

    def select_exemplars(self, images, kept, context):
        found = [Exemplar(name, context.step - 1) for batch in images for name in batch.ids if self.shows(batch)]
        return [*kept, *found][:2]

    def shows(self, batch):
        return bool((batch.target == torch.zeros(batch.target.shape[1:])).any())  # here


DEVICES, READ, COPY, KERNEL = (gpu_rules.FOUND[kind][0] for kind in ("devices", "read", "copy", "kernel"))


@pytest.mark.parametrize(
    ("fault", "hook", "says"),
    [
        (ReadsItem, "losses", READ),
        (Asks, "losses", READ),
        (IndexesByMask, "losses", READ),
        (WritesUnderMask, "losses", READ),
        (MeetsTheCPU, "losses", DEVICES),
        (CopiesList, "losses", COPY),
        (IndexesByList, "losses", COPY),
        (IndexesByTheCPU, "losses", COPY),
        (SortsAllLabels, "losses", KERNEL),
        (Decomposes, "losses", KERNEL),
        (WritesText, "losses", READ),
        (Counts, "counts", READ),
        (ReadsGradients, "after_gradients", READ),
        (Prepares, "prepare", READ),
        (ScoresOnTheCPU, "scores", DEVICES),
        (StartsOnTheCPU, "initialise", DEVICES),
        (MeasuresOnTheCPU, "before_training", DEVICES),
        (SelectsOnTheCPU, "select_exemplars", DEVICES),
    ],
)
def test_what_a_gpu_minds_is_named_with_its_line(tmp_path, fault, hook, says):
    result = gpu_ready.result(Bench(fault, MODEL, SMALL, tmp_path))
    assert result.outcome == "broken", result
    source, first = inspect.getsourcelines(fault)
    line = first + next(number for number, text in enumerate(source) if text.endswith("# here\n"))
    for finding in result.findings:
        assert finding.found.startswith(f"{hook} {says} ("), finding
        assert f" at contract/test_gpu_rule.py:{line})" in finding.found
        assert finding.advice and finding.place.step == 1


@pytest.mark.parametrize("fault", [ReadsItem, MeetsTheCPU, CopiesList])
def test_it_is_named_by_no_other_rule(fault):
    report = check_method(fault, [MODEL], SMALL)
    assert report.broken == ["gpu-ready"], report.errors()


class ReturnsFromTheCPU(Sound):
    def extra(self, batch, output, previous, context):
        context.log("share", torch.ones(()))
        return {"nothing": torch.zeros(())}

    def counts(self, batch, previous, context):
        return {"cross_entropy": labelled_pixels(batch.target), "nothing": torch.ones(())}


def test_what_is_given_to_the_harness_must_lie_on_the_gpu(tmp_path):
    result = gpu_ready.result(Bench(ReturnsFromTheCPU, MODEL, SMALL, tmp_path))
    assert {finding.found for finding in result.findings} == {
        "losses gives 'nothing' as a tensor on the CPU",
        "counts gives 'nothing' as a tensor on the CPU",
        "context.log gives 'share' as a tensor on the CPU",
    }


class Careful(Sound):
    """What seems to wait and does not: numbers of the CPU, scalars, copies that do not block, reads in other hooks."""

    share = torch.tensor(0.5)  # a tensor without dimensions goes along as a number

    def before_training(self, context, batches):
        shown = torch.cat([batch.target.flatten() for batch in batches])
        self.most = shown[shown != 255].bincount(minlength=3).max().item()
        self.labels = shown.unique().tolist(), shown.cpu().numpy().max()

    def extra(self, batch, output, previous, context):
        drawn = torch.rand(2, generator=context.generator)
        factor = 1.0 if drawn.sum() > 0.5 else 2.0  # a read of the CPU
        weights = drawn.to(batch.target.device, non_blocking=True)
        channel = torch.arange(context.old_classes, context.num_classes, device=batch.target.device)
        new = output.logits[:, channel] * self.share * factor
        masked = new.masked_fill((batch.target == 255)[:, None], 0.0)
        masked[(batch.target == 0)[:, None].expand_as(masked)] = 0.0  # one number under a mask is filled in
        context.log("weights", weights.mean())
        return {"new": masked.pow(2).mean() * weights.sum()}

    def after_training(self, context):
        self.norm = sum(float(parameter.norm()) for parameter in context.model.parameters())


def test_what_only_seems_to_wait_is_kept(tmp_path):
    result = gpu_ready.result(Bench(Careful, MODEL, SMALL, tmp_path))
    assert (result.outcome, result.note) == ("kept", ""), result


class CallsGradient(Sound):
    def extra(self, batch, output, previous, context):
        (gradient,) = torch.autograd.grad(output.logits.pow(2).mean(), output.masks, create_graph=True)
        return {"gradient": gradient.pow(2).mean()}


class UnknownOperator(Sound):
    def after_gradients(self, gradients, context):
        torch._fused_sgd_(
            list(gradients.values()), list(gradients.values()), [], weight_decay=0.0, momentum=0.0, lr=0.1,
            dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
        )  # fmt: skip


class NeverEnds(Sound):
    def before_training(self, context, batches):
        scale = next(iter(batches)).images.abs().max()
        while scale > 1:
            scale = scale / 2


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (CallsGradient, "losses was not followed to its end: "),
        (
            UnknownOperator,
            "after_gradients was not followed to its end: UnsupportedOperatorException: aten._fused_sgd_",
        ),
        (NeverEnds, "values are read 10000 times"),
    ],
)
def test_what_cannot_be_followed_is_a_note(tmp_path, cls, says):
    if cls is CallsGradient and torch.cuda.is_available():
        pytest.skip("on a GPU backward passes can be followed")
    result = gpu_ready.result(Bench(cls, MODEL, SMALL, tmp_path))
    assert result.outcome == "kept" and says in result.note, result


def test_without_an_imitation_the_rule_is_skipped_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_rules, "no_imitation", lambda: "torch 0.1 imitates no GPU")
    result = gpu_ready.result(Bench(ReadsItem, MODEL, SMALL, tmp_path))
    assert (result.outcome, result.note) == ("skipped", "torch 0.1 imitates no GPU")


def test_a_torch_that_lacks_a_private_name_skips_the_rule_and_no_other(tmp_path, monkeypatch):
    # As in a version of torch without it.
    monkeypatch.setitem(sys.modules, "torch.utils._mode_utils", None)
    monkeypatch.delitem(sys.modules, "cispbench.harness.contract.imitated_gpu", raising=False)
    monkeypatch.delattr(contract, "imitated_gpu", raising=False)
    monkeypatch.delitem(sys.modules, "cispbench.harness.contract.gpu_rules")
    monkeypatch.setattr(contract, "gpu_rules", gpu_rules)  # to be set back, as the import below sets it
    again = importlib.import_module("cispbench.harness.contract.gpu_rules")
    result = again.gpu_ready.result(Bench(ReadsItem, MODEL, SMALL, tmp_path))
    assert result.outcome == "skipped"
    assert f"torch {torch.__version__} imitates no GPU: " in result.note and "_mode_utils" in result.note


@pytest.mark.parametrize(
    "call",
    [
        torch.linalg.svd, torch.linalg.svdvals, torch.linalg.eigh, torch.linalg.eigvalsh, torch.linalg.eig,
        torch.linalg.eigvals, torch.linalg.pinv, torch.linalg.matrix_exp, torch.linalg.inv, torch.linalg.cholesky,
        torch.linalg.matrix_rank, torch.linalg.lu_factor, torch.cholesky_inverse,
        lambda x: torch.linalg.inv_ex(x, check_errors=True), lambda x: torch.linalg.solve_ex(x, x, check_errors=True),
    ],
)  # fmt: skip
def test_decompositions_wait_for_a_gpu(call):
    gpu = ImitatedGpu()
    with gpu.watch() as seen:
        call(gpu.put(torch.eye(3)))
    assert {one.kind for one in seen} == {"kernel"}, seen


@pytest.mark.parametrize(
    "call",
    [torch.linalg.qr, torch.linalg.inv_ex, torch.linalg.cholesky_ex, torch.linalg.det, torch.linalg.norm],
)
def test_what_checks_nothing_does_not(call):
    gpu = ImitatedGpu()
    with gpu.watch() as seen:
        call(gpu.put(torch.eye(3)))
        torch.linalg.svd(torch.eye(3))  # on the CPU
    assert not seen


def test_tensors_in_a_text_are_read_and_have_made_up_values():
    gpu = ImitatedGpu()
    with gpu.watch() as seen:
        one, many = gpu.put(torch.zeros(())), gpu.put(torch.zeros(2))
        assert (f"{one:.2f}", f"{many}", f"{torch.tensor(3.0):.1f}") == ("1.00", "tensor([1., 1.])", "3.0")
    assert [(sighting.kind, sighting.operator) for sighting in seen] == [("read", "format")] * 2


def test_it_is_one_of_the_rules():
    assert gpu_ready in RULES
