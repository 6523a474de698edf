"""The protocols are those of the table they were taken from."""

from __future__ import annotations

import dataclasses

import pytest

from cispbench.results.protocols import load_protocol, protocol_names
from cispbench.splits.errors import StoreError, UsageError

TABLE = {
    "mib20": ("dropped", "kept", False, False, "ignored", "ignored", 512, "last"),
    "plop21": ("dropped", "kept", True, True, "class 0", "background", 512, "last"),
    "ssul21": ("zero", "kept", True, True, "class 0", "removed", 513, "best"),
    "mbs24": ("zero", "dropped", False, True, "ignored", "removed", 512, "best"),
    "dkd22": ("zero", "kept", True, True, "class 0", "background", 0, "last"),
    "alife22": ("zero if predicted", "kept", True, True, "class 0", "background", 512, "last"),
    "strict": ("dropped", "kept", False, True, "ignored", "ignored", 512, "last"),
}


@pytest.mark.parametrize("name", TABLE)
def test_switches(name: str) -> None:
    rules = load_protocol(name)
    assert rules.name == name
    assert rules.version >= 1
    found = (
        rules.absent,
        rules.forgotten,
        rules.background_in_old,
        rules.background_in_all,
        rules.void,
        rules.future,
        rules.size,
        rules.checkpoint,
    )
    assert found == TABLE[name]
    assert rules.view == ("full" if name == "dkd22" else "crop")
    assert rules.images == ("seen" if name in ("dkd22", "alife22") else "all")
    assert rules.future_on == ({"ade": "ignored"} if name == "dkd22" else {})


def test_names() -> None:
    assert protocol_names()[0] == "strict"
    assert set(protocol_names()) == set(TABLE)
    with pytest.raises(UsageError, match=r"'mbs'.*'mbs24'"):
        load_protocol("mbs")


def test_a_crop_needs_a_size() -> None:
    with pytest.raises(StoreError, match="view 'full'"):
        dataclasses.replace(load_protocol("strict"), view="full")
    assert dataclasses.replace(load_protocol("strict"), view="full", size=0).size == 0
