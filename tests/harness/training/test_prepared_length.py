"""A batch that a method lengthens or shortens names as many images as it has: the weights of terms go by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cispbench.harness.method import Batch, StepContext
from cispbench.harness.training.loop import StepTraining
from cispbench.splits.errors import MethodError
from tests.harness.training.test_trunk import Plain
from tests.harness.training.toys import RECIPE, job


class Doubling(Plain):
    """Sees each image once more, mirrored; ``names``: what it gives instead of what belongs to the images."""

    def __init__(self, **names: Any) -> None:
        super().__init__()
        self.names = names

    def prepare(self, batch: Batch, context: StepContext) -> Batch:
        images, target = (torch.cat([one, one.flip(-1)]) for one in (batch.images, batch.target))
        return replace(batch, **{"images": images, "target": target, "ids": batch.ids * 2, **self.names})


def train(tmp_path: Path, method: Doubling, micro_batch: int | None) -> dict[str, Any]:
    log = StepTraining(job(method, tmp_path / "none.pt", phases={"train": RECIPE}, micro_batch=micro_batch)).run()
    return log.terms


def test_terms_of_a_lengthened_batch_are_weighed_by_all_its_images(tmp_path: Path) -> None:
    whole, cut = (train(tmp_path, Doubling(), size) for size in (None, 2))
    for name, values in whole.items():
        torch.testing.assert_close(torch.tensor(values), torch.tensor(cut[name]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize(
    "names", [{"ids": ("a", "b", "c")}, {"origin": torch.zeros(1)}, {"companions": {"x": torch.zeros(1)}}], ids=str
)
def test_another_number_of_names_is_refused(tmp_path: Path, names: dict[str, Any], micro_batch: int | None) -> None:
    with pytest.raises(MethodError, match="prepare"):
        train(tmp_path, Doubling(**names), micro_batch)
