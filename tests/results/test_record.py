"""Records: a stable text, a strict reader."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cispbench.results.record import SCHEMA, StepRecord, confusion_rows, upgraded
from cispbench.results.record_fields import Execution, Losses, Timing, TrainedFor
from cispbench.results.scan import scan_record
from cispbench.results.store import Store
from cispbench.splits.errors import StoreError

Maker = Callable[..., StepRecord]


def test_text_and_record_are_the_same_thing(make_record: Maker) -> None:
    record = make_record(step=2)
    text = record.to_json()
    again = StepRecord.from_json(text, "here")
    assert again == record
    assert again.to_json() == text
    assert again.recipe["crop"] == [512, 512]
    assert np.array_equal(again.matrix(), np.asarray(record.confusion))
    assert not record.finished
    assert make_record(step=5).finished


def test_the_text_keeps_diffs_readable(make_record: Maker) -> None:
    record = make_record()
    checksum, *lines = record.to_json().decode().split("\n")[1:]
    assert re.fullmatch(r' "sha256": "[0-9a-f]{64}",', checksum)
    row = json.dumps(list(record.confusion[3]))
    assert sum(line.strip(" ,") == row for line in lines) == 1
    keys = [line.split('"')[1] for line in lines if line.startswith(' "')]
    assert keys == sorted(keys)
    assert len(keys) == len(record.content()) == 35
    changed = list(map(list, record.confusion))
    changed[3][4] += 1
    other = make_record(confusion=changed).to_json().decode().split("\n")[2:]
    assert sum(ours != theirs for ours, theirs in zip(lines, other, strict=True)) == 1


def test_a_record_of_the_first_schema_stays_readable() -> None:
    path = Path(__file__).parent / "record_schema_1.json"
    record = StepRecord.from_json(path.read_bytes(), str(path))
    assert record.setting == "disjoint-15-1-b"
    assert record.learning_order[1] == 12
    assert (record.schema, record.execution, record.origin) == (SCHEMA, Execution(1, None), "measured")
    assert record.trained_for is None
    assert not record.shared
    assert StepRecord.from_json(record.to_json(), "x") == record
    before, now = json.loads(path.read_text(encoding="utf-8")), record.content()
    before["method"]["code"] = None  # earlier versions did not know the digest of the method's code
    assert {name: now[name] for name in before} == {**before, "schema": SCHEMA}


def test_a_record_of_the_fourth_schema_was_trained_with_nothing_switched_on(tmp_path: Path) -> None:
    path = Path(__file__).parent / "record_schema_4.json"
    record = StepRecord.from_json(path.read_bytes(), str(path))
    assert (record.schema, record.execution) == (SCHEMA, Execution(2, 6, compile=False, tf32=False))
    assert StepRecord.from_json(record.to_json(), "x") == record
    before, now = json.loads(path.read_text(encoding="utf-8")), record.content()
    del before["sha256"]
    before["execution"] |= {"compile": False, "tf32": False, "cudnn_benchmark": False}
    assert now == {**before, "schema": SCHEMA}
    assert scan_record(Store(tmp_path).write(record)).facts.execution == record.execution


@pytest.mark.parametrize("schema", [1, 2, 3, 4])
def test_an_upgrade_adds_what_is_missing_within_a_field_and_keeps_what_is_there(schema: int) -> None:
    whole = {"devices": 2, "micro_batch": None, "compile": False, "tf32": True, "cudnn_benchmark": False}
    given = {"schema": schema, "execution": {"devices": 2, "micro_batch": None, "tf32": True}}
    assert upgraded(given)["execution"] == whole
    assert given["execution"] == {"devices": 2, "micro_batch": None, "tf32": True}  # itself unchanged
    assert upgraded({"schema": SCHEMA, "execution": {"devices": 2}})["execution"] == {"devices": 2}
    assert upgraded({"schema": schema, "execution": 7})["execution"] == 7


def test_a_step_is_shared_if_another_run_made_it(make_record: Maker) -> None:
    own = TrainedFor("mib", "overlapped-15-1", 0, "0123456789abcdef")
    assert not make_record(trained_for=own).shared
    assert make_record(trained_for=replace(own, run_key="fedcba9876543210")).shared


def edited(record: StepRecord, path: str, value: Any) -> dict[str, Any]:
    tree = record.content()
    *outer, last = path.split(".")
    place = tree
    for key in outer:
        place = place[key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("seeed", 1, ["unknown key 'seeed'", "'seed'"]),
        ("method.nam", "x", ["unknown key 'method.nam'", "'name'"]),
        ("seed", KeyError, ["seed is missing"]),
        ("timing.resumed", KeyError, ["timing.resumed is missing"]),
        ("seed", "0", ["seed is '0'", "whole number"]),
        ("seed", True, ["seed is True", "whole number"]),
        ("seed", 1.0, ["seed is 1.0", "whole number"]),
        ("seed", -1, ["seed is -1"]),
        ("joint", 1, ["joint is 1", "true or false"]),
        ("git.dirty", "no", ["git.dirty is 'no'"]),
        ("data.kind", "toy", ["data.kind is 'toy'", "'mini'"]),
        ("data", [1], ["data is [1]", "mapping"]),
        ("data.val_images", -3, ["data.val_images is -3"]),
        ("timing.wall_seconds", "1", ["timing.wall_seconds is '1'"]),
        ("timing.wall_seconds", -1.0, ["timing.wall_seconds is -1.0"]),
        ("timing.wall_seconds", float("nan"), ["timing.wall_seconds is nan", "finite"]),
        ("memory.peak_host_bytes", None, ["memory.peak_host_bytes is None"]),
        ("recipe.lr", float("inf"), ["recipe.lr is inf"]),
        ("losses.terms.total", [1.0], ["losses.terms.total has 1 values for 2"]),
        ("losses.terms.total", [1.0, "x"], ["losses.terms.total[1] is 'x'"]),
        ("losses.iterations", [10, 1], ["losses.iterations is [10, 1]"]),
        ("quirks", "median", ["quirks is 'median'", "a list"]),
        ("classes", [], ["classes is []"]),
        ("classes", [21], ["classes is [21]"]),
        ("learning_order", [0, 1, 3], ["learning_order is [0, 1, 3]"]),
        ("confusion", [[1, 2], [3, 4]], ["confusion has 2 rows", "21 x 21"]),
        ("step", 6, ["step is 6", "6 steps"]),
        ("previous_key", "k", ["previous_key is 'k' at step 0"]),
        ("created", "yesterday", ["created is 'yesterday'"]),
        ("created", "2025-01-31T12:00:00", ["UTC"]),
        ("created", "2025-01-31T12:00:00+02:00", ["UTC"]),
        ("key", "", ["key is empty"]),
        ("schema", 6, ["schema is 6", "Update cispbench"]),
        ("schema", 0, ["schema is 0"]),
    ],
)
def test_the_reader_names_place_field_and_value(make_record: Maker, path: str, value: Any, words: list[str]) -> None:
    with pytest.raises(StoreError) as caught:
        StepRecord.from_content(edited(make_record(), path, value), "runs/x/step-0.json")
    assert str(caught.value).startswith("runs/x/step-0.json")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("value", [-1, 1.5, "1", None, True])
def test_a_confusion_matrix_holds_counts_alone(make_record: Maker, value: Any) -> None:
    rows = [list(row) for row in make_record().confusion]
    rows[2][5] = value
    with pytest.raises(StoreError, match=r"confusion\[2\]"):
        StepRecord.from_content(edited(make_record(), "confusion", rows), "place")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}'])
def test_torn_text_is_an_error(text: str) -> None:
    with pytest.raises(StoreError, match=r"^place"):
        StepRecord.from_json(text.encode(), "place")


def test_making_a_wrong_record_is_an_error_that_names_every_fault(make_record: Maker) -> None:
    with pytest.raises(StoreError) as caught:
        make_record(seed=-1, iterations=-2)
    assert "seed is -1" in str(caught.value)
    assert "iterations is -2" in str(caught.value)
    with pytest.raises(StoreError, match=r"recipe\.path"):
        make_record(recipe={"path": Path("x")})
    with pytest.raises(StoreError, match=r"losses\.terms\.total holds nan"):
        make_record(losses=Losses((1,), {"total": (float("nan"),)}))


def test_a_matrix_becomes_plain_counts(make_record: Maker) -> None:
    matrix = np.arange(21 * 21, dtype=np.int64).reshape(21, 21)
    record = make_record(step=5, confusion=confusion_rows(matrix))
    assert np.array_equal(StepRecord.from_json(record.to_json(), "x").matrix(), matrix)
    with pytest.raises(StoreError, match="not a count"):
        make_record(confusion=matrix)


words = st.characters(exclude_categories=["Cs"])
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(words),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(words, max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(words, max_size=5), plain, max_size=4), st.floats(0, 1e12))
def test_any_recipe_survives(recipe: dict[str, Any], seconds: float) -> None:
    path = Path(__file__).parent / "record_schema_1.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["recipe"] = recipe
    tree["timing"]["wall_seconds"] = seconds
    record = StepRecord.from_json(json.dumps(tree).encode(), "x")
    assert record.recipe == recipe
    assert record.timing == Timing(**(tree["timing"]))
    assert StepRecord.from_json(record.to_json(), "x") == record


def test_every_flipped_bit_is_noticed(make_record: Maker) -> None:
    data = make_record().to_json()
    random = np.random.default_rng(0)
    # All of the head, where a flip could hide that there is a checksum, the schema's number, and some of the rest.
    schema = data.index(b'"schema": ') + len(b'"schema": ')
    places = [*range(8 * 90), *range(8 * schema, 8 * schema + 8), *random.integers(0, 8 * len(data), 300).tolist()]
    for place in places:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(StoreError, match=r"^place"):
            StepRecord.from_json(bytes(flipped), "place")


def test_a_checksum_is_asked_for_from_its_schema_on(make_record: Maker) -> None:
    record = make_record()
    plain, older = record.content(), {**record.content(), "schema": 2}
    assert StepRecord.from_json(json.dumps(older).encode(), "place") == record
    for value in (plain, {"sha256": "ab" * 32, **plain}, {"sha256": "ab" * 32, **older}):
        with pytest.raises(StoreError, match=r"^place: it carries no checksum"):
            StepRecord.from_json(json.dumps(value).encode(), "place")


def test_a_key_that_stands_there_twice_is_refused(make_record: Maker) -> None:
    text = json.dumps({**make_record().content(), "schema": 2}, indent=1)
    for old, new in (('"seed": 0', '"seed": 0,\n "seed": 1'), ('"lr": 1e-05', '"lr": 1, "lr": 2')):
        assert text.count(old) == 1
        with pytest.raises(StoreError, match=r"^place .*occurs twice"):
            StepRecord.from_json(text.replace(old, new).encode(), "place")


def test_half_a_character_and_a_count_beyond_reason_are_refused(make_record: Maker) -> None:
    text = json.dumps({**make_record().content(), "schema": 2})
    with pytest.raises(StoreError, match=r"^place is not valid JSON"):
        StepRecord.from_json(text.replace('"mib"', '"m\\udc80"').encode(), "place")
    whole = StepRecord.from_json(text.replace('"mib"', '"m\\ud83d\\ude00"').encode(), "place")
    assert whole.method.name == "m\N{GRINNING FACE}"
    with pytest.raises(StoreError, match="cannot be written"):
        make_record(recipe={"path": "caf\udce9"}).to_json()
    rows = [list(row) for row in make_record().confusion]
    rows[1][1] = 10**30
    with pytest.raises(StoreError, match=r"confusion\[1\]\[1\] is 1000000"):
        StepRecord.from_content(edited(make_record(), "confusion", rows), "place")
