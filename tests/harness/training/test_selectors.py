"""What a recipe's selectors name, what is then learnt at which rate, and what is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cispbench.harness.method import Output, StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.models.transformer import DropPath
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.training.optimisation import Stepper
from cispbench.splits.errors import RecipeError
from cispbench.splits.settings import parse_setting

SETTING = parse_setting("overlapped-15-1")  # 16 classes with background, then one a step
CPU = torch.device("cpu")


@dataclass
class BranchGroup:
    """What the harness reads of a group."""

    layers: nn.Sequential
    role: str = "classes"
    extra: int = 0

    @property
    def weight(self) -> Tensor:
        return self.layers[-1].weight

    @property
    def bias(self) -> Tensor:
        return self.layers[-1].bias

    def parameters(self) -> list[nn.Parameter]:
        return list(self.layers.parameters())


class Branches(IncrementalModel):
    """Encoder, decoder and an own section, and a branch with a batch norm and a dropout for each group."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), DropPath(0.0))
        self.decoder = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Dropout(0.5))
        self.extra_section = nn.Conv2d(4, 4, 1)
        self.branches = nn.ModuleList()
        self.said: list[tuple[str, int]] = []

    def add(self, channels: int, role: str = "classes", extra: int = 0) -> None:
        self.branches.append(
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, channels, 1))
        )
        self.said.append((role, extra))

    def grow(self, groups: Any) -> None:
        self.add(groups)

    add_group = grow

    def forward(self, images: Tensor, companions: Mapping[str, Tensor] | None = None, features: Any = None) -> Output:
        x = self.extra_section(self.decoder(self.encoder(images)))
        logits = torch.cat([branch(x) for branch in self.branches], 1)
        return Output(logits=logits, masks=logits, patches=x, class_features=None, class_tokens=None, encoded=x,
                      stages=())  # type: ignore[arg-type]  # fmt: skip

    features = from_features = forward  # type: ignore[assignment]

    def class_groups(self) -> list[Any]:
        return [BranchGroup(layers, *said) for layers, said in zip(self.branches, self.said, strict=True)]

    def sections(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "decoder": self.decoder, "neck": self.extra_section}


def context(step: int) -> StepContext:
    """SSUL's groups: unknown, background and 15 classes at step 0, then one of a class a step; one for the future."""
    model = Branches()
    model.add(1, "unknown", extra=1)
    model.add(1, "background")
    model.add(15)
    for _ in range(step):
        model.add(1)
    previous = None
    if step:
        previous = Branches()
        for channels, said in zip([1, 1, 15, *[1] * (step - 1)], model.said, strict=False):
            previous.add(channels, *said)
    model.add(1)  # of the step after
    model.train()
    return StepContext(SETTING, step, SETTING.old_classes(step), SETTING.new_classes(step), model, previous)


def optim(**changes: Any) -> OptimRecipe:
    return OptimRecipe(**{"lr": 1.0, "momentum": 0.9, "weight_decay": 0.1, "iterations": 5, **changes})


def used(context: StepContext, phase: OptimRecipe) -> dict[str, tuple[float, float]]:
    """Return rate and decay by part of the network; parts that are not learnt are missing."""
    names = {id(parameter): name for name, parameter in context.model.named_parameters()}
    found: dict[str, set[tuple[float, float]]] = {}
    for group in Stepper(context, phase, 5, CPU).optimizer.param_groups:
        for parameter in group["params"]:
            assert parameter.requires_grad
            part = ".".join(names[id(parameter)].split(".")[: 2 if "branches" in names[id(parameter)] else 1])
            found.setdefault(part, set()).add((group["lr"], round(group["weight_decay"], 9)))
    assert all(len(pairs) == 1 for pairs in found.values())
    return {part: pairs.pop() for part, pairs in found.items()}


PARTS = ["encoder", "decoder", "extra_section"]
UNKNOWN, BACKGROUND, BASE, SECOND, THIRD, NEXT = (f"branches.{i}" for i in range(6))


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({}, dict.fromkeys([*PARTS, UNKNOWN, BACKGROUND, BASE, SECOND, THIRD, NEXT], 1.0)),
        ({"encoder": 0.5, "neck": 0.25, "classifier": 2}, {
            "encoder": 0.5, "decoder": 1.0, "extra_section": 0.25,
            **dict.fromkeys([UNKNOWN, BACKGROUND, BASE, SECOND, THIRD, NEXT], 2.0)}),
        ({"old": 0.5, "new": 2, "future": 4, "encoder": 0, "decoder": 0, "neck": 0},
         {UNKNOWN: 0.5, BACKGROUND: 0.5, BASE: 0.5, SECOND: 0.5, THIRD: 2.0, NEXT: 4.0}),
        ({"old": 0.5, "base": 0.25, "classifier": 0, "encoder": 0, "decoder": 0, "neck": 0},
         {UNKNOWN: 0.5, BACKGROUND: 0.25, BASE: 0.25, SECOND: 0.5}),
        # SSUL from step 1 on
        ({"encoder": 0, "decoder": 0, "neck": 0, "old": 0, "future": 0, "unknown": 1, "background": 1e-4},
         {UNKNOWN: 1.0, BACKGROUND: 1e-4, THIRD: 1.0}),
    ],
)  # fmt: skip
def test_the_most_specific_selector_gives_the_rate(rates: dict[str, float], expected: dict[str, float]) -> None:
    there = context(2)
    found = used(there, optim(rates=rates))
    assert found == {part: (rate, 0.1) for part, rate in expected.items()}
    learnt = {name for name, parameter in there.model.named_parameters() if parameter.requires_grad}
    assert all(any(name.startswith(f"{part}.") for part in expected) for name in learnt)


def test_step_0_has_no_old_group_and_all_its_groups_of_classes_are_base() -> None:
    found = used(context(0), optim(rates={"old": 0.0, "new": 0.5, "base": 0.25, "future": 0.0}))
    rates = {part: rate for part, (rate, _) in found.items()}
    assert rates == {**dict.fromkeys(PARTS, 1.0), UNKNOWN: 0.5, BACKGROUND: 0.25, BASE: 0.25}


def test_decay_is_a_factor_on_weight_decay_by_selector() -> None:
    """DKD from step 1 on: the new classifier alone decays."""
    found = used(
        context(1), optim(decay={"encoder": 0, "decoder": 0, "neck": 0, "classifier": 0, "new": 1, "unknown": 2})
    )
    decays = {part: decay for part, (_, decay) in found.items()}
    none = dict.fromkeys([*PARTS, BACKGROUND, BASE, "branches.4"], 0.0)
    assert decays == {**none, UNKNOWN: 0.2, "branches.3": 0.1}


def test_what_is_not_learnt_stays_bit_for_bit_and_has_no_gradient() -> None:
    there = context(1)
    start = {name: tensor.clone() for name, tensor in there.model.named_parameters()}
    stepper = Stepper(there, optim(rates={"encoder": 0, "old": 0}, weight_decay=0.5), 5, CPU)
    stepper.start_iteration(0)
    stepper.backward(there.model(torch.randn(2, 3, 4, 4)).logits.square().mean())
    stepper.update(torch.tensor(True))
    for name, parameter in there.model.named_parameters():
        fixed = name.startswith(("encoder", UNKNOWN, BACKGROUND, BASE))
        assert torch.equal(parameter, start[name]) == fixed, name
        assert (parameter.grad is None) == fixed


@pytest.mark.parametrize("field", ["rates", "decay", "frozen_norms", "frozen_dropout"])
def test_a_word_that_names_nothing_of_the_network_is_refused_with_the_choices(field: str) -> None:
    value: Any = {"unknwon": 1.0} if field in ("rates", "decay") else ("unknwon",)
    with pytest.raises(RecipeError) as caught:
        Stepper(context(1), optim(**{field: value}), 5, CPU)
    assert f"{field} of step 1 names 'unknwon', which is nothing of this network" in str(caught.value)
    assert ("Did you mean 'unknown'?" in str(caught.value)) == (field != "frozen_dropout")


def test_the_role_that_all_groups_have_is_no_selector() -> None:
    with pytest.raises(RecipeError, match="'classes', which is nothing"):
        Stepper(context(1), optim(rates={"classes": 0.5}), 5, CPU)


def test_a_network_of_which_nothing_is_learnt_is_refused_unless_there_are_no_iterations() -> None:
    nothing = {"encoder": 0.0, "decoder": 0.0, "neck": 0.0, "classifier": 0.0}
    with pytest.raises(RecipeError, match="step 1 learns nothing"):
        Stepper(context(1), optim(rates=nothing), 5, CPU)
    assert Stepper(context(1), optim(rates=nothing, iterations=0), 0, CPU).parameters() == []


def in_evaluation(model: nn.Module, kind: tuple[type[nn.Module], ...]) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, kind) and not module.training}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), set()),
        (("all",), {"encoder.1", "decoder.1", *(f"branches.{i}.1" for i in range(5))}),
        (("encoder",), {"encoder.1"}),
        (("decoder",), {"decoder.1"}),
        (("classifier",), {f"branches.{i}.1" for i in range(5)}),
        (("old",), {f"branches.{i}.1" for i in range(3)}),
        (("unknown", "new"), {"branches.0.1", "branches.3.1"}),
    ],
)
def test_frozen_norms_keep_statistics_and_affine_parameters(words: tuple[str, ...], expected: set[str]) -> None:
    there = context(1)
    model = there.model
    stepper = Stepper(there, optim(frozen_norms=words), 5, CPU)
    model.train()
    assert in_evaluation(model, (nn.BatchNorm2d,)) == expected
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stepper.start_iteration(0)
    stepper.backward(model(torch.randn(4, 3, 4, 4) + 1).logits.square().mean())
    stepper.update(torch.tensor(True))
    fixed = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, start[name])}
    norms = {name for name in start if name.rpartition(".")[0] in expected}
    assert fixed >= norms
    assert {name.rpartition(".")[0] for name in fixed if "running" in name} == expected
    assert model.trains_batch_norm() == (words != ("all",))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("all",), {"encoder.2", "decoder.2", *(f"branches.{i}.2" for i in range(5))}),
        (("encoder",), {"encoder.2"}),
        (("decoder", "classifier"), {"decoder.2", *(f"branches.{i}.2" for i in range(5))}),
    ],
)
def test_frozen_dropout_is_off_in_training(words: tuple[str, ...], expected: set[str]) -> None:
    there = context(1)
    Stepper(there, optim(frozen_dropout=words), 5, CPU)
    there.model.train()
    assert in_evaluation(there.model, (nn.Dropout, DropPath)) == expected
    assert in_evaluation(there.model, (nn.BatchNorm2d,)) == set()
    there.model.eval().train()
    assert in_evaluation(there.model, (nn.Dropout, DropPath)) == expected


def test_freeze_batch_norm_fixes_statistics_alone_and_frozen_norms_what_they_name_besides() -> None:
    there = context(1)
    there.model.freeze_batch_norm = True
    stepper = Stepper(there, optim(frozen_norms=("decoder",)), 5, CPU)
    there.model.train()
    assert in_evaluation(there.model, (nn.BatchNorm2d,)) == {"encoder.1", "decoder.1"}
    learnt = {id(parameter) for parameter in stepper.parameters()}
    assert id(there.model.get_submodule("encoder.1").weight) in learnt


def test_the_next_phase_learns_again_what_this_one_froze_but_not_what_the_network_keeps_fixed() -> None:
    there = context(1)
    own = there.model.get_submodule("decoder.0").weight
    own.requires_grad_(False)  # as RCIL's network fixes its first branch
    Stepper(there, optim(rates={"encoder": 0, "decoder": 0}, frozen_norms=("all",), frozen_dropout=("all",)), 5, CPU)
    stepper = Stepper(there, optim(), 5, CPU)
    there.model.train()
    assert in_evaluation(there.model, (nn.BatchNorm2d, nn.Dropout, DropPath)) == set()
    learnt = {id(parameter) for parameter in stepper.parameters()}
    missing = [name for name, parameter in there.model.named_parameters() if id(parameter) not in learnt]
    assert missing == ["decoder.0.weight"]


def test_todays_recipes_have_one_group_of_parameters_a_section_in_the_order_of_the_network() -> None:
    """So checkpoints of interrupted steps still fit, and sums keep their order."""
    model = build_model("deeplabv3-tiny", 32)
    model.grow(16)
    there = StepContext(SETTING, 0, 0, 16, model, None)
    stepper = Stepper(there, optim(rates={"encoder": 0.5, "classifier": 1.0}), 5, CPU)
    names = {id(parameter): section for section, _, parameter in model.named_sections()}
    sections = [{names[id(p)] for p in group["params"]} for group in stepper.optimizer.param_groups]
    assert sections == [{"encoder"}, {"decoder"}, {"classifier"}]
    assert stepper.parameters() == [p for _, _, p in model.named_sections()]


def test_a_norm_that_is_replaced_under_its_name_stays_frozen() -> None:
    """Several devices replace the batch norms by ones that share their statistics."""
    there = context(1)
    Stepper(there, optim(frozen_norms=("encoder",)), 5, CPU)
    there.model.encoder[1] = nn.BatchNorm2d(4)
    there.model.train()
    assert in_evaluation(there.model, (nn.BatchNorm2d,)) == {"encoder.1"}


def test_drop_path_of_the_segmenter_can_be_frozen() -> None:
    model = build_model("segmenter-tiny", 16)
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate = 0.5
    model.grow(16)
    there = replace(context(0), model=model)
    images = torch.randn(4, 3, 16, 16)

    def differs(phase: OptimRecipe) -> bool:
        Stepper(there, phase, 5, CPU)
        model.train()
        return not torch.equal(model(images).logits, model(images).logits)

    assert differs(optim(frozen_dropout=("decoder",)))
    assert not differs(optim(frozen_dropout=("encoder", "decoder")))
    assert differs(optim())
