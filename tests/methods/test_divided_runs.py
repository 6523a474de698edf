"""Every method learns on two processes, and from micro-batches, what it learns from whole batches, or refuses.

Nothing is drawn within the networks (no dropout), and batch norms that see a part of the batch are frozen: both would
differ, and must. Scenes of several scales, padded with void, and a batch of 5: the parts hold unequally much. Four
methods are in the suite, all others run with ``pytest -m slow tests/methods/test_divided_runs.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cispbench.harness.distributed import batch_norm
from cispbench.harness.distributed.batch_norm import synchronise
from cispbench.harness.distributed.group import Group, joined
from cispbench.harness.distributed.launcher import start
from cispbench.harness.registry import load_method, method_names
from cispbench.harness.runs.execute import execute
from cispbench.harness.runs.method_code import is_built_in
from cispbench.harness.runs.plan import RunPlan
from cispbench.harness.training import loop
from cispbench.results.record import StepRecord
from cispbench.splits.errors import UsageError
from tests.methods.short_runs import kept, options, plan

BUILT_IN = [name for name in method_names() if is_built_in(load_method(name))]
RUNS = [*(name for name in BUILT_IN if name != "ewf"), "ewf mib", "ewf plop"]
FAST = ("pi", "ssul_m", "dkd", "ewf plop")
OTHERS = tuple(name for name in RUNS if name not in FAST)
WHOLE_BATCHES = {"rcil", "reminder"}
UNEVEN = ("optim.batch=5", "later.batch=5", "data.resize=scale", "data.scale=[0.5, 1.5]", "data.pad_label=255")
# SGD: AdamW moves a parameter whose gradient is rounding noise, such as the bias of the keys, as far as any other.
SURE = ("optim.optimizer=sgd", "optim.lr=0.003", "later.lr=0.003", "optim.clip=null", "optim.frozen_dropout=[all]")
IDLE = {"triplet"}  # BARM's: with norms that are frozen, its margin is kept from the start
TOLERANCE = 1e-4  # relative, of every term of the loss in every iteration
CPU = torch.device("cpu")


def planned(name: str, norms: bool = True, **more: Any) -> RunPlan:
    changes = [*UNEVEN, *SURE, *([] if norms else ["optim.frozen_norms=[all]", "later.frozen_norms=[all]"])]
    if name.split()[-1] in ("plop", "reminder"):
        # Their thresholds are a bin's width apart: wide ones let none of these predictions through.
        changes.append("method.bins=1000" if " " not in name else "method.base_options.bins=1000")
    return plan(name, changes=changes, **more)


def train(name: str, made: RunPlan, folder: Path, **more: Any) -> list[StepRecord]:
    places = replace(options(folder), until=min(1, len(made.steps) - 1), **more)
    return execute(made, places).records


def on_two(names: Sequence[str], folder: str) -> None:
    """Train methods in one of two processes; the first one keeps the records."""
    with joined(CPU) as group:
        found = {name: train(name, planned(name, devices=2), Path(folder) / name, group=group) for name in names}
        if group.first:
            torch.save(found, Path(folder) / "records.pt")


def require_same(name: str, ours: list[StepRecord], theirs: list[StepRecord]) -> None:
    assert len(ours) == len(theirs) == (1 if name == "joint" else 2)
    for one, other in zip(ours, theirs, strict=True):
        assert one.key == other.key
        assert one.losses.iterations == other.losses.iterations and one.losses.iterations
        assert one.losses.terms.keys() == other.losses.terms.keys()
        for term, values in one.losses.terms.items():
            where = f"{term} of step {one.step} of {name}"
            assert any(values) or term in IDLE, f"{where} is 0 throughout: nothing is compared"
            assert values == pytest.approx(other.losses.terms[term], rel=TOLERANCE, abs=1e-7), where


def require_same_weights(name: str, ours: Path, theirs: Path) -> None:
    """Compare every tensor of the weights, and the method's state as a whole.

    PI and RW divide by squares of tiny moves: single elements of their states are quotients of rounding errors.
    """
    made, steps = planned(name), 1 if name == "joint" else 2
    pairs = zip(kept(made, ours, steps), kept(made, theirs, steps), strict=True)
    for number, (one, other) in enumerate(pairs):
        assert one.keys() == other.keys()
        if number % 2 == 0:
            for key, tensor in one.items():
                torch.testing.assert_close(tensor, other[key], rtol=1e-3, atol=1e-6, msg=f"{key} of {name}")
        elif one:
            flat, known = (torch.cat([found[key].double().flatten() for key in one]) for found in (one, other))
            assert (flat - known).norm() <= 1e-3 * known.norm(), f"the state of {name}"


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one process compute its batch norms as several do.

    torch adds up a batch norm's statistics one by one in float32, in the memory format of channels_last: some biases'
    gradients, sums that cancel, then differ by a hundredth, and this test would have to tolerate that everywhere.
    """

    def replace_norms(model: torch.nn.Module, group: Group, device: torch.device) -> None:
        synchronise(model, TwoOf(), device)  # type: ignore[arg-type]

    monkeypatch.setattr(batch_norm, "sum_over_all", lambda tensor: tensor)
    monkeypatch.setattr(loop, "synchronise", replace_norms)


@dataclass
class TwoOf:
    """What ``synchronise`` asks of a group of two processes."""

    size: int = 2


# All methods of a group, for the processes take longer to start than to train.
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("names", [FAST, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["fast", "others"])
@pytest.mark.usefixtures("exact_norms")
def test_two_processes_learn_what_one_does(tmp_path: Path, names: Sequence[str]) -> None:
    start(2, on_two, {"names": names, "folder": str(tmp_path)})
    twos: dict[str, list[StepRecord]] = torch.load(tmp_path / "records.pt", weights_only=False)
    assert twos.keys() == set(names)
    for name, records in twos.items():
        assert [record.execution.devices for record in records] == [2] * len(records)
        require_same(name, train(name, planned(name), tmp_path / "one" / name), records)
        require_same_weights(name, tmp_path / "one" / name, tmp_path / name)


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_micro_batches_learn_what_whole_batches_do(tmp_path: Path, name: str) -> None:
    if name in WHOLE_BATCHES:
        pytest.skip("refused, as another test shows")
    whole = train(name, planned(name, norms=False), tmp_path / "whole")
    parts = train(name, planned(name, norms=False, micro_batch=3), tmp_path / "parts")
    assert [record.execution.micro_batch for record in parts] == [3] * len(parts)
    require_same(name, whole, parts)


@pytest.mark.parametrize("name", sorted(WHOLE_BATCHES))
def test_methods_that_need_whole_batches_refuse_micro_batches(name: str) -> None:
    with pytest.raises(UsageError) as error:
        planned(name, micro_batch=3)
    assert error.value.message == (
        f"{name} has terms of the loss that need the whole batch: --micro-batch would give other results without an "
        "error."
    )
    assert error.value.hint == "Leave --micro-batch out."


def test_no_method_is_left_out() -> None:
    assert len(BUILT_IN) >= 19 and {name.split()[0] for name in RUNS} == set(BUILT_IN)
    classes = [load_method(name) for name in BUILT_IN]
    assert {cls.name for cls in classes if not cls.micro_batches} == WHOLE_BATCHES
    assert all(cls.devices for cls in classes)
