"""Optimisers that do not import torch's compiler: the same numbers, and a second less at the start of a process."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from cispbench.harness.training.uncompiled import uncompiled

KINDS = [(torch.optim.SGD, {"momentum": 0.9, "nesterov": True}), (torch.optim.AdamW, {"weight_decay": 0.1})]


def trained(kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 9))
    optimizer = kind([{"params": [parameter]}], lr=0.1, **options)  # type: ignore[call-arg]
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        (parameter**3).sum().backward()
        optimizer.step()
    again = kind([{"params": [parameter]}], lr=0.5, **options)  # type: ignore[call-arg]
    again.load_state_dict(optimizer.state_dict())
    return parameter.detach(), again.state_dict()


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_they_do_what_torchs_do(kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    (ours, state), (theirs, known) = trained(uncompiled(kind), options), trained(kind, options)
    assert torch.equal(ours, theirs)
    assert state["param_groups"] == known["param_groups"] and state["state"].keys() == known["state"].keys()
    for name, value in state["state"][0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(known["state"][0][name])), name


def test_no_compiler_is_imported() -> None:
    code = f"""
import sys, torch
from cispbench.harness.training.uncompiled import uncompiled
for kind, options in {[(kind.__name__, options) for kind, options in KINDS]}:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = uncompiled(getattr(torch.optim, kind))([parameter], lr=0.1, **options)
    parameter.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
