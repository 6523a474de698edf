"""``cispbench import checkpoint --help`` names every code base whose checkpoints can be imported."""

from __future__ import annotations

import re

from click.testing import CliRunner

from cispbench.harness.cli import main
from cispbench.harness.models.released import released_names


def test_the_help_names_every_code_base() -> None:
    text = " ".join(CliRunner().invoke(main, ["import", "checkpoint", "--help"]).output.split())
    found = re.search(r"Code base that wrote it: (.+?)\.", text)
    assert found is not None
    assert set(re.split(r", | or ", found[1])) == set(released_names())
