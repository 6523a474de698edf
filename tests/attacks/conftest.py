"""The fixtures of ``tests/harness``, which are not in reach of this folder by themselves."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "fixtures_of_harness", Path(__file__).parents[1] / "harness" / "conftest.py"
)
assert _SPEC is not None and _SPEC.loader is not None
_HARNESS = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_HARNESS)
voc, one_thread, commands = _HARNESS.voc, _HARNESS.one_thread, _HARNESS.commands


@pytest.fixture(scope="session")
def commands_class() -> Any:
    """The class of ``commands``, for fixtures that live longer than one test."""
    return _HARNESS.Commands
