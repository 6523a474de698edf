"""The dry run of the measurement: it trains each network for two iterations and prints a row for each."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from tests.gpu import bench
from tests.gpu.training_step import Case, begin


def test_a_dry_run_on_the_cpu_prints_a_row_for_each_method(capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--device", "cpu", "--size", "64", "--batch", "2", "--iterations", "2", "--precision", "fp32"])
    first, _, header, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert first == f"CPU, torch {torch.__version__}"
    assert header.startswith("| method | network |")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [(row[0], row[1]) for row in cells] == list(bench.CASES)
    for row in cells:
        assert row[2:5] == ["64", "2", "fp32"] and float(row[5]) > 0 and float(row[6]) > 0.001
        assert row[7:] == ["-", "-"]


def test_what_is_measured_lies_in_memory_as_in_a_training() -> None:
    training = begin(Case("mib", "deeplabv3-tiny", 32, batch=2, profile="quick"), torch.device("cpu"), iterations=2)
    first, second = islice(training.batches(), 2)
    last = torch.channels_last
    assert training.context.previous is not None
    for model in (training.context.model, training.context.previous):
        wide = [one for one in model.parameters() if one.dim() == 4 and min(one.shape[1:]) > 1]
        assert wide and all(one.is_contiguous(memory_format=last) for one in wide)
    for batch in (first, second):
        assert batch.images.is_contiguous(memory_format=last) and batch.images.dtype == torch.float32
        assert abs(float(batch.images.mean())) < 0.5 and 0.5 < float(batch.images.std()) < 2
    assert not torch.equal(first.images, second.images)


@pytest.mark.parametrize(
    ("name", "tera"), [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312),
                       ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("Something Else", None)],
)  # fmt: skip
def test_peaks_are_found_by_the_devices_name(monkeypatch: pytest.MonkeyPatch, name: str, tera: int | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert bench.peak_of(torch.device("cuda")) == (None if tera is None else tera * 1e12)


@pytest.mark.parametrize(("batch", "tries"), [(12, [12, 6, 3]), (None, [None, 12, 6, 3])])
def test_a_batch_that_does_not_fit_is_halved(
    monkeypatch: pytest.MonkeyPatch, batch: int | None, tries: list[int | None]
) -> None:
    tried = []

    def measured(case: bench.Case, device: torch.device, iterations: int, limit: float) -> bench.Measured:
        tried.append(case.batch)
        if case.batch is None or case.batch > 3:
            raise torch.OutOfMemoryError
        return bench.Measured(case, case.batch, 1.0, 1, None)

    monkeypatch.setattr(bench, "_measured", measured)
    found = bench.measure(bench.Case("plop", "deeplabv3-resnet101", 32, batch), torch.device("cpu"), 1, 1.0)
    assert (tried, found.batch) == (tries, 3)
