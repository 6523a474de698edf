"""The README's printed table is what the command prints, but for the measured numbers."""

from __future__ import annotations

import re
from pathlib import Path

from cispbench.reports.tables.render import run_table
from cispbench.results.record_fields import DataUsed, ModelUsed

ROOT = Path(__file__).resolve().parents[2]


def test_the_printed_table_is_what_the_first_command_prints(make_record, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    (shown,) = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    record = make_record(
        setting="overlapped-100-10", step=5, method="mbs", profile="quick",
        data=DataUsed("synthetic", "f1", 40, 20, "ab" * 32), model=ModelUsed("segmenter-tiny", 12345, "none", None),
    )  # fmt: skip
    assert without_measured(shown) == without_measured(run_table([record], terminal=True))


def without_measured(text: str) -> str:
    """Return the words, the numbers of the measured row left out: they, and so the columns, depend on the machine."""
    words = " ".join(re.sub("-{2,}", "", text).split())
    return re.sub(r"(\(measured\))( \d+\.\d+){3}", r"\1", words)
