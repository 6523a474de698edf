"""The table of devices, and hours from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cispbench.harness.cost import measured
from cispbench.harness.cost.devices import GIB, THIS_CPU, device_table, named_devices
from cispbench.harness.cost.flops import Flops, Work
from cispbench.harness.cost.measured import network_speed
from cispbench.splits.errors import CispbenchError, UsageError

CPU = torch.device("cpu")


def work(precision: str, products: float, convolutions: float) -> Work:
    return Work("deeplabv3-tiny", 32, precision, Flops(products, convolutions))


def test_every_row_is_plausible() -> None:
    for name, device in device_table().items():
        peak = device.facts.peak
        assert name == name.lower() and device.facts.source and device.facts.title
        assert peak.fp32 <= peak.tf32 <= peak.bf16 and peak.bf16 == peak.fp16
        assert 8 <= device.memory / GIB <= 200


def test_seconds_are_those_of_a_share_of_the_peak() -> None:
    (a100,) = named_devices("a100")
    assert a100.seconds(work("bf16", 312e12 * 0.35, 0)) == pytest.approx(1)
    assert a100.seconds(work("bf16", 0, 312e12 * 0.2)) == pytest.approx(1)
    # In float32 convolutions run as TF32 by default, products of matrices do not.
    assert a100.seconds(work("fp32", 19.5e12 * 0.7, 156e12 * 0.2)) == pytest.approx(2)
    text = a100.describe(["fp32"])
    assert "19.5 TFLOP/s" in text and "20 % of 156 (tf32)" in text and "assumed" in text


def test_devices_are_named_once_and_in_their_order() -> None:
    names = [device.name for device in named_devices(" cpu,H100,,h100 ")]
    assert names == [THIS_CPU, "h100"]


@pytest.mark.parametrize(
    ("text", "hint"), [("h100,rtx4900", "Did you mean 'rtx4090'?"), ("tpu9", "Known: a100"), (",", "Known: h100")]
)
def test_an_unknown_device_is_refused_with_the_nearest(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        named_devices(text)
    assert hint in str(caught.value) and text in str(caught.value)


def test_a_broken_table_names_row_and_field(tmp_path: Path) -> None:
    path = tmp_path / "devices.yaml"
    path.write_text('slow: {title: "Slow", memory: -1, source: "none"}\n')
    with pytest.raises(CispbenchError, match=r"(?s)the device 'slow' in .*memory is -1.*peak is missing"):
        device_table(path)


def test_this_machine_is_measured_at_a_pass_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    (cpu,) = named_devices("cpu")
    monkeypatch.setattr(measured, "network_speed", lambda *_: 2e9)
    assert cpu.seconds(work("fp32", 1e9, 5e9)) == 3
    assert cpu.memory > GIB / 2 and "measured now" in cpu.describe(["fp32"])


def test_the_speed_is_measured_and_no_random_state_changes() -> None:
    before = torch.random.get_rng_state()
    assert 1e6 < network_speed("deeplabv3-tiny", 32, "fp32", CPU) < 1e14
    assert torch.equal(torch.random.get_rng_state(), before)


def test_images_and_weights_lie_in_memory_as_the_training_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def seconds(network: torch.nn.Module, images: torch.Tensor, precision: str) -> float:
        wide = [one for one in network.parameters() if one.dim() == 4 and min(one.shape[1:]) > 1]
        seen.extend(one.is_contiguous(memory_format=torch.channels_last) for one in (images, *wide))
        return 1.0

    monkeypatch.setattr(measured, "_seconds", seconds)
    network_speed.__wrapped__("deeplabv3-tiny", 32, "fp32", CPU)  # without its cache
    assert len(seen) > 2 and all(seen)
