"""Class names and palettes."""

from __future__ import annotations

import pytest

from cispbench.splits.classes import class_names, palette
from cispbench.splits.errors import SettingError


def test_names_and_palettes_are_indexed_by_class_number() -> None:
    assert len(class_names("voc")) == len(palette("voc")) == 21
    assert len(class_names("ade")) == len(palette("ade")) == 151
    assert class_names("voc")[0] == class_names("ade")[0] == "background"
    assert (class_names("voc")[15], class_names("voc")[20]) == ("person", "tvmonitor")
    assert (class_names("ade")[1], class_names("ade")[150]) == ("wall", "flag")
    assert palette("voc")[:3] == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert len(set(class_names("voc"))) == 21


def test_voc_palette_is_the_bit_interleaved_one() -> None:
    for number, colour in enumerate(palette("voc")):
        bits = [
            sum(((number >> (3 * place + channel)) & 1) << (7 - place) for place in range(3)) for channel in range(3)
        ]
        assert colour == tuple(bits)


def test_an_unknown_data_set_is_an_error() -> None:
    with pytest.raises(SettingError, match=r"'vok'.*'voc'"):
        class_names("vok")
