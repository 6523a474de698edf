"""Sections as LaTeX tables with the rules of booktabs, for a document that pdflatex compiles.

Written by hand, as no library at hand gives the same: neither tabulate nor pandas draws a ``\\cmidrule`` below each
setting, escapes a ``[`` at the start of a row, or makes minus signs and accents that pdflatex prints.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from cispbench.reports.tables.layout import Section, Table, Text, one_line, plain

_RANKED = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "±": r"$\pm$", "≠": r"$\neq$",
    "…": r"\dots{}",
    # At the start of a row, these would be arguments of the \\ before it.
    "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
_ACCENTS = {
    "\u0300": r"\`", "\u0301": r"\'", "\u0302": r"\^", "\u0303": r"\~", "\u0308": r"\"", "\u030a": r"\r",
    "\u030c": r"\v", "\u0327": r"\c",
}  # fmt: skip
_HEAD = (
    r"% In the preamble: \usepackage{booktabs} \usepackage[T1]{fontenc}",
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
    return minus + re.sub(r"([ ,\[]|\{\[\})-(?=\d)", r"\1$-$", escaped).replace("--", "-{}-").replace("--", "-{}-")


def render_latex(sections: Sequence[Section]) -> str:
    """Return sections as table environments: the best of a column bold, the second underlined."""
    lines = list(_HEAD)
    for section in sections:
        lines += [
            "",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escape_latex(section.heading)}. {escape_latex(section.intro)}}}",
            *(f"  {line}" for line in _tabular(section.table)),
            *(rf"  \par\smallskip{{\footnotesize {escape_latex(note)}\par}}" for note in section.all_notes),
            r"\end{table}",
        ]
    return "\n".join(lines)


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
