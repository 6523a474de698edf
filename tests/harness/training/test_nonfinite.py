"""Losses that are NaN or infinite."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cispbench.harness.distributed.group import ALONE
from cispbench.harness.method import Batch, Output, StepContext
from cispbench.harness.training import monitor, nonfinite, optimisation
from cispbench.harness.training.checkpoint_file import read_checkpoint
from cispbench.harness.training.guarded_update import GuardedUpdate
from cispbench.harness.training.nonfinite import HostLosses, SkippedIterations, require_finite_weights
from cispbench.harness.training.shared_base import SharedBase
from cispbench.splits.errors import RunError

NAN = float("nan")


class Net(nn.Module):
    """A layer and a batch norm, to be trained by SGD with momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


def state(net: Net, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    momenta = {f"momentum {i}": s["momentum_buffer"] for i, s in enumerate(optimizer.state.values())}
    return {name: tensor.clone() for name, tensor in {**net.state_dict(), **momenta}.items()}


def test_an_update_that_is_no_number_leaves_no_trace() -> None:
    torch.manual_seed(0)
    net, batches = Net(), torch.randn(4, 5, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    guard = GuardedUpdate(net, optimizer, on_host=True)

    def iterate(x: Tensor, factor: float) -> None:
        guard.remember_buffers()
        optimizer.zero_grad()
        loss = net(x).square().mean() * factor
        loss.backward()
        guard.update_if(loss.detach().isfinite(), optimizer.step)

    clean = state(net, optimizer)
    iterate(batches[0], NAN)  # before there is any momentum
    after = state(net, optimizer)
    assert all(torch.equal(after[name], clean[name]) for name in clean)
    assert all(not tensor.any() for name, tensor in after.items() if name.startswith("momentum"))
    iterate(batches[1], 1.0)
    kept = state(net, optimizer)
    assert not torch.equal(kept["layer.weight"], clean["layer.weight"])
    assert not torch.equal(kept["norm.running_mean"], clean["norm.running_mean"])
    iterate(batches[2], NAN)
    assert {name: torch.equal(t, kept[name]) for name, t in state(net, optimizer).items()} == dict.fromkeys(kept, True)
    iterate(batches[3], 1.0)

    torch.manual_seed(0)
    other = Net()
    plain = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for x in (batches[1], batches[3]):  # as if the others had never been
        plain.zero_grad()
        other(x).square().mean().backward()
        plain.step()
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, rtol=0, atol=0)


def read(iteration: int, value: float, finite: bool = True, ids: tuple[str, ...] = ("a", "b")) -> HostLosses:
    loss_finite = math.isfinite(value)
    return HostLosses(iteration, ids, {"ce": value, "other": 1.0}, finite and loss_finite, share_finite=loss_finite)


def test_single_skips_are_counted_and_a_row_of_them_ends_the_step() -> None:
    skips = SkippedIterations(step=2, iterations=1000)
    for iteration in range(1, 9):
        skips.count(read(iteration, NAN if iteration % 2 else 1.0), ALONE)
    assert (skips.in_all, skips.in_a_row) == (4, 0)
    for iteration in range(9, 9 + nonfinite.SKIPPED_IN_A_ROW - 1):
        skips.count(read(iteration, math.inf), ALONE)
    with pytest.raises(RunError) as error:
        skips.count(read(13, math.inf, ids=("2007_000032", "2007_000039")), ALONE)
    said = str(error.value)
    assert "the loss ce is not a finite number at iteration 9 to 13 of step 2" in said
    assert "5 iterations in a row were skipped" in said
    assert "2007_000032, 2007_000039" in said
    assert "optim.lr" in str(error.value.hint)


def test_a_gradient_that_overflows_after_a_finite_loss_is_told_as_one() -> None:
    skips = SkippedIterations(step=0, iterations=3)
    skips.count(read(1, 1.0, finite=False), ALONE)
    skips.count(read(2, 1.0, finite=False), ALONE)
    with pytest.raises(RunError, match="the gradient's norm is not a finite number at iteration 1 to 3 of step 0"):
        skips.count(read(3, 1.0, finite=False), ALONE)


def test_more_than_a_share_of_all_iterations_ends_the_step() -> None:
    skips = SkippedIterations(step=1, iterations=1000)
    for iteration in range(0, 20, 2):
        skips.count(read(iteration + 1, NAN), ALONE)
        skips.count(read(iteration + 2, 1.0), ALONE)
    assert skips.in_all == 10 == nonfinite.SKIPPED_SHARE * 1000
    with pytest.raises(RunError, match="11 of 1000 iterations were skipped"):
        skips.count(read(21, NAN), ALONE)


def test_many_images_are_told_by_the_first_and_by_their_number() -> None:
    skips = SkippedIterations(step=0, iterations=1)
    with pytest.raises(RunError, match="i0, i1, i2, i3, i4, i5, i6, i7 and 4 more"):
        skips.count(read(1, NAN, ids=tuple(f"i{n}" for n in range(12))), ALONE)


@pytest.mark.parametrize("name", ["layer.weight", "norm.running_var"])
def test_weights_and_statistics_that_are_no_numbers_are_not_kept(name: str) -> None:
    net = Net()
    require_finite_weights(net, 1, 7)
    net.state_dict()[name].view(-1)[0] = math.inf
    with pytest.raises(RunError, match=rf"after iteration 7 of step 1 \({name}\)"):
        require_finite_weights(net, 1, 7)


def spoil(monkeypatch: pytest.MonkeyPatch, when: set[int]) -> list[tuple[str, ...]]:
    """Let the base's loss be nan in the iterations ``when`` (from 1) of step 0; returns all batches' ids."""
    seen: list[tuple[str, ...]] = []
    right = SharedBase.losses

    def losses(
        self: SharedBase, batch: Batch, output: Output, previous: Output | None, context: StepContext
    ) -> dict[str, Tensor]:
        terms = right(self, batch, output, previous, context)
        seen.append(batch.ids)
        return {name: term * NAN if context.step == 0 and len(seen) in when else term for name, term in terms.items()}

    monkeypatch.setattr(SharedBase, "losses", losses)
    return seen


def test_a_run_goes_on_after_a_loss_that_is_no_number_and_records_it(
    commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {2, 4})
    said = commands.succeed(commands.tiny("--quiet", method="finetune", iterations=(6, 2))).stderr
    assert said.count("\n") == 1 and "the loss cross_entropy is not a finite number at iteration 2" in said
    first, second = (json.loads(commands.records()[step].read_text()) for step in (0, 1))
    assert (first["skipped_steps"], second["skipped_steps"]) == (2, 0)
    assert first["losses"]["iterations"] == [1, 3, 5, 6]
    assert all(map(math.isfinite, first["losses"]["terms"]["cross_entropy"]))


def test_a_run_whose_losses_stay_no_numbers_ends_and_its_last_checkpoint_is_sound(
    commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spoil(monkeypatch, {4, 5, 6, 7, 8})
    monkeypatch.setattr(monitor, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(monitor, "CHECKPOINT_SHARE", 1e9)  # one after every iteration
    message = commands.refused(
        1, commands.tiny(method="finetune", iterations=(20, 2)), "the loss cross_entropy is not a finite number",
        "at iteration 4 to 8 of step 0", "5 iterations in a row",
    )  # fmt: skip
    assert all(name in message for name in seen[7])
    (path,) = commands.steps.glob("work/*/checkpoint*")
    kept = read_checkpoint(path)
    assert kept is not None
    assert kept["iteration"] >= 3
    assert all(tensor.isfinite().all() for tensor in kept["model"].values() if tensor.is_floating_point())
    assert not commands.records() and not list(commands.steps.glob("steps/*/manifest.json"))


def test_what_is_left_out_on_the_device_is_what_is_never_done_on_the_host(
    commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, ends = commands.tiny(method="finetune", iterations=(6, 2)), []
    monkeypatch.setattr(optimisation, "fuses", lambda device: True)
    for place in ("host", "device"):
        commands.out, commands.steps = commands.home / f"out of {place}", commands.home / f"steps of {place}"
        with monkeypatch.context() as patch:
            patch.setattr(optimisation, "GuardedUpdate", partial(guard_of, place == "host"))
            spoil(patch, {1, 4})
            commands.succeed([*words, *commands.places()])
        ends.append(commands.outcome())
    assert ends[0] == ends[1] and len(ends[0]) == 2


def guard_of(chosen: bool, model: nn.Module, optimizer: torch.optim.Optimizer, on_host: bool) -> GuardedUpdate:
    assert not on_host  # as the optimiser is fused
    return GuardedUpdate(model, optimizer, chosen)


@pytest.mark.parametrize("saved", [False, True])
def test_weights_that_are_no_numbers_are_neither_saved_nor_published(
    commands: Any, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    right = SharedBase.losses

    def losses(
        self: SharedBase, batch: Batch, output: Output, previous: Output | None, context: StepContext
    ) -> dict[str, Tensor]:
        # A finite loss, 0, of which the gradient is no number: the root of 0.
        terms = right(self, batch, output, previous, context)
        return {**terms, "root": (output.logits * 0.0).sum().abs().sqrt()}

    monkeypatch.setattr(SharedBase, "losses", losses)
    if saved:
        monkeypatch.setattr(monitor, "CHECKPOINT_SECONDS", 0.0)
    iteration = 1 if saved else 3
    # Of three losses all but the first are no numbers: too few to end the step for their own sake.
    words = commands.tiny(method="finetune", iterations=(iteration + saved, 2))
    told = commands.refused(1, words, "the gradients overflowed", "--set optim.clip=1")
    assert f"the weights are not finite numbers after iteration {iteration} of step 0" in told
    assert not list(commands.steps.glob("work/*/checkpoint*")) and not list(commands.steps.glob("steps/*"))


def test_with_fp16_a_loss_that_is_no_number_is_counted_once_though_its_gradients_are_finite(
    commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, calls = SharedBase.losses, [0]

    def losses(self: SharedBase, *args: Any) -> dict[str, Tensor]:
        calls[0] += 1
        terms = right(self, *args)
        return {**terms, "constant": torch.tensor(math.inf)} if calls[0] in (2, 4) else terms

    monkeypatch.setattr(SharedBase, "losses", losses)
    commands.succeed(commands.tiny("--set", "optim.precision=fp16", method="finetune", iterations=(6, 2)))
    first, second = (json.loads(commands.records()[step].read_text()) for step in (0, 1))
    assert (first["skipped_steps"], second["skipped_steps"]) == (2, 0)
    assert first["losses"]["iterations"] == [1, 3, 5, 6]
