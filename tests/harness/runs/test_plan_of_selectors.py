"""A recipe that a step's training would refuse is refused when the run is planned."""

from __future__ import annotations

from typing import Any

import pytest

from cispbench.harness.method import Group, Output
from cispbench.methods.finetune import FineTune
from cispbench.splits.errors import RecipeError
from tests.harness.runs.test_memory import planned


class LaterRole(FineTune):
    """Has channels of a role of their own from step 1 on."""

    shared_base = False

    def layout(self, setting: Any, step: int) -> tuple[Group, ...]:
        return (Group(setting.new_classes(step)), *([Group(extra=1, role="rest")] if step else []))

    def scores(self, output: Output) -> Any:
        return output.logits


@pytest.mark.parametrize("change", ["rates={rest: 2.0}", "decay={rest: 0.0}", "frozen_norms=[rest]"])
def test_a_role_is_named_in_the_steps_that_have_it(change: str) -> None:
    with pytest.raises(RecipeError, match="of step 0 names 'rest', which is nothing of this network"):
        planned(LaterRole(), f"optim.{change}")
    assert planned(LaterRole(), f"later.{change}").steps
