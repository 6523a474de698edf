"""What a method declares wrongly is refused at the plan: a slip of the pen must not choose the other way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cispbench.harness.method import Group, Memory
from cispbench.harness.step import Companion
from cispbench.methods.finetune import FineTune
from cispbench.splits.errors import MethodError
from tests.harness.runs.test_memory import SALIENCY, Keeper, planned


class Declaring(Keeper):
    """Declares what it is given."""

    def __init__(self, memory: Any = None, companions: Any = ()) -> None:
        super().__init__()
        self.own_memory, self.own_companions = memory, companions

    def memory(self) -> Any:
        return self.own_memory


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        (Memory(5, "apend"), "use is 'apend'"),  # type: ignore[arg-type]
        (Memory(5, labels="all"), "labels is 'all'"),  # type: ignore[arg-type]
        (Memory(5, view="center"), "view is 'center'"),  # type: ignore[arg-type]
        (Memory(2.5), "size is 2.5"),  # type: ignore[arg-type]
        (Memory(0), "size is 0"),
        ({"size": 5}, "is no Memory"),
    ],
    ids=str,
)
def test_a_memory_of_wrong_words_is_refused(memory: Any, says: str) -> None:
    with pytest.raises(MethodError, match=f"the memory of finetune.*{says}"):
        planned(Declaring(memory))


@pytest.mark.parametrize(
    ("companions", "says"),
    [
        ((SALIENCY, replace(SALIENCY, fill=1)), "'saliency' is there twice"),
        ((replace(SALIENCY, fill=300),), "fill is 300"),
        ((replace(SALIENCY, fill=-1),), "fill is -1"),
        ((replace(SALIENCY, name=""),), "name is empty"),
        ((replace(SALIENCY, at_test="no"),), "at_test is 'no'"),
        (("saliency",), "is no Companion"),
    ],
    ids=[str(number) for number in range(6)],
)
def test_companions_that_contradict_themselves_are_refused(companions: Any, says: str) -> None:
    with pytest.raises(MethodError, match=f"companion.* of finetune.*{says}"):
        planned(Declaring(None, companions))
    assert planned(Declaring(Memory(5), (SALIENCY,))).steps
    assert isinstance(SALIENCY, Companion)


@pytest.mark.parametrize("role", ["old", "base", "new", "future", "encoder", "decoder", "classifier", "all"])
def test_a_role_has_no_name_that_means_something_else_in_a_recipe(role: str) -> None:
    class Named(FineTune):
        shared_base = False

        def layout(self, setting: Any, step: int) -> tuple[Group, ...]:
            return (Group(setting.new_classes(step), role=role),)

    with pytest.raises(MethodError, match=f"the role '{role}'"):
        planned(Named())
