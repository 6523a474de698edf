"""Which device a name stands for, and when torch is asked for it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cispbench.harness.machine import devices
from cispbench.splits.errors import UsageError


def with_accelerators(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    cuda = SimpleNamespace(is_available=lambda: count > 0, device_count=lambda: count)
    monkeypatch.setattr(devices, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(devices, "DRIVERS", (Path(sys.executable),))


def test_without_a_driver_auto_is_the_cpu_and_torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "torch", None)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(devices, "DRIVERS", (Path("/nowhere"),))
    assert devices.device_name("auto") == "cpu"


@pytest.mark.parametrize(("count", "name"), [(0, "cpu"), (2, "cuda")])
def test_with_a_driver_torch_says_what_auto_is(monkeypatch: pytest.MonkeyPatch, count: int, name: str) -> None:
    with_accelerators(monkeypatch, count)
    assert devices.device_name("auto") == name


def test_once_torch_is_loaded_it_is_asked_whatever_files_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with_accelerators(monkeypatch, 1)
    monkeypatch.setattr(devices, "DRIVERS", ())
    monkeypatch.setitem(sys.modules, "torch", devices.torch)
    assert devices.device_name("auto") == "cuda"


def test_elsewhere_than_on_linux_torch_is_asked_whatever_files_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with_accelerators(monkeypatch, 1)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(devices, "DRIVERS", ())
    monkeypatch.setattr(sys, "platform", "win32")
    assert devices.device_name("auto") == "cuda"


def test_each_of_several_processes_gets_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with_accelerators(monkeypatch, 2)
    assert [devices.device_name("cuda", rank) for rank in range(2)] == ["cuda:0", "cuda:1"]
    assert devices.device_name("cpu", 1) == "cpu"
    with pytest.raises(UsageError, match="no device 'cuda:2': torch sees 2"):
        devices.device_name("cuda", 2)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", ""])
def test_an_unknown_device_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with_accelerators(monkeypatch, 1)
    with pytest.raises(UsageError, match="unknown device"):
        devices.device_name(name)
