"""What docs/results.md says of the committed records is so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cispbench.harness.data.source import find_source
from cispbench.results.record import StepRecord
from cispbench.results.store import Store

ROOT = Path(__file__).resolve().parents[2]
TEXT = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def committed() -> list[StepRecord]:
    return Store(ROOT / "results").records()


def test_the_page_counts_the_committed_runs(committed: list[StepRecord]) -> None:
    runs = Counter((last.profile, last.data.kind) for last in committed if last.finished)
    assert runs == {("quick", "synthetic"): 15, ("mini", "mini"): 2}
    assert "15 on synthetic scenes (profile quick" in TEXT and "2 on small real data (profile mini" in TEXT


def test_the_page_says_which_records_have_a_fingerprint_of_before(
    committed: list[StepRecord], shared: Path, tmp_path: Path
) -> None:
    """Where this fails as the records were made anew, the sentence on them goes."""
    today = find_source("voc", shared / "data" / "voc-mini", tmp_path).fingerprint
    before = {record.data.fingerprint for record in committed if record.data.kind == "mini"} - {today}
    assert [f"`{fingerprint[:8]}`" for fingerprint in before if f"`{fingerprint[:8]}`" not in TEXT] == []
    assert bool(before) == ("by the earlier definition" in TEXT)
