"""The leaderboard as files: a Markdown document, and pages that need no server, no network and no build."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cispbench.reports.leaderboard.background import background_mark
from cispbench.reports.leaderboard.board import Board, Entry, Leaderboard, Number
from cispbench.reports.leaderboard.paper import all_paper_sections
from cispbench.reports.leaderboard.provenance import LINKS
from cispbench.reports.leaderboard.publish import publish
from cispbench.reports.leaderboard.status import OFF, STATUSES
from cispbench.reports.leaderboard.text import (
    DISPUTED,
    INFERRED,
    LEGEND,
    MARKS,
    NOT_RANKED,
    leaderboard_markdown,
    protocol_note,
    title,
)  # fmt: skip
from cispbench.reports.tables.extras import extra_columns
from cispbench.reports.tables.html import load_template, render_html
from cispbench.reports.tables.layout import one_line
from cispbench.reports.tables.numbers import json_number
from cispbench.reports.tables.runs import SCORES, Group
from cispbench.results.atomic import make_folder
from cispbench.results.documents import KINDS
from cispbench.splits.datasets import NATURAL_ORDER
from cispbench.splits.settings import parse_setting

NAME = "leaderboard"

_OTHER_PROFILE = (
    "Measured under another profile than the papers': these numbers are NOT comparable with published ones."
)
_TITLE = "Class-incremental semantic segmentation: leaderboard"
_TEMPLATES = Path(__file__).parents[1] / "templates"
_COLUMNS = (("Network", "backbone"), ("Run by", "run_by"), ("Kind", "kind"), ("Year", "year"))
_KEEPS = {True: "yes", False: "no", None: "-"}
_BACKGROUND = {False: 0, True: 1, None: 2}


@dataclass(frozen=True)
class WebPage:
    """A page: its file, its name in the links of the others, its title, and a warning above all numbers."""

    file: str
    name: str
    title: str
    warning: str = ""


# Numbers that compare with papers are on the first page; the others have a page for each kind of data.
_PAPERS = WebPage("index.html", "Papers and full data", _TITLE)
_OTHERS = {
    "full": WebPage("other.html", "Full data, other profiles", f"{_TITLE}, other profiles", _OTHER_PROFILE),
    "mini": WebPage("mini.html", "Mini data", f"{_TITLE}, mini data", *Group("mini", "", "").warnings),
    "synthetic": WebPage("synthetic.html", "Synthetic scenes", f"{_TITLE}, synthetic scenes",
                         *Group("synthetic", "", "").warnings),
}  # fmt: skip
PAPERS = "papers.html"
FILES = (_PAPERS.file, *(page.file for page in _OTHERS.values()))


def write_leaderboard(found: Leaderboard, folder: Path) -> list[Path]:
    """Write ``leaderboard.md`` and the pages below ``leaderboard/`` into a folder; return the files.

    They are written together: a full disk, or a kill while they are written, leaves all the earlier ones. Pages that
    have nothing to show any more are removed at the end. Raises StoreError.
    """
    texts = render_pages(found) | {PAPERS: papers_page(found)}
    pages = folder / NAME
    make_folder(pages)
    written = {pages / file: text for file, text in texts.items()} | {
        folder / f"{NAME}.md": leaderboard_markdown(found)
    }
    gone = [pages / file for file in FILES if file not in texts]
    publish({path: text.encode() for path, text in written.items()}, removed=gone)
    return list(written)


def papers_page(found: Leaderboard) -> str:
    """Return the page of the papers' tables: all that is known of each published method, setting by setting."""
    return render_html(all_paper_sections(found), f"{_TITLE}, the papers' tables", home=_PAPERS.file)


def render_pages(found: Leaderboard) -> dict[str, str]:
    """Return the pages that have boards, by file name, out of FILES; the same leaderboard gives the same bytes."""
    boards: dict[WebPage, list[Board]] = {}
    for board in found.boards:
        boards.setdefault(_PAPERS if board.group.comparable else _OTHERS[board.group.kind], []).append(board)
    pages = [page for page in (_PAPERS, *_OTHERS.values()) if page in boards]
    template = load_template("leaderboard.html.j2")
    style, script = ((_TEMPLATES / f"leaderboard.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    fixed = {
        "pages": pages, "papers": PAPERS, "scores": SCORES, "legend": LEGEND,
        "key": [*((mark, name, "off by" if name == OFF else name) for name, mark in MARKS.items()),
                (INFERRED, "inferred", "setting inferred"), (DISPUTED, "disputed", "printed otherwise elsewhere"),
                *((background_mark(counted), "counted", name) for counted, name in
                  ((True, "with background"), (False, "without"), (None, "not known")))],
        "note": f"{protocol_note(found.protocol)} {NOT_RANKED}", "warnings": found.notes,
        "policy": _policy(style, script), "style": Markup(style), "script": Markup(script),
    }  # fmt: skip
    return {page.file: template.render(page=page, **fixed, **_content(boards[page])) for page in pages}


def _policy(style: str, script: str) -> str:
    """Return the Content-Security-Policy of a page: nothing is loaded, and no script runs but its own.

    So a name in a record that slips through as markup still cannot run anything.
    """
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _content(boards: Sequence[Board]) -> dict[str, Any]:
    names = [f"{position}-{board.group.dataset}-{board.scenario}" for position, board in enumerate(boards, start=1)]
    if all(board.group.comparable for board in boards):
        names = [f"{board.group.dataset}-{board.scenario}" for board in boards]
    entries = [entry for board in boards for entry in board.entries]
    extra, _ = extra_columns([entry.extras for entry in entries])
    columns = [*_COLUMNS, *((name.capitalize(), name) for name in extra)]
    kinds = {number.kind for entry in entries for numbers in entry.by_setting.values() for number in numbers}
    choices = {
        "backbones": sorted({one_line(entry.backbone) for entry in entries}, key=str.lower),
        "years": sorted({entry.facts.year for entry in entries if entry.facts.year is not None}, reverse=True),
        "kinds": sorted(kinds, key=lambda kind: (kind in KINDS, kind)),
    }
    shown = []
    for name, board in zip(names, boards, strict=True):
        parsed = [parse_setting(setting) for setting in board.settings]
        settings = [
            {"name": each.name, "short": each.task + ("" if each.order == NATURAL_ORDER else f"-{each.order}")}
            for each in parsed
        ]
        shown.append({"id": name, "title": one_line(title(board)), "settings": settings})
    about = [name for _, name in columns]
    return {"boards": shown, "choices": choices, "columns": columns, "data": _data_block(names, boards, about)}


def _data_block(names: Sequence[str], boards: Sequence[Board], about: Sequence[str]) -> Markup:
    """Return the data of a page as JSON that no parser of HTML takes for markup.

    Each text and each provenance is there once, and rows refer to it by its index. Most of them repeat from row to row:
    written out, the page would be several times as large.
    """
    # A key that is new gets the next index.
    texts: dict[str, int] = defaultdict(count().__next__)
    sources: dict[tuple[int, ...], int] = defaultdict(count().__next__)
    made = [
        {
            "id": name, "settings": board.settings, "comparable": board.group.comparable,
            "title": one_line(title(board)),
            "rows": [_row(board, entry, texts, sources) for entry in board.entries],
            "main": board.settings.index(board.main), "total": SCORES.index("all"),
        }
        for name, board in zip(names, boards, strict=True)
    ]  # fmt: skip
    value = {
        "boards": made, "scores": SCORES, "about": about, "statuses": ["", *STATUSES],
        "marks": ["", *(MARKS.get(status, "") for status in STATUSES)], "links": LINKS,
        "flags": [[INFERRED, "inferred", "setting inferred"],
                  [DISPUTED, "disputed", "other sources print another number"]],
        "counted": [background_mark(counted) for counted in _BACKGROUND],
        "texts": list(texts), "sources": list(sources),
    }  # fmt: skip
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&":  # within strings alone: JSON itself has none of these
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _row(board: Board, entry: Entry, texts: dict[str, int], sources: dict[tuple[int, ...], int]) -> dict[str, Any]:
    def shown(number: Number) -> list[Any]:
        status, points, why = number.standing.status, number.standing.points, number.standing.why
        pairs = tuple(texts[one_line(text)] for pair in number.provenance for text in pair)
        # A published number is its text; a measured one has more digits than are shown.
        exact = [] if number.source else [[json_number(number.value), json_number(number.spread)]]
        return [
            number.text, STATUSES.index(status) + 1 if status else 0, points, texts[one_line(why)],
            _BACKGROUND[number.background], [int(number.inferred), int(number.disputed), int(number.likely)],
            texts[number.kind], sources[pairs], *exact,
        ]  # fmt: skip

    year = entry.facts.year
    return {
        "method": one_line(entry.method), "remark": one_line(entry.remark), "backbone": one_line(entry.backbone),
        "run_by": one_line(entry.run_by) or "-", "year": "-" if year is None else year,
        "memory": one_line(entry.extras.memory or "-"), "supervision": one_line(entry.extras.supervision or "-"),
        "keeps": _KEEPS[entry.extras.keeps_images], "kind": ", ".join(entry.kinds),
        "badges": [[texts[one_line(badge.name)], texts[one_line(badge.why)]] for badge in entry.badges],
        "ranked": entry.ranked,
        "places": {board.settings.index(name): list(map(shown, found)) for name, found in entry.by_setting.items()},
    }  # fmt: skip
