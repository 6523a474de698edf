"""JSON that a stranger wrote: bounded before anything is made of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cispbench.results.submission import read_submission
from cispbench.results.submission_text import MAX_BYTES, MAX_DEPTH, parse_untrusted
from cispbench.splits.errors import StoreError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": NaN}', "NaN"), ('{"a": 1e999}', "too large"), ('{"a": 9007199254740993}', "beyond"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ('"' + "x" * 5000 + '"', "5000 characters"), ('["\\ud800"]', "U+D800"),
        ('["\\u0000"]', "U+0000"), ('{"\u202e": 1}', "U+202E"), ("[" * 9 + "{" * 99, "deep"), ("", "not valid JSON"),
        ('["\\"[[[[[[[[[[[[[[[[[[[[[[", 1', "not valid JSON"), ('{"' + "k" * 200 + '": 1}', "200 characters"),
    ],
)  # fmt: skip
def test_text_of_strangers_is_bounded(text: str, words: str) -> None:
    with pytest.raises(StoreError, match=r"^here") as caught:
        parse_untrusted(text.encode(), "here")
    assert words in str(caught.value)
    assert str(caught.value).isascii() or "\u202e" not in str(caught.value)


def test_plain_text_passes_unchanged() -> None:
    value = {"a": ['ü [[[[[[[[[[[[[[[[[[[[ \\" é', "tab\tline\n", "日本"], "b": [1, -2.5e-3, 2**53, None, True, [[[]]]]}
    assert parse_untrusted(json.dumps(value).encode(), "here") == value
    nested: Any = 1
    for _ in range(MAX_DEPTH):
        nested = [nested]
    assert parse_untrusted(json.dumps(nested).encode(), "here") == nested
    with pytest.raises(StoreError, match="17 deep"):
        parse_untrusted(json.dumps([nested]).encode(), "here")


def test_a_large_file_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    large, pipe = tmp_path / "large.json", tmp_path / "pipe"
    with large.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    os.mkfifo(pipe)
    for path, words in (
        (large, "32 MiB"),
        (pipe, "not a plain file"),
        (tmp_path, "not a plain file"),
        (tmp_path / "no", "No such file"),
    ):
        with pytest.raises(StoreError, match=words):
            read_submission(path)
