"""The data sets that come with cispbench, as their entry points name them: one YAML file each."""

from __future__ import annotations

from pathlib import Path

from cispbench.splits.datasets import read_dataset

_HERE = Path(__file__).parent

VOC = read_dataset(_HERE / "voc.yaml")
ADE = read_dataset(_HERE / "ade.yaml")
