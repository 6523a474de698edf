"""What a companion is padded with is part of what its maps stand for."""

from __future__ import annotations

from dataclasses import replace

from cispbench.harness.data.companions import maps_fingerprint
from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.step import Companion

SALIENCY = Companion("saliency", "saliency_map", fill=0)


def test_two_fills_of_the_same_maps_have_two_fingerprints() -> None:
    source = SyntheticSource("voc", train=3, val=1, size=24)
    found = [source.maps(replace(SALIENCY, fill=fill), "train", source.ids("train")).fingerprint for fill in (0, 1)]
    assert found[0] != found[1]
    assert maps_fingerprint(SALIENCY, {"a": "1"}) == maps_fingerprint(replace(SALIENCY, how_to_get="x"), {"a": "1"})
