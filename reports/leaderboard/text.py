"""The leaderboard as Markdown: a whole document, and a short section for a README."""

from __future__ import annotations

import math
from pathlib import Path

from cispbench.reports.leaderboard.board import Board, Entry, Leaderboard, SettingNumbers
from cispbench.reports.leaderboard.status import INCONSISTENT, OFF, REPRODUCED, UNVERIFIED
from cispbench.reports.tables.layout import Column, Section, Table, Text, plain
from cispbench.reports.tables.markdown import markdown_table, render_markdown
from cispbench.reports.tables.protocols import switches
from cispbench.reports.tables.runs import SCORES
from cispbench.results.atomic import write_atomic
from cispbench.results.protocols import Protocol
from cispbench.splits.datasets import dataset
from cispbench.splits.errors import StoreError, UsageError

START, END = "<!-- leaderboard:start -->", "<!-- leaderboard:end -->"
MARKS = {REPRODUCED: "✓", OFF: "Δ", UNVERIFIED: "?", INCONSISTENT: "!"}  # what is reported only has none
INFERRED = "~"
LEGEND = [
    (MARKS[REPRODUCED], "reproduced: measured within the tolerance of the published number"),
    (MARKS[OFF], "off by so many points: measured minus published, beyond the tolerance"),
    ("", "no mark, reported only: published, and no comparable run here"),
    (MARKS[UNVERIFIED], "unverified: measured with nothing to compare with, or submitted"),
    (MARKS[INCONSISTENT], "inconsistent: old, new and all of the row contradict each other"),
    (INFERRED, "the source does not print the number together with its setting: inferred"),
]
SHORT = ("overlapped-15-1", "overlapped-100-10")  # settings of the README's section
_MOST = 5  # methods of the README's table, by setting
_ALL = SCORES.index("all")


def title(board: Board) -> str:
    """Return the heading of a board: data set and scenario; kind of data and profile where papers use others."""
    name = f"{dataset(board.group.dataset).title}, {board.scenario}"
    return name if board.group.comparable else f"{name}: {board.group.kind} data, profile {board.group.profile}"


def protocol_note(rules: Protocol) -> str:
    """Return how numbers were counted, which a reader must know before comparing any."""
    listed = ", ".join(f"{name}: {value}" for name, value in switches(rules).items())
    return (
        f"Measured numbers are mIoU in percent after the last step under the protocol {rules.name} v{rules.version} "
        f"({listed}). Published numbers are as printed, and each follows its own paper's protocol: two rows may differ "
        "by a point or two in how they count alone. Whether a published number is reproduced is decided under the "
        "protocol that its own arithmetic points to, within the tolerance of cispbench check."
    )


def leaderboard_markdown(found: Leaderboard) -> str:
    """Return all boards as Markdown, the best of a column bold, the second underlined."""
    marks = "; ".join(f"`{mark}` {meaning}" if mark else meaning for mark, meaning in LEGEND)
    parts = [
        "# Leaderboard", "Made by `cispbench leaderboard` from the store and the ledger; do not edit.",
        f"{protocol_note(found.protocol)} Not ranked: joint training, inconsistent rows, and what was submitted.",
        f"Marks: {marks}.",
    ]  # fmt: skip
    return "\n\n".join([*parts, render_markdown([_section(board) for board in found.boards])]) + "\n"


def readme_section(leaderboard: Leaderboard) -> str:
    """Return the short section of a README: on two settings, the best published methods and all that was measured."""
    rules = leaderboard.protocol
    parts = [
        "mIoU in percent; published numbers as printed, each under its own paper's protocol, measured ones under "
        f"{rules.name} v{rules.version}.\nIn brackets what makes a row unfair to compare: stored images of earlier "
        "steps (memory), a checkpoint chosen on the\ntest images (test-selected), a backbone that has seen more than "
        "ImageNet-1k (pre-training), or labels beyond the data\nset's (extra supervision)."
    ]
    for setting in SHORT:
        board = next(board for board in leaderboard.boards if board.group.comparable and setting in board.settings)
        rows = []
        for entry in _best(board, setting):
            found = entry.by_setting[setting]
            badges = f" ({', '.join(badge.name for badge in entry.badges)})" if entry.badges else ""
            status = found.numbers[_ALL].standing.words + (", setting inferred" if found.inferred else "")
            texts = [number.text for number in found.numbers]
            rows.append([f"{named(entry)}{badges}", entry.backbone, entry.kind, *texts, status])
        headers = ["method", "backbone", "kind", *SCORES, "status of all"]
        parts += [f"**{dataset(board.group.dataset).title}, {setting}**", markdown_table(headers, rows)]
    return "\n\n".join(parts)


def update_readme(found: Leaderboard, path: Path) -> bool:
    """Replace the leaderboard's section of a README; return whether that changed it.

    Raises StoreError if it cannot be read or written, UsageError if it has no place for the section.
    """
    try:
        before = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read {path}: {error}.", hint="Name a README that is there.") from error
    after = replace_section(before, readme_section(found), str(path))
    if after != before:
        write_atomic(path, after.encode())
    return after != before


def replace_section(text: str, section: str, name: str) -> str:
    """Return a text with all between the markers replaced. Raises UsageError with its ``name`` if they are missing."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in rest or END in before + after:
        hint = f"Put {START} and {END} once, each on a line."
        raise UsageError(f"{name} has no place for the leaderboard.", hint=hint)
    return f"{before}{start}\n\n{section}\n\n{end}{after}"


def _section(board: Board) -> Section:
    sources: dict[str, int] = {}
    columns = [Column(name) for name in ("method", "backbone", "year", "memory", "kind", "caution")]
    texts = []
    for entry in board.entries:
        exemplars = {True: "yes", False: "no", None: "-"}[entry.facts.exemplars]
        year = "-" if entry.facts.year is None else str(entry.facts.year)
        badges = ", ".join(badge.name for badge in entry.badges)
        texts.append(plain([named(entry), entry.backbone, year, exemplars, entry.kind, badges]))
    for setting in board.settings:
        for score, name in enumerate(SCORES):
            columns.append(Column(name, setting, right=True))
            places = board.ranks(setting, score)
            for row, entry, rank in zip(texts, board.entries, places, strict=True):
                row.append(Text(_number(board, entry.by_setting.get(setting), score), rank))
    columns.append(Column("source"))
    for row, entry in zip(texts, board.entries, strict=True):
        source = dict(next(iter(entry.by_setting.values())).provenance).get("Source")
        row.append(Text(f"[{sources.setdefault(source, len(sources) + 1)}]" if source else "this store"))
    listed = [f"[{number}] {source}" for source, number in sources.items()]
    intro = f"{len(board.entries)} rows, ordered by {board.main} all."
    return Section(title(board), intro, Table(columns, texts), [*board.group.warnings, *listed])


def named(entry: Entry) -> str:
    """Return the method of an entry, with the remark that distinguishes it from others of that name."""
    return entry.method + (f" ({entry.remark})" if entry.remark else "")


def _number(board: Board, place: SettingNumbers | None, score: int) -> str:
    if place is None or math.isnan(place.numbers[score].value):
        return "" if place is None else "-"
    number = place.numbers[score]
    status = number.standing.status
    # Where no number can be verified, a mark on each of them would say nothing.
    mark = MARKS.get(status, "") + number.standing.off if board.group.comparable or status != UNVERIFIED else ""
    return " ".join(part for part in (number.text, mark, INFERRED if place.inferred else "") if part)


def _best(board: Board, setting: str) -> list[Entry]:
    """Return the best row of each of the best published methods, and every measured row, the best first."""
    there = [entry for entry in board.entries if setting in entry.by_setting]
    values = {id(entry): entry.value(setting, _ALL) for entry in there}
    there.sort(key=lambda entry: math.inf if math.isnan(values[id(entry)]) else -values[id(entry)])  # NaN goes last
    published: dict[str, Entry] = {}
    for entry in there:
        if entry.kind != "measured" and not math.isnan(entry.value(setting, _ALL, competing=True)):
            published.setdefault(entry.method, entry)
    kept = [*published.values()][:_MOST]
    return [entry for entry in there if entry.kind == "measured" or any(entry is other for other in kept)]
