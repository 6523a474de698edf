"""The paper's table: all that is known of one method's numbers, setting by setting, its authors' own first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from cispbench.reports.leaderboard.badges import NOT_KNOWN
from cispbench.reports.leaderboard.board import HERE, Entry, Leaderboard, Number, Numbers
from cispbench.reports.leaderboard.provenance import LINKS
from cispbench.reports.leaderboard.text import DISPUTED, INFERRED, plain_number
from cispbench.reports.tables.data import write_csv
from cispbench.reports.tables.extras import extra_columns
from cispbench.reports.tables.layout import Column, Section, Table, Text, plain
from cispbench.reports.tables.numbers import json_number
from cispbench.reports.tables.published import References, same_backbone
from cispbench.reports.tables.render import render_sections
from cispbench.reports.tables.runs import SCORES
from cispbench.results.documents import KINDS
from cispbench.results.ledger import find_published_name, published_name

_ORDER = (*KINDS, "measured")  # of the rows of a setting
_NOTE = (
    f"Behind a number: the mean counts the background (+b), does not (-b), or that is not known (b?); {INFERRED} its "
    f"setting is inferred; {DISPUTED} another source prints another number. Run by: the authors of the paper named."
)


class Line(NamedTuple):
    """The numbers of one row of the leaderboard on one setting; ``order``: by what lines are sorted."""

    setting: str
    entry: Entry
    numbers: Numbers
    order: tuple[int, ...]


def render_paper(found: Leaderboard, method: str, form: str) -> str:
    """Return the table of a method in one of the formats of ``cispbench table``.

    Raises UsageError on a method that the ledger does not hold.
    """
    if form == "json":
        return json.dumps(paper_data(found, method), allow_nan=False)
    if form == "csv":
        return write_csv(paper_data(found, method))
    return render_sections(paper_sections(found, method), form)


def paper_sections(found: Leaderboard, method: str) -> list[Section]:
    """Return the table of a method, a section for each network. Raises UsageError on a method the ledger lacks."""
    method = published_name(method)
    return [_section(method, network, lines, found) for network, lines in _networks(found, method).items()]


def all_paper_sections(found: Leaderboard) -> list[Section]:
    """Return the tables of all methods of the ledger, by name."""
    names = {
        entry.method
        for board in found.boards for entry in board.entries for numbers in entry.by_setting.values()
        if numbers[0].source
    }  # fmt: skip
    return [section for name in sorted(names, key=str.lower) for section in paper_sections(found, name)]


def paper_data(found: Leaderboard, method: str) -> list[dict[str, Any]]:
    """Return the rows of the table as JSON and CSV hold them, numbers unrounded. Raises as ``paper_sections`` does."""
    method = published_name(method)
    rows = []
    for network, lines in _networks(found, method).items():
        for line in lines:
            numbers = dict(zip(SCORES, line.numbers, strict=True))
            total, known = numbers["all"], dict(numbers["all"].provenance)
            row: dict[str, Any] = {
                "method": method, "network": network, "setting": line.setting, "run_by": line.entry.run_by or None,
                "kind": total.kind, "kind_inferred": total.likely, "model": line.entry.backbone,
                "remark": line.entry.remark, **line.entry.extras._asdict(),
            }  # fmt: skip
            for name, number in numbers.items():
                row |= {name: json_number(number.value), f"{name}_background": number.background}
            row |= {
                "setting_inferred": any(number.inferred for number in line.numbers),
                "disputed": any(number.disputed for number in line.numbers),
                "status": total.standing.words, "differences": _differences(total), "why": total.standing.why,
                "source": total.source, "links": known.get(LINKS, ""), "run_keys": known.get("Run keys", ""),
            }  # fmt: skip
            rows.append(row)
    return rows


def _differences(number: Number) -> list[float]:
    return [float(text) for text in number.standing.off.split(", ") if text]


def _networks(found: Leaderboard, method: str) -> dict[str, list[Line]]:
    """Return the lines of a method by network, that of its own numbers first, and then by how many there are."""
    networks: dict[str, list[Line]] = {}
    for line in sorted(_lines(found, method), key=lambda line: line.entry.run_by == HERE):
        name = line.entry.backbone
        if line.entry.run_by == HERE:
            name = next((known for known in networks if same_backbone(name, known)), name)
        networks.setdefault(name, []).append(line)

    def order(name: str) -> tuple[int, int]:
        return min(_ORDER.index(line.numbers[0].kind) for line in networks[name]), -len(networks[name])

    return {name: sorted(networks[name], key=lambda line: line.order) for name in sorted(networks, key=order)}


def _lines(found: Leaderboard, method: str) -> Iterator[Line]:
    comparable = (board for board in found.boards if board.group.comparable)
    for position, board in enumerate(comparable):
        for entry in board.entries:
            for setting, numbers in entry.by_setting.items():
                for shown in (numbers, *entry.others.get(setting, ())):
                    if shown[0].kind in _ORDER and find_published_name(entry.method, board.group.dataset) == method:
                        order = position, board.settings.index(setting), _ORDER.index(shown[0].kind)
                        yield Line(setting, entry, shown, order)


def _section(method: str, network: str, lines: list[Line], found: Leaderboard) -> Section:
    references, last = References(), ""
    rows: list[list[Text]] = []
    rules: set[int] = set()
    extra, extras = extra_columns([line.entry.extras for line in lines])
    for line, texts in zip(lines, extras, strict=True):
        if line.setting != last and rows:
            rules.add(len(rows))
        total = line.numbers[SCORES.index("all")]
        numbers = [plain_number(number, score) for score, number in enumerate(line.numbers)]
        setting = line.setting if line.setting != last else ""
        rows.append(plain([setting, _who(line, references), total.kind_text, *numbers, total.standing.words, *texts]))
        last = line.setting
    used = found.protocol
    measured = any(line.entry.run_by == HERE for line in lines)
    here = f"Measured here under {used.name} v{used.version}." if measured else "Not measured here yet."
    columns = [Column("setting"), Column("run by"), Column("kind"), *(Column(name, right=True) for name in SCORES),
               Column("status of all"), *map(Column, extra)]  # fmt: skip
    listed = [f"[{number}] {source}" for source, number in references.numbers.items()]
    intro = f"mIoU in percent, published numbers as printed. {here}"
    return Section(f"{method}, {network}", intro, Table(columns, rows, frozenset(rules)), [_NOTE, *listed])


def _who(line: Line, references: References) -> str:
    """Return who ran a line, and the number of its source."""
    who = line.entry.run_by.removesuffix(" authors").removeprefix("the authors of ") or NOT_KNOWN
    remark = f" ({line.entry.remark})" if line.entry.remark else ""
    cited = line.numbers[0].cited
    return f"{who}{remark}" + (f" {references.mark(cited)}" if cited else "")
