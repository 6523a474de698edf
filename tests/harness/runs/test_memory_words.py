"""Too little memory: what a person is told to set is something that the method takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cispbench.splits.errors import RunError
from tests.harness.runs.test_memory import Keeper, run


class Large(Keeper):
    """Needs more memory than there is."""

    def losses(self, *given: Any) -> Any:
        raise MemoryError


class Whole(Large):
    """Needs the whole batch, too."""

    micro_batches = False


@pytest.mark.parametrize(("method", "named"), [(Large(), True), (Whole(), False)], ids=["parts", "whole"])
def test_micro_batches_are_named_to_methods_that_take_them(tmp_path: Path, method: Any, named: bool) -> None:
    with pytest.raises(RunError, match="memory of cpu does not suffice") as told:
        run(method, tmp_path)
    assert ("--micro-batch" in told.value.hint) == named and "data.crop" in told.value.hint
