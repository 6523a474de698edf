"""Pre-trained weights that are missing, damaged, foreign or dangerous: named with the file and the way out."""

from __future__ import annotations

import os
import pickle
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cispbench.harness.models import weights_download, weights_table
from cispbench.harness.models.catalogue import build_model

MODEL = "deeplabv3-resnet18"


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return (os.system, (f"touch {self.trace}",))


@pytest.fixture(scope="module")
def encoder() -> dict[str, torch.Tensor]:
    """A state dict as torchvision's ResNet-18 has it, of random values."""
    net: Any = build_model(MODEL, 32).sections()["encoder"]
    state: dict[str, torch.Tensor] = net.net.state_dict()
    return state


def words(commands: Any, choice: Path | str, model: str = MODEL) -> list[str]:
    tiny: list[str] = commands.tiny("--model", model, "--weights", str(choice), method="mib", iterations=(1, 1))
    return tiny


def failed(commands: Any, command: list[str], *says: str) -> str:
    message: str = commands.refused(1, command, *says)
    assert commands.records() == {}
    assert list(commands.steps.glob("steps/*")) == []
    assert commands.leftovers() == []
    return message


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_text_file_is_no_file_of_weights(commands: Any, suffix: str) -> None:
    path = commands.home / f"net{suffix}"
    path.write_text("hello, these are no weights\n")
    message = failed(commands, words(commands, path), str(path))
    # A reason in words: what a reader of pickles stumbles over first is a bare number.
    assert re.search(r"[a-z]{3,} [a-z]+", message.partition(f"{path}: ")[2].partition(".")[0])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file(commands: Any, encoder: dict[str, torch.Tensor], suffix: str) -> None:
    from safetensors.torch import save_file

    path = commands.home / f"net{suffix}"
    small = {key: value for key, value in encoder.items() if key.startswith("layer1.")}
    if suffix == ".pth":
        torch.save(small, path)
    else:
        save_file(small, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    failed(commands, words(commands, path), str(path), "Fetch it again")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_runs_code_is_refused_and_runs_none(commands: Any, legacy: bool) -> None:
    trace, path = commands.home / "trace", commands.home / "net.pth"
    content = {"conv1.weight": torch.zeros(1), "extra": Payload(trace)}
    if legacy:
        path.write_bytes(pickle.dumps(content["extra"], protocol=2))
    else:
        torch.save(content, path)
    message = failed(commands, words(commands, path), str(path))
    assert not trace.exists()
    assert "system" in message, "the error does not say what the file wanted to run"
    assert "weights_only" not in message


def test_weights_of_another_architecture(commands: Any, encoder: dict[str, torch.Tensor]) -> None:
    path = commands.home / "net.pth"
    torch.save(encoder, path)
    failed(commands, words(commands, path, "deeplabv3-resnet34"), str(path), "ResNet-34", "ResNet-18")
    failed(commands, words(commands, path, "deeplabv3-tiny"), str(path), "--weights none")
    torch.save({key: value for key, value in encoder.items() if key != "layer1.0.conv1.weight"}, path)
    failed(commands, words(commands, path), str(path), "layer1.0.conv1.weight")
    torch.save([1, 2], path)
    failed(commands, words(commands, path), str(path), "list")


def test_a_file_that_does_not_exist(commands: Any) -> None:
    failed(commands, words(commands, commands.home / "net.pth"), str(commands.home / "net.pth"))
    message = failed(commands, words(commands, "pretrained", "deeplabv3-tiny"), "deeplabv3-tiny")
    assert "--weights none" in message


def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it(
    commands: Any, encoder: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = commands.home / "fetched-elsewhere.pth"
    torch.save(encoder, source)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/nets/resnet18-test.pth"
        entry = {
            "url": url,
            "sha256": weights_download.file_sha256(source),
            "architecture": "resnet18",
            "normalise": "imagenet",
        }
        table = commands.home / "weights.yaml"
        table.write_text(yaml.safe_dump({"resnet18-imagenet": entry | {"source": "ours", "licence": "MIT"}}))
        monkeypatch.setattr(weights_table, "TABLE", table)
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(weights_download.time, "sleep", lambda seconds: None)
        folder = commands.steps / "weights"
        failed(commands, words(commands, "pretrained"), "resnet18-imagenet", url, "resnet18-test.pth", str(folder))
        # The advice is good: with the file in that place the very same command runs.
        source.rename(folder / "resnet18-test.pth")
        commands.succeed(words(commands, "pretrained"))
    assert set(commands.records()) == {0, 1}


def test_a_fetched_file_with_a_wrong_checksum_is_refused(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = commands.home / "served.pth"
    served.write_text("something else")
    entry = {"url": served.as_uri(), "sha256": "0" * 64, "architecture": "resnet18", "normalise": "imagenet"}
    table = commands.home / "weights.yaml"
    table.write_text(yaml.safe_dump({"resnet18-imagenet": entry | {"source": "ours", "licence": "MIT"}}))
    monkeypatch.setattr(weights_table, "TABLE", table)
    failed(commands, words(commands, "resnet18-imagenet"), "SHA-256", served.as_uri(), "0" * 64)
    assert list((commands.steps / "weights").glob("*.pth*")) == []
