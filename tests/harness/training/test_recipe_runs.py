"""Whole runs by recipes that freeze, that use AdamW, and that have steps without iterations."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cispbench.harness.training import monitor

FROZEN = ["later.rates={encoder: 0, decoder: 0, old: 0}", "later.frozen_norms=[all]", "later.frozen_dropout=[all]"]
ADAMW = ["optim.optimizer=adamw", "optim.lr=0.01", "later.lr=0.01", "optim.weight_decay=0.01", "later.decay.new=3"]
TWO = ("--devices", "2", "--device", "cpu")


def changed(*overrides: str) -> list[str]:
    return [word for text in overrides for word in ("--set", text)]


def weights(commands: Any, step: int) -> dict[str, Tensor]:
    key = json.loads(commands.records()[step].read_text())["key"]
    found: dict[str, Tensor] = load_file(commands.steps / "steps" / key / "weights.safetensors")
    return found


@pytest.mark.parametrize("devices", [(), TWO])
def test_a_step_that_learns_the_new_classes_alone_leaves_all_else_bit_for_bit(
    commands: Any, devices: tuple[str, ...]
) -> None:
    commands.succeed(commands.tiny(*changed(*FROZEN), *devices, method="finetune"))
    before, after = weights(commands, 0), weights(commands, 1)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert len(after) > len(before)


def test_without_these_sections_everything_moves(commands: Any) -> None:
    """What the test above compares would show a difference."""
    commands.succeed(commands.tiny(method="finetune"))
    before, after = weights(commands, 0), weights(commands, 1)
    same = [name for name, tensor in before.items() if torch.equal(tensor, after[name])]
    assert same == []


def test_a_step_without_iterations_publishes_the_grown_network(commands: Any) -> None:
    commands.succeed(commands.tiny(*changed("later.iterations=0"), method="finetune"))
    record = json.loads(commands.records()[1].read_text())
    assert (record["iterations"], record["losses"]["iterations"]) == (0, [])
    before, after = weights(commands, 0), weights(commands, 1)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_an_interrupted_training_with_adamw_ends_bit_for_bit_as_if_it_had_not_been(
    commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = commands.tiny(*changed(*ADAMW), method="finetune", iterations=(6, 4))
    commands.succeed(words)
    straight = commands.outcome()
    commands.out, commands.steps = commands.home / "out again", commands.home / "steps again"
    monkeypatch.setattr(monitor, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(monitor, "CHECKPOINT_SHARE", 1e9)  # one after every iteration
    right, count = monitor.Monitor.after_iteration, [0]

    def interrupted(self: Any, losses: Any) -> None:
        right(self, losses)
        count[0] += 1
        if count[0] in (3, 9):
            raise KeyboardInterrupt

    monkeypatch.setattr(monitor.Monitor, "after_iteration", interrupted)
    again = [*words, *commands.places()]
    for _ in range(2):
        assert commands.invoke(again).exit_code != 0
    commands.succeed(again)
    assert json.loads(commands.records()[0].read_text())["timing"]["resumed"]
    assert commands.outcome() == straight


def test_a_selector_that_names_nothing_is_refused_before_anything_is_trained(commands: Any) -> None:
    words = commands.tiny(*changed("later.rates.unknown=0"), method="finetune")
    commands.refused(2, words, "rates of step 1 names 'unknown', which is nothing of this network")
    assert not commands.records()
