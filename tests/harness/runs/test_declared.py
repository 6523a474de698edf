"""What a method declares of itself is looked at when a run is planned; its scores make every prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.evaluate import Prediction
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Group, Method, Output
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.runs.execute import execute
from cispbench.harness.runs.options import RunOptions
from cispbench.harness.runs.plan import RunPlan, plan_run
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.wrapper import Wrapper, WrapperOptions
from cispbench.methods.finetune import FineTune
from cispbench.results.store import Store
from cispbench.splits.errors import MethodError, UsageError
from cispbench.splits.settings import Setting, parse_setting

SETTING = parse_setting("overlapped-10-10")
SOURCE = SyntheticSource("voc", train=12, val=2, size=32)


def planned(method: Method, **more: Any) -> RunPlan:
    changes = ["data.crop=32", "data.resize_short=null", "data.resize=none", "weights=none"]
    changes += ["evaluation.resize_short=null", "evaluation.crop=null"]
    for part in ("optim", "later"):
        changes += [f"{part}.batch=4", f"{part}.iterations=1", f"{part}.warmup=0", f"{part}.precision=fp32"]
    recipe = load_recipe(FineTune, SETTING, "quick", "deeplabv3-tiny", changes)
    return plan_run(setting=SETTING, method=method, recipe=recipe, profile="quick", seed=0, source=SOURCE, **more)


class Whole(FineTune):
    micro_batches = False


class OneDevice(Whole):
    devices = False


def test_a_method_whose_terms_need_the_whole_batch_refuses_its_division() -> None:
    with pytest.raises(UsageError, match="need the whole batch: --micro-batch would give other results") as error:
        planned(Whole(), micro_batch=2)
    assert error.value.hint == "Leave --micro-batch out."
    planned(Whole(), devices=2)
    planned(OneDevice())
    with pytest.raises(UsageError, match="the whole batch on one device: it cannot be trained on 2"):
        planned(OneDevice(), devices=2)
    planned(FineTune(), devices=2, micro_batch=1)


class Extra(FineTune):
    shared_base = False

    def layout(self, setting: Setting, step: int) -> tuple[Group, ...]:
        new = Group(setting.new_classes(step))
        return (Group(extra=1, role="unknown"), new) if step == 0 else (new,)


class Scored(Extra):
    """Its first channel is no class."""

    def scores(self, output: Output) -> Tensor:
        return output.logits[:, 1:]


class SharedExtra(Scored):
    shared_base = True


class TooMany(FineTune):
    shared_base = False

    def layout(self, setting: Setting, step: int) -> tuple[Group, ...]:
        return (Group(setting.new_classes(step) + 1),)


class TooFew(TooMany):
    def layout(self, setting: Setting, step: int) -> tuple[Group, ...]:
        return (Group(setting.new_classes(step) - step),)


class AllAtOnce(TooMany):
    def layout(self, setting: Setting, step: int) -> tuple[Group, ...]:
        return tuple(Group(setting.new_classes(each)) for each in range(len(setting.steps))) if step == 0 else ()


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Extra, "has channels that are no classes, and nothing says which class"),
        (SharedExtra, "shares its base with other methods, and has another layout at step 0"),
        (TooMany, "up to step 1 hold 23 classes"),
        (TooFew, "up to step 1 hold 20 classes, and the steps add 21"),
    ],
)
def test_a_layout_that_contradicts_the_rest_is_refused(method: type[Method], says: str) -> None:
    with pytest.raises(MethodError, match=says):
        planned(method())


def test_a_layout_may_hold_the_classes_of_later_steps() -> None:
    planned(AllAtOnce())


def test_the_key_of_the_evaluation_holds_the_method_where_the_method_makes_the_scores() -> None:
    plain, scored = planned(FineTune()), planned(Scored())
    assert planned(AllAtOnce()).evaluation_key == plain.evaluation_key != scored.evaluation_key

    class Around(Wrapper):
        name = "around"

    class Doubting(Around):
        def scores(self, output: Output) -> Tensor:
            return self.base.scores(output)

    keys = [
        planned(kind(WrapperOptions("finetune"), base)).evaluation_key
        for kind, base in ((Around, FineTune()), (Around, Scored()), (Doubting, FineTune()))
    ]
    assert keys[0] == plain.evaluation_key and len({plain.evaluation_key, scored.evaluation_key, *keys[1:]}) == 4


def test_masks_are_the_arg_max_of_the_scores(tmp_path: Path) -> None:
    """A method that predicts nothing but background."""

    class Blind(FineTune):
        shared_base = False

        def scores(self, output: Output) -> Tensor:
            return torch.nn.functional.one_hot(output.logits.argmax(1) * 0, output.logits.shape[1]).movedim(-1, 1)

    method = Blind()
    options = RunOptions(Store(tmp_path / "out"), StepStore(tmp_path / "steps"), torch.device("cpu"), ProgressView(),
                         source=SOURCE, method=method)  # fmt: skip
    for record in execute(planned(method), options).records:
        assert record.matrix()[:, 1:].sum() == 0 < record.matrix()[:, 0].sum()


@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (2, 8, 4, 4), (1, 5, 4, 4), (2, 5, 2, 4), (2, 5, 16)])
def test_scores_of_a_wrong_shape_are_an_error(shape: tuple[int, ...]) -> None:
    logits = torch.zeros(2, 6, 4, 4)
    output = Output(logits, logits, logits, logits, logits, logits)
    with pytest.raises(MethodError, match="the scores of the method have the shape"):
        Prediction(lambda _: torch.zeros(shape), 3, 7)(output)
    assert Prediction(lambda _: torch.zeros(2, 3, 4, 4), 3, 7)(output).shape == (2, 4, 4)
