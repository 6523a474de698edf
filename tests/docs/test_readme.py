"""The README's printed table is what the command prints, with the measured numbers that the README shows."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

from cispbench.reports.tables import render
from cispbench.reports.tables.runs import SCORES
from cispbench.results.record_fields import DataUsed, ModelUsed

ROOT = Path(__file__).resolve().parents[2]


def test_the_printed_table_is_what_the_first_command_prints(make_record, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    (shown,) = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    # The measured numbers depend on the machine; how wide they are decides how the sources are wrapped.
    (measured,) = re.findall(r"^mbs \(measured\) +(\S+) +(\S+) +(\S+)", shown, re.MULTILINE)
    numbers = dict(zip(SCORES, map(float, measured), strict=True))
    monkeypatch.setattr(render, "score_record", lambda *_: SimpleNamespace(**numbers))
    record = make_record(
        setting="overlapped-100-10", step=5, method="mbs", profile="quick",
        data=DataUsed("synthetic", "f1", 40, 20, "ab" * 32), model=ModelUsed("segmenter-tiny", 12345, "none", None),
    )  # fmt: skip
    assert shown.strip() == render.run_table([record], terminal=True)
