"""The leaderboard as Markdown: a whole document, and a short section for a README."""

from __future__ import annotations

import math
from pathlib import Path

from cispbench.reports.leaderboard.background import UNKNOWN, WITH, WITHOUT, background_mark
from cispbench.reports.leaderboard.badges import NOT_KNOWN
from cispbench.reports.leaderboard.board import Board, Entry, Leaderboard, Number
from cispbench.reports.leaderboard.status import INCONSISTENT, OFF, REPRODUCED, RERUN, UNVERIFIED
from cispbench.reports.tables.extras import extra_columns
from cispbench.reports.tables.layout import Column, Section, Table, Text, plain
from cispbench.reports.tables.markdown import markdown_table, render_markdown
from cispbench.reports.tables.protocols import switches
from cispbench.reports.tables.runs import SCORES
from cispbench.results.atomic import write_atomic
from cispbench.results.protocols import Protocol
from cispbench.splits.datasets import dataset
from cispbench.splits.errors import StoreError, UsageError

START, END = "<!-- leaderboard:start -->", "<!-- leaderboard:end -->"
# What is published only has no mark.
MARKS = {REPRODUCED: "✓", OFF: "Δ", RERUN: "↻", UNVERIFIED: "?", INCONSISTENT: "!"}
INFERRED, DISPUTED = "~", "≠"
LEGEND = [
    (MARKS[REPRODUCED], "reproduced: measured within the tolerance of the published number"),
    (MARKS[OFF], "off by so many points: measured minus published, beyond the tolerance"),
    (MARKS[RERUN], "re-run by others: so many points off the published number; not measured here yet"),
    (f"{MARKS[RERUN]} {UNKNOWN}", "these numbers are not all known to count the background in one way"),
    ("", "no mark, published only: published, and no comparable run here or by others"),
    (MARKS[UNVERIFIED], "unverified: measured with nothing to compare with, or submitted"),
    (MARKS[INCONSISTENT], "inconsistent: old, new and all of the row contradict each other"),
    (INFERRED, "the source does not print the number together with its setting: inferred"),
    (DISPUTED, "another source prints another number for this row and setting"),
    (WITH, "the background is one of the classes of this mean"),
    (WITHOUT, "the background is not one of the classes of this mean"),
    (UNKNOWN, "whether the background is one of them is not known, so the number is not ranked"),
]
NOT_RANKED = (
    "Numbers with and without the background are ranked apart. Not ranked: joint training, inconsistent rows, what was "
    "submitted, and numbers that may or may not count the background."
)
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
        f"({listed}). Published numbers are as printed, and each follows its own paper's protocol. Whether the "
        "background is counted can change a number by many points where a method is weak. Whether a published number "
        "is reproduced is decided under the protocol that its own arithmetic points to, within the tolerance of "
        "cispbench check."
    )


def leaderboard_markdown(found: Leaderboard) -> str:
    """Return all boards as Markdown, the best of a column bold, the second underlined."""
    marks = "; ".join(f"`{mark}` {meaning}" if mark else meaning for mark, meaning in LEGEND)
    parts = [
        "# Leaderboard", "Made by `cispbench leaderboard` from the store and the ledger; do not edit.",
        f"{protocol_note(found.protocol)} {NOT_RANKED}", *found.notes,
        f"Marks: {marks}.",
    ]  # fmt: skip
    return "\n\n".join([*parts, render_markdown([_section(board) for board in found.boards])]) + "\n"


def readme_section(leaderboard: Leaderboard) -> str:
    """Return the short section of a README: on two settings, the best published methods and all that was measured."""
    rules = leaderboard.protocol
    parts = [
        "mIoU in percent; published numbers as printed, each under its own paper's protocol, measured ones under "
        f"{rules.name} v{rules.version}.\n"
        "The column caution says what makes a row unfair to compare: stored images of earlier steps (memory), a\n"
        "checkpoint chosen on the test images (test-selected), a network that has seen more than ImageNet-1k\n"
        "(pre-training), or labels beyond the data set's (extra supervision). The mark behind a number says whether\n"
        f"its mean counts the background: {WITH} yes, {WITHOUT} no, {UNKNOWN} not known. Numbers with different marks\n"
        "do not compare: the rows are ordered, not ranked."
    ]
    for setting in SHORT:
        board = next(board for board in leaderboard.boards if board.group.comparable and setting in board.settings)
        rows = []
        for entry in _best(board, setting):
            numbers = entry.by_setting[setting]
            total = numbers[_ALL]
            status = total.standing.words + (", setting inferred" if total.inferred else "")
            texts = [f"{number.text}{_counted(number, score)}" for score, number in enumerate(numbers)]
            run_by, caution = entry.run_by or NOT_KNOWN, "; ".join(badge.name for badge in entry.badges)
            rows.append([named(entry), entry.backbone, run_by, total.kind_text, *texts, status, caution])
        headers = ["method", "network", "run by", "kind", *SCORES, "status of all", "caution"]
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
    extra, extras = extra_columns([entry.extras for entry in board.entries])
    columns = [Column(name) for name in ("method", "network", "run by", "kind", "year", *extra, "caution")]
    texts = []
    for entry, used in zip(board.entries, extras, strict=True):
        year = NOT_KNOWN if entry.facts.year is None else str(entry.facts.year)
        badges = "; ".join(badge.name for badge in entry.badges)
        run_by = entry.run_by or NOT_KNOWN
        texts.append(plain([named(entry), entry.backbone, run_by, ", ".join(entry.kinds), year, *used, badges]))
        for source in _sources(entry):
            sources.setdefault(source, len(sources) + 1)
    for setting in board.settings:
        for score, name in enumerate(SCORES):
            columns.append(Column(name, setting, right=True))
            places = board.ranks(setting, score)
            for row, entry, rank in zip(texts, board.entries, places, strict=True):
                row.append(Text(_cell_text(board, entry, setting, score, sources), rank))
    columns.append(Column("source"))
    for row, entry in zip(texts, board.entries, strict=True):
        row.append(Text(" ".join(f"[{sources[source]}]" for source in _sources(entry)) or "this store"))
    listed = [f"[{number}] {source}" for source, number in sources.items()]
    intro = f"{len(board.entries)} rows, ordered by {board.main} all."
    return Section(title(board), intro, Table(columns, texts), [*board.group.warnings, *listed])


def _sources(entry: Entry) -> list[str]:
    """Return the sources of a row's numbers with their links, each once; none for what comes from the store."""
    found = (number.cited for numbers in entry.by_setting.values() for number in numbers)
    return [source for source in dict.fromkeys(found) if source]


def named(entry: Entry) -> str:
    """Return the method of an entry, with the remark that distinguishes it from others of that name."""
    return entry.method + (f" ({entry.remark})" if entry.remark else "")


def plain_number(number: Number, score: int) -> str:
    """Return a number with what must be known of it, whatever its status: background, inferred, disputed."""
    marks = [INFERRED if number.inferred else "", DISPUTED if number.disputed else ""]
    return " ".join(part for part in (f"{number.text}{_counted(number, score)}", *marks) if part)


def _counted(number: Number, score: int) -> str:
    return "" if SCORES[score] == "new" or math.isnan(number.value) else f" {background_mark(number.background)}"


def _cell_text(board: Board, entry: Entry, setting: str, score: int, sources: dict[str, int]) -> str:
    numbers = entry.by_setting.get(setting)
    if numbers is None:
        return ""
    number = numbers[score]
    status = number.standing.status
    # Where no number can be verified, a mark on each of them would say nothing.
    verified = board.group.comparable or status != UNVERIFIED
    mark = MARKS.get(status, "") + number.standing.points if verified else ""
    text = f"{plain_number(number, score)} {mark}".rstrip()
    several = len(_sources(entry)) > 1 and not math.isnan(number.value)
    return f"{text} [{sources[number.cited]}]" if several else text


def _best(board: Board, setting: str) -> list[Entry]:
    """Return the best row of each of the best published methods, and every measured row, the best first."""
    there = [entry for entry in board.entries if setting in entry.by_setting]
    values = {id(entry): entry.value(setting, _ALL) for entry in there}
    there.sort(key=lambda entry: math.inf if math.isnan(values[id(entry)]) else -values[id(entry)])  # NaN goes last
    published: dict[str, Entry] = {}
    for entry in there:
        total = entry.by_setting[setting][_ALL]
        if total.source and entry.ranked and total.standing.status != INCONSISTENT and not math.isnan(total.value):
            published.setdefault(entry.method, entry)
    kept = [*published.values()][:_MOST]
    return [
        entry for entry in there
        if entry.by_setting[setting][_ALL].kind == "measured" or any(entry is other for other in kept)
    ]  # fmt: skip
