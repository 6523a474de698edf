"""LaTeX tables as papers print them: names, steps, captions and labels."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cispbench.reports.tables.latex import escape_latex
from cispbench.reports.tables.render import render_store
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import DataUsed
from cispbench.results.store import Store

Maker = Callable[..., StepRecord]
SCENES = DataUsed("synthetic", "f1" * 32, 40, 256, "ab" * 32)


@pytest.fixture
def store(tmp_path: Path, make_record: Maker) -> Store:
    """Five methods on two settings, in two groups."""
    store = Store(tmp_path)
    for number, method in enumerate(("mib", "plop", "mbs", "finetune", "my_method")):
        for setting, step in (("overlapped-15-1", 5), ("disjoint-15-5", 1)):
            fields = {"method": method, "step": step, "data": SCENES, "profile": "quick"}
            store.write(make_record(setting, run_key=f"{number}{setting}"[:16], **fields))
    fields = {"method": "lwf_mc", "data": SCENES, "profile": "mine"}
    store.write(make_record("overlapped-15-1-b", step=5, run_key="f" * 16, **fields))
    return store


def test_methods_and_settings_have_the_names_of_papers(store: Store) -> None:
    text = render_store(store, "latex")
    first = [line.split("&")[0].strip() for line in text.splitlines() if "&" in line]
    assert {"MiB", "PLOP", "MBS", "Fine-tuning", r"my\_method", "LwF-MC"} <= set(first)
    for setting in ("overlapped 15-1 (6 steps)", "disjoint 15-5 (2 steps)", "overlapped 15-1, order b (6 steps)"):
        assert rf"\multicolumn{{4}}{{c}}{{{setting}}}" in text
    assert "overlapped-15-1" not in text
    rows = render_store(store, "latex", each=True)
    assert re.search(r"overlapped 15-1 \(6 steps\) & MiB &", rows)


def test_other_formats_keep_the_names_that_commands_take(store: Store) -> None:
    text = render_store(store, "markdown")
    assert "overlapped-15-1" in text and "finetune" in text and "Fine-tuning" not in text


def test_each_table_has_a_label_of_its_own_below_its_caption_and_room_above_its_rules(store: Store) -> None:
    text = render_store(store, "latex")
    found = re.findall(r"\\caption\{.*\}\n  \\label\{(tab:[a-z0-9-]+)\}\n  \\medskip\n  \\begin\{tabular\}", text)
    assert found == ["tab:voc-synthetic-data-profile-mine", "tab:voc-synthetic-data-profile-quick"]
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 2


@pytest.mark.parametrize(
    ("text", "written"),
    [("a,,b", "a,{},b"), ("it''s", "it'{}'s"), ("a---b", "a-{}-{}-b"), ('say "x"', r"say \char34{}x\char34{}")],
)
def test_no_letters_become_other_ones(text: str, written: str) -> None:
    assert escape_latex(text) == written
