"""Two hundred malformed submissions, made from a good one: each a clear refusal, and nothing written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cispbench.results.store import Store
from cispbench.results.submission import pack
from cispbench.results.submission_text import content_digest

EACH = 10
FREE = {"recipe", "environment", "options", "terms"}  # mappings that may hold any key
ODD_NAMES = [
    "../../evil", "/etc/passwd", "a/b", "a\\b", "..", ".", ".hidden", "C:x", "", "x" * 300, "con\n", "~root", "a b",
    "-x", "$(id)", "x.", "%2e%2e", "file:///x",
]  # fmt: skip
ODD_LETTERS = [
    "\u202emib",
    "m\u0131b",
    "\uff4dib",
    "mi\u200bb",
    "mib\x00",
    "mib\u0301",
    "\ud800",
    "\U0001f600",
    "\ufeffmib",
    "м",
]


def leaves(value: Any, keep: Callable[[Any], bool], within: Any = None, key: Any = None) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value that is kept, free mappings left out."""
    if keep(value) and within is not None:
        yield within, key
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in FREE:
                yield from leaves(item, keep, value, name)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from leaves(item, keep, value, place)


def set_leaf(rng: random.Random, record: Any, keep: Callable[[Any], bool], value: Any) -> None:
    within, key = rng.choice(list(leaves(record, keep)))
    within[key] = value


def is_number(value: Any) -> bool:
    return type(value) in (int, float)


def any_value(value: Any) -> bool:
    return True


def truncated(rng: random.Random, tree: Any) -> bytes:
    data = sealed(tree)
    return data[: rng.randrange(len(data) - 2)]


def huge_number(rng: random.Random, tree: Any) -> bytes:
    digits = rng.choice(["9" * rng.randrange(17, 6000), "-" + "9" * 20, "1e999", "-1e400", "1" + "0" * 400 + ".5"])
    return with_literal(rng, tree, digits)


def not_a_number(rng: random.Random, tree: Any) -> bytes:
    return with_literal(rng, tree, rng.choice(["NaN", "Infinity", "-Infinity", "nan", "0x10", "01", "+1", ".5", "1_0"]))


def with_literal(rng: random.Random, tree: Any, literal: str) -> bytes:
    """Put a literal that json would not write at the place of a number."""
    set_leaf(rng, some_record(rng, tree), is_number, "@literal@")
    return sealed(tree).replace(b'"@literal@"', literal.encode())


def wrong_shape(rng: random.Random, tree: Any) -> bytes:
    record = some_record(rng, tree)
    counts = record["confusion"]
    row = rng.randrange(len(counts))
    change = rng.randrange(7)
    if change == 0:
        del counts[row]
    elif change == 1:
        counts[row].pop()
    elif change == 2:
        counts.append(list(counts[0]))
    elif change == 3:
        counts[row] = [counts[row]]
    elif change == 4:
        record["confusion"] = []
    elif change == 5:
        record["confusion"] = [[*line, 0] for line in counts] + [[0] * (len(counts) + 1)]
    else:
        record["confusion"] = [[] for _ in counts]
    return sealed(tree)


def deep(rng: random.Random, tree: Any) -> bytes:
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
    count = rng.choice([17, 100, 5_000, 200_000])
    some_record(rng, tree)["recipe"]["deep"] = "@literal@"
    inner = opening * count + "1" + closing * rng.choice([0, count])
    return sealed(tree).replace(b'"@literal@"', inner.encode())


def path_name(rng: random.Random, tree: Any) -> bytes:
    return renamed(rng, tree, rng.choice(ODD_NAMES))


def odd_letters(rng: random.Random, tree: Any) -> bytes:
    return renamed(rng, tree, rng.choice(ODD_LETTERS))


def renamed(rng: random.Random, tree: Any, name: str) -> bytes:
    field = rng.choice(
        ["method.name", "model.name", "setting", "dataset", "task", "profile", "key", "run_key", "order"]
    )
    for record in records(tree):  # in every step, as one name for all
        within = record
        *outer, last = field.split(".")
        for part in outer:
            within = within[part]
        within[last] = name
    if field == "run_key":
        tree["run_key"] = name
    return sealed(tree)


def wrong_type(rng: random.Random, tree: Any) -> bytes:
    record = some_record(rng, tree)
    within, key = rng.choice(list(leaves(record, any_value)))
    within[key] = [1, "x"] if isinstance(within[key], dict) else {"type": ["wrong"]}
    return sealed(tree)


def missing_key(rng: random.Random, tree: Any) -> bytes:
    packed, record = rng.choice(tree["records"]), some_record(rng, tree)
    parts = ["method", "model", "data", "losses", "timing", "memory", "git", "execution", "trained_for"]
    mapping = rng.choice([tree, packed, record, record, record[rng.choice(parts)]])
    name = rng.choice(sorted(mapping))
    if mapping is tree or mapping is packed:
        data = json.loads(sealed(tree))
        del (data if mapping is tree else data["records"][tree["records"].index(packed)])[name]
        return json.dumps(data).encode()
    del mapping[name]
    return sealed(tree)


def extra_key(rng: random.Random, tree: Any) -> bytes:
    record = some_record(rng, tree)
    rng.choice([tree, record, record["method"], record["data"], record["git"]])["__class__"] = rng.choice(
        ["os", {}, [1]]
    )
    return sealed(tree)


def key_twice(rng: random.Random, tree: Any) -> bytes:
    record = some_record(rng, tree)
    name = rng.choice(sorted(record))
    record["@twice@"] = record[name]
    return sealed(tree).replace(b'"@twice@"', json.dumps(name).encode())


def broken_chain(rng: random.Random, tree: Any) -> bytes:
    first, last = records(tree)[0], records(tree)[-1]
    other = content_digest(rng.random())
    within, key = rng.choice(
        [(last, "previous_key"), (first, "key"), (first, "previous_key"), (last, "run_key"), (tree, "run_key")]
    )
    within[key] = rng.choice([other, other[:40], other.upper(), "a" * 65]) if key != "previous_key" else other
    if key == "key":
        last["previous_key"] = rng.choice([first["key"][:-1], content_digest(0)])
    return sealed(tree)


def moved_truth(rng: random.Random, tree: Any) -> bytes:
    """Counts move from one class's ground truth to another's, in one of the steps."""
    counts = some_record(rng, tree)["confusion"]
    row = rng.choice([place for place, line in enumerate(counts) if line[0] > 1])
    counts[row][0] -= 1
    counts[row - 1][0] += 1
    return sealed(tree)


def future_prediction(rng: random.Random, tree: Any) -> bytes:
    record = records(tree)[0]
    row = rng.choice([place for place, line in enumerate(record["confusion"]) if line[0] > 0])
    record["confusion"][row][0] -= 1
    record["confusion"][row][-1] += 1
    return sealed(tree)


def no_counts(rng: random.Random, tree: Any) -> bytes:
    counts = some_record(rng, tree)["confusion"]
    row, column = rng.randrange(len(counts)), rng.randrange(len(counts))
    counts[row][column] = rng.choice([-1, 0.5, True, None, "1", [1], 1.0])
    return sealed(tree)


def wrong_steps(rng: random.Random, tree: Any) -> bytes:
    packed = tree["records"]
    change = rng.randrange(5)
    if change == 0:
        packed.pop()
    elif change == 1:
        packed.append(json.loads(json.dumps(packed[0])))
    elif change == 2:
        records(tree)[0]["step"] = rng.choice([1, 2, -1, 7])
    elif change == 3:
        records(tree)[-1]["steps"] = rng.choice([1, 3, 0])
    else:
        packed.clear()
    return sealed(tree)


def other_setting(rng: random.Random, tree: Any) -> bytes:
    record = some_record(rng, tree)
    field, value = rng.choice([
        ("setting", "overlapped-15-5"), ("setting", "overlapped-19-1-b"), ("setting", "voc:overlapped-19-1"),
        ("task", "15-5"),
        ("learning_order", list(reversed(range(21)))), ("classes", [1]), ("dataset", "ade"), ("scenario", "disjoint"),
        ("seed", 5), ("profile", "quick"), ("joint", True), ("created", "9999-01-01T00:00:00+00:00"),
    ])  # fmt: skip
    record[field] = value
    return sealed(tree)


def other_hash(rng: random.Random, tree: Any) -> bytes:
    packed = rng.choice(tree["records"])
    if rng.random() < 0.5:
        packed["record"]["iterations"] += 1
    else:
        packed["sha256"] = content_digest(rng.random())
    return sealed(tree, again=False)


def no_json(rng: random.Random, tree: Any) -> bytes:
    data = sealed(tree)
    place = rng.randrange(len(data))
    return rng.choice([
        b"", b"\xef\xbb\xbf" + data, data.decode().encode("utf-16"), data[:place] + b"\xff" + data[place:], data + data,
        bytes(rng.randrange(256) for _ in range(500)), b"import os\n", b"\x80\x04K\x01.", b"[]", b"null", b'"x"', b"7",
    ])  # fmt: skip


def unknown_version(rng: random.Random, tree: Any) -> bytes:
    within, key = rng.choice([(tree, "schema"), (some_record(rng, tree), "schema"), (tree, "format")])
    within[key] = rng.choice([0, 99, -1, "1", None, 2**40, True, [1]])
    return sealed(tree)


KINDS = [
    truncated, huge_number, not_a_number, wrong_shape, deep, path_name, odd_letters, wrong_type, missing_key, extra_key,
    key_twice, broken_chain, moved_truth, future_prediction, no_counts, wrong_steps, other_setting, other_hash, no_json,
    unknown_version,
]  # fmt: skip


def records(tree: Any) -> list[Any]:
    return [packed["record"] for packed in tree["records"]]


def some_record(rng: random.Random, tree: Any) -> Any:
    return rng.choice(records(tree))


def sealed(tree: Any, again: bool = True) -> bytes:
    """Return the submission as text, its sums made anew so that they give nothing away."""
    for packed in tree["records"] if again else ():
        packed["sha256"] = content_digest(packed["record"])
    return json.dumps(tree).encode()


@pytest.fixture(scope="session")
def good(finished: Any) -> bytes:
    records = Store(finished.out).records()
    return pack(Store(finished.out).find_run(records[0].run_key), "0.1.0")


def test_the_good_one_is_accepted(commands: Any, good: bytes) -> None:
    path = commands.home / "good.json"
    path.write_bytes(sealed(json.loads(good)))
    commands.succeed(["accept", str(path), "--out", str(commands.out)])
    assert len(commands.records()) == 2


@pytest.mark.parametrize("seed", range(EACH))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_malformed_one_is_refused(commands: Any, good: bytes, kind: Callable[..., bytes], seed: int) -> None:
    path: Path = commands.home / "bad.json"
    path.write_bytes(kind(random.Random(f"{kind.__name__} {seed}"), json.loads(good)))
    message = commands.refused(1, ["accept", str(path), "--out", str(commands.out)], str(path))
    assert len(message) < 3000
    assert message.isprintable() or "\n" in message
    assert sorted(commands.home.iterdir()) == [path]


def test_two_hundred_of_them() -> None:
    assert len(KINDS) * EACH == 200
