"""YAML from anywhere ends in a value or in an error with its place: never in another exception, never in long work."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from cispbench.splits.errors import CispbenchError
from cispbench.splits.strict_yaml import load_yaml, parse_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1_000", "1_000"), ("0o17", 15), ("017", 17), ("0x1F", 31), ("12:30:45", "12:30:45"), ("yes", "yes"),
        ("2001-01-01", "2001-01-01"), ("1e-5", 1e-5), (".5", 0.5), ("-.inf", float("-inf")), ("'5'", "5"), ("~", None),
        ("", None), ("&a x", "x"), ("[&a [1, 2], *a]", [[1, 2], [1, 2]]), ("<<: 1", {"<<": 1}),
        ("\ufeffa: 1", {"a": 1}), ("# only a comment", None), ("a: |\n  b\n", {"a": "b\n"}),
    ],
)  # fmt: skip
def test_a_plain_value_is_what_version_1_2_says(text: str, value: Any) -> None:
    assert repr(parse_yaml(text)) == repr(value)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: 1\nb: !!int x", 2, "the tag 'tag:yaml.org,2002:int' is not known"),
        ("a: !!timestamp 1", 1, "timestamp"),
        ("a: !!binary aGk=", 1, "binary"),
        ("a: !mine [1]", 1, "!mine"),
        ("a: !!python/name:os.system x", 1, "os.system"),
        (f"a: 1\nb: {'9' * 5000}", 2, "999... is beyond 9223372036854775807"),
        (f"a: 0x{'f' * 5000}", 1, "is beyond"),
        ("a: 9223372036854775808", 1, "is beyond"),
        ("a: 1e999", 1, "'1e999' is too large"),
        ("a: 1\n? {b: 1}\n: 2", 2, "a key is a list or a mapping"),
        ("[1]: 2", 1, "a key is a list or a mapping"),
        ("a: 1\nb: 2\na: 3", 3, "the key 'a' occurs twice"),
        ("1: a\ntrue: b", 2, "the key True occurs twice"),
        ("a: [1", 2, "while parsing a flow sequence"),
        ("a: &b [*b]", 1, "the alias 'b' names nothing before it"),
        ("a: *b", 1, "the alias 'b' names nothing before it"),
        ("a: 1\n--- \nb: 2", 2, "there is a second document"),
        (f"a: {'[' * 100}", 1, "nested deeper than 32"),
        ("{a: " * 100_000, 1, "nested deeper than 32"),
        (LAUGHS, 6, "more than 1,000,000 values"),
        ("a: 1\nb: \ud800", 2, r"'\ud800' is no character"),
    ],
)
def test_what_is_refused_is_named_with_its_line(text: str, line: int, says: str) -> None:
    with pytest.raises(CispbenchError) as caught:
        parse_yaml(text, "recipe.yaml")
    assert f"recipe.yaml, line {line}" in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("content", [b"a: \x00", b"a: \x1b[2J", b"a: \xff", b"\xff\xfea\x00", b"a: \xed\xa0\x80"])
def test_bytes_that_are_no_text_are_an_error_naming_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(CispbenchError, match=r"recipe\.yaml"):
        load_yaml(path)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert load_yaml(path) == {"a": 1}


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for path in (pipe, tmp_path / "zero.yaml", tmp_path):
        errors: list[str] = []
        # A thread, so that a reader that waits fails this test and not the whole suite.
        reader = threading.Thread(target=_read, args=(path, errors), daemon=True)
        reader.start()
        reader.join(10)
        assert errors, f"{path} keeps its reader waiting"
        assert "not a plain file" in errors[0]


def _read(path: Path, errors: list[str]) -> None:
    try:
        load_yaml(path)
    except CispbenchError as error:
        errors.append(str(error))


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.touch()
    os.truncate(path, 17 * 1024**2)
    with pytest.raises(CispbenchError, match="larger than 16,777,216 bytes"):
        load_yaml(path)
