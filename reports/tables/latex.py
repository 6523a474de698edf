"""Sections as LaTeX tables with the rules of booktabs, for a document that pdflatex compiles.

Written by hand, as no library at hand gives the same: neither tabulate nor pandas draws a ``\\cmidrule`` below each
setting, escapes a ``[`` at the start of a row, or makes minus signs and accents that pdflatex prints.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from cispbench.reports.tables.layout import Section, Table, Text, one_line, plain
from cispbench.results.ledger import find_published_name
from cispbench.results.record_fields import OVER
from cispbench.splits.datasets import NATURAL_ORDER
from cispbench.splits.errors import SettingError
from cispbench.splits.settings import parse_setting

_RANKED = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\char34{}", "`": r"\textasciigrave{}", "±": r"$\pm$", "≠": r"$\neq$",
    "…": r"\dots{}",
    # At the start of a row, these would be arguments of the \\ before it.
    "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
_ACCENTS = {
    "\u0300": r"\`", "\u0301": r"\'", "\u0302": r"\^", "\u0303": r"\~", "\u0308": r"\"", "\u030a": r"\r",
    "\u030c": r"\v", "\u0327": r"\c",
}  # fmt: skip
_METHODS = {"finetune": "Fine-tuning", "joint": "Joint training"}  # what the ledger calls by fewer letters
_HEAD = (
    r"% In the preamble: \usepackage{booktabs}",
    r"% A table wider than the page goes into \resizebox{\textwidth}{!}{...} of the package graphicx.",
)


def escape_latex(text: str) -> str:
    r"""Return a text that LaTeX prints as it is; a letter that is not Latin becomes its code point, U+4E00.

    >>> print(escape_latex("a_b & 50%"), escape_latex("-0.50"))
    a\_b \& 50\% $-$0.50
    """
    line = one_line(text)
    minus = "$-$" if re.match(r"-\d", line) else ""
    escaped = "".join(_character(character) for character in (line[1:] if minus else line))
    signed = re.sub(r"([ ,\[]|\{\[\})-(?=\d)", r"\1$-$", escaped)
    return minus + re.sub(r"([-,'])(?=\1)", r"\1{}", signed)  # two of them would become a dash or a quotation mark


def render_latex(sections: Sequence[Section]) -> str:
    """Return sections as table environments: the best of a column bold, the second underlined.

    Methods and settings are named as papers print them. Each table has its own label, made from its heading.
    """
    lines = list(_HEAD)
    labels: Counter[str] = Counter()
    for section in sections:
        label = re.sub("[^a-z0-9]+", "-", section.heading.lower()).strip("-")
        labels[label] += 1
        lines += [
            "",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escape_latex(section.heading)}. {escape_latex(section.intro)}}}",
            rf"  \label{{tab:{label}{f'-{labels[label]}' if labels[label] > 1 else ''}}}",
            r"  \medskip",  # LaTeX leaves no room below a caption
            *(f"  {line}" for line in _tabular(_as_printed(section.table))),
            *(rf"  \par\smallskip{{\footnotesize {escape_latex(note)}\par}}" for note in section.all_notes),
            r"\end{table}",
        ]
    return "\n".join(lines)


def _as_printed(table: Table) -> Table:
    """Return a table with its methods and settings as papers name them."""
    columns = [column._replace(over=_setting(column.over)) for column in table.columns]
    say = {"method": _method, "setting": _setting}
    rows = [
        [Text(say.get(column.name, str)(text), rank) for column, (text, rank) in zip(table.columns, row, strict=True)]
        for row in table.rows
    ]
    return Table(columns, rows, table.rules)


def _method(text: str) -> str:
    """Return ``MiB (variant 12ab34)`` for ``mib (variant 12ab34)``; a method that no paper names stays as it is."""
    name, bracket, remark = text.partition(" (")
    parts = (_METHODS.get(part) or find_published_name(part) or part for part in name.split(OVER))
    return f"{OVER.join(parts)}{bracket}{remark}"


def _setting(name: str) -> str:
    """Return ``overlapped 15-1 (6 steps)`` for ``overlapped-15-1``; what is no setting stays as it is."""
    try:
        setting = parse_setting(name)
    except SettingError:
        return name
    order = "" if setting.order == NATURAL_ORDER else f", order {setting.order}"
    seed = "" if setting.partition_seed is None else f", seed {setting.partition_seed}"
    steps = len(setting.steps)
    return f"{setting.scenario} {setting.task}{order}{seed} ({steps} step{'s' if steps > 1 else ''})"


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isascii():
        return character
    letter, *accents = list(unicodedata.normalize("NFD", character))
    if letter.isascii() and letter.isalpha() and len(accents) == 1 and accents[0] in _ACCENTS:
        return f"{_ACCENTS[accents[0]]}{{{letter}}}"
    return f"U+{ord(character):04X}"


def _tabular(table: Table) -> list[str]:
    shape = "".join("r" if column.right else "l" for column in table.columns)
    names = _row(plain([column.name for column in table.columns]))
    lines = [rf"\begin{{tabular}}{{{shape}}}", r"  \toprule", *_headings(table), names, r"  \midrule"]
    for index, row in enumerate(table.rows):
        lines += [r"  \midrule"] if index in table.rules else []
        lines.append(_row(row))
    return [*lines, r"  \bottomrule", r"\end{tabular}"]


def _headings(table: Table) -> list[str]:
    """Return the line of shared headings and the rules below them, if there are any."""
    if not table.spans:
        return []
    texts, rules, first = [], [], 1
    for over, count in table.spans:
        texts.append(rf"\multicolumn{{{count}}}{{c}}{{{escape_latex(over)}}}" if over else " & " * (count - 1))
        if over:
            rules.append(rf"\cmidrule(lr){{{first}-{first + count - 1}}}")
        first += count
    return [f"  {' & '.join(texts)} \\\\", f"  {' '.join(rules)}"]


def _row(cells: Sequence[Text]) -> str:
    return f"  {' & '.join(_RANKED[cell.rank].format(escape_latex(cell.text)) for cell in cells)} \\\\"
