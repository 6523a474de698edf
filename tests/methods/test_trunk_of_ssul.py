"""SSUL's recipe as it runs: the trunk that its later steps freeze is computed once for both networks, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cispbench.harness.runs.execute import execute
from cispbench.harness.training import iteration
from tests.methods.short_runs import kept, options, plan


@pytest.mark.parametrize("model", ["deeplabv3-tiny-branches", "deeplabv3-mobilenetv2-branches"])
@pytest.mark.parametrize("name", ["ssul", "ssul_m"])
def test_later_steps_share_their_trunk_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, model: str
) -> None:
    made = plan(name, model)
    shared: list[bool] = []
    asked = iteration.shares_trunk
    monkeypatch.setattr(iteration, "shares_trunk", lambda *given: shared.append(asked(*given)) or shared[-1])
    once = execute(made, options(tmp_path / "once")).records
    assert shared == [False, True, True]  # the base has no previous network
    monkeypatch.setattr(iteration, "shares_trunk", lambda *_: False)
    twice = execute(made, options(tmp_path / "twice")).records
    for ours, theirs in zip(once, twice, strict=True):
        assert ours.losses == theirs.losses and ours.confusion == theirs.confusion
    pairs = list(zip(kept(made, tmp_path / "once"), kept(made, tmp_path / "twice"), strict=True))
    assert len(pairs) == 6
    for weights, others in pairs:
        assert weights.keys() == others.keys()
        assert all(torch.equal(tensor, others[key]) for key, tensor in weights.items())


def test_its_network_has_the_dropout_that_comes_after_the_trunk() -> None:
    from cispbench.harness.models.catalogue import build_model

    rates = [
        part.p for part in build_model("deeplabv3-tiny-branches", 24).modules() if isinstance(part, torch.nn.Dropout)
    ]
    assert rates and all(rate > 0 for rate in rates)
