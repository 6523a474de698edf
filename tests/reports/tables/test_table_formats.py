"""Every format shows the same numbers, marks best and second, and prints any name as it is."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cispbench.reports.tables.data import write_csv
from cispbench.reports.tables.html import render_html
from cispbench.reports.tables.latex import escape_latex, render_latex
from cispbench.reports.tables.layout import Column, Section, Table, Text, plain
from cispbench.reports.tables.markdown import escape, render_markdown
from cispbench.reports.tables.terminal import WIDTH, render_terminal
from cispbench.results.record import StepRecord
from cispbench.splits.printable import printable

Maker = Callable[..., StepRecord]
NASTY = [
    "a|b", "a_b", "__init__", "a&b", "&amp;", "<script>alert(1)</script>", "50%", "$x$", "a\\b", "\\", "a\nb", "\\|",
    "*bold*", "`code`", "[x](http://y)", "[x]", "{x}", "x^2~y#1", "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", '"quoted"',
    "a,b;c", "é ü Ç", "β 中", "\x1b[2J", "a\u202eb", "a--b---c", "a\x00b", "* x", "</td>", "\\input{x}", "~~x~~",
    "%s {} {0}", "'", "ﬁ±…",
]  # fmt: skip
RULED = frozenset({2})


def section(*names: str) -> Section:
    """A table with the names as methods, below two settings."""
    columns = [Column("method"), Column("old", "15-1", True), Column("all", "15-1", True), Column("all", "a|b_c", True)]
    rows = [[Text(name), Text("1.00 ± 0.10", 1), Text("-0.50", 2), Text("3.00 [4.0, -1.00]")] for name in names]
    return Section("voc & <mini>", "mIoU_x in 100%", Table(columns, rows, RULED), ("A note_: 5 < 6 & 7.",))


def shown(name: str) -> str:
    """What a reader is to see of a name: one line, with control characters spelt out."""
    return printable(" ".join(name.split()))


class Cells(HTMLParser):
    """The texts of a page's table cells, row by row, and all its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.open = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.open = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.open = False

    def handle_data(self, data: str) -> None:
        if self.open:
            self.rows[-1][-1] += data


def test_html_shows_any_name_as_text() -> None:
    page = render_html([section(*NASTY)], title="<b>&")
    found = Cells(page)
    assert [row[0] for row in found.rows[2:]] == [shown(name) for name in NASTY]
    assert {len(row) for row in found.rows[1:]} == {4}
    assert set(found.tags) == {
        "html", "head", "meta", "title", "style", "body", "section", "h2", "div", "table", "caption", "thead", "tbody",
        "tr", "th", "td", "strong", "span", "p",
    }  # fmt: skip
    assert found.rows[0] == ["", "15-1", "a|b_c"]
    assert "A note_: 5 &lt; 6 &amp; 7." in page and "voc &amp; &lt;mini&gt;" in page
    assert "http:" not in page.replace("http://y", "") and "src=" not in page and "url(" not in page
    assert page.count("<strong>1.00 ± 0.10</strong>") == page.count('<span class="second">-0.50</span>') == len(NASTY)
    assert page.count('<tr class="rule">') == 1
    for tag in ("table", "tr", "th", "td", "thead", "tbody", "section", "div", "strong", "span", "p"):
        assert page.count(f"</{tag}>") == len(re.findall(rf"<{tag}[ >]", page)), tag


def split_row(line: str) -> list[str]:
    """Split a row of a Markdown table as GitHub does: a backslash keeps the character after it from splitting."""
    cells, place = [""], 1
    while place < len(line) - 1:
        step = 2 if line[place] == "\\" else 1
        if line[place] == "|":
            cells.append("")
        else:
            cells[-1] += line[place : place + step]
        place += step
    return [cell.strip() for cell in cells]


def test_markdown_shows_any_name_as_text() -> None:
    lines = [line for line in render_markdown([section(*NASTY)]).splitlines() if line.startswith("|")]
    rows = [split_row(line) for line in lines]
    assert {len(row) for row in rows} == {4}
    assert [re.sub(r"\\(.)", r"\1", row[0]) for row in rows[2:]] == [shown(name).strip() for name in NASTY]
    assert rows[0] == ["method", "15-1 old", "15-1 all", "a\\|b_c all"]
    assert rows[2][1:] == ["**1.00 ± 0.10**", "<ins>-0.50</ins>", "3.00 [4.0, -1.00]"]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("lwf_mc", "lwf_mc"), ("__init__", "\\_\\_init\\_\\_"), ("*x*", "\\*x\\*"), ("<b>", "\\<b>"), ("a|b", "a\\|b"),
        ("\\|", "\\\\\\|"), ("&lt;", "\\&lt;"), ("A&B", "A&B"), ("`x`", "\\`x\\`"), ("[x](y)", "\\[x](y)"),
        ("[35 MBS]", "[35 MBS]"), ("a\n b", "a b"), ("~~a~~", "\\~~a\\~~"), ("\x1b[1m", "\\\\x1b[1m"),
    ],
)  # fmt: skip
def test_markdown_escapes_no_more_than_it_must(name: str, written: str) -> None:
    assert escape(name) == written


def test_csv_gives_any_name_back_and_no_formula() -> None:
    text = write_csv([{"name": name, "number": -1.5, "flag": True, "none": None} for name in NASTY])
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows[0] == ["name", "number", "flag", "none"]
    for name, row in zip(NASTY, rows[1:], strict=True):
        assert row[1:] == ["-1.5", "true", ""]
        assert row[0].removeprefix("'") == name.removeprefix("'").replace("\0", "\\x00")
        assert row[0][:1] not in {"=", "+", "-", "@", "\t", "\r", "\n"}
    assert write_csv([]) == ""
    assert write_csv([{"x": "＝1"}]) == "x\n'＝1\n"
    assert write_csv([{"x": 0.1 + 0.2}]) == "x\n0.30000000000000004\n"


def test_a_terminal_is_told_nothing_but_text() -> None:
    for marked in (False, True):
        text = render_terminal([section(*NASTY)], marked)
        left = re.sub(r"\x1b\[[014]m", "", text) if marked else text
        assert all(character.isprintable() or character == "\n" for character in left)
        starts = [line.split("  ")[0] for line in left.splitlines()]
        assert all(printable(name).split("  ")[0] in starts for name in NASTY)
    assert "\x1b[1m1.00 ± 0.10\x1b[0m" in text and "\x1b[4m-0.50\x1b[0m" in text
    assert "\x1b" not in render_terminal([section("mib")])


def test_marks_do_not_move_columns_and_a_rule_stands_above_the_bounds() -> None:
    once = render_terminal([section("a", "bb", "joint")])
    again = re.sub(r"\x1b\[[014]m", "", render_terminal([section("a", "bb", "joint")], marked=True))
    assert again.startswith(once)
    lines = once.splitlines()
    (joint,) = [place for place, line in enumerate(lines) if line.startswith("joint")]
    assert set(lines[joint - 1]) == {"-", " "}
    assert lines[joint - 1] == lines[joint - 4]


def test_a_wide_table_is_cut_between_settings() -> None:
    settings = [f"overlapped-{number}-1" for number in range(5, 15)]
    columns = [Column("method"), *(Column(name, over, True) for over in settings for name in ("old", "new", "all"))]
    rows = [plain(["mib", *(f"{number}.00 ± 0.25" for number in range(30))])]
    text = render_terminal([Section("h", "i", Table(columns, rows))])
    assert max(map(len, text.splitlines())) <= WIDTH
    assert len(re.findall("^mib", text, re.MULTILINE)) > 2
    numbers = re.findall(r"(\d+)\.00 ± ", text)
    assert numbers == [str(number) for number in range(30)]
    for over in settings:
        assert text.count(f" {over} ") + text.count(f" {over}\n") == 1


def test_a_setting_wider_than_the_terminal_is_cut_between_its_columns() -> None:
    names = [f"number {number}" for number in range(40)]
    columns = [Column("method"), Column("model"), *(Column(name, "15-1", True) for name in names), Column("kind")]
    rows = [plain(["mib", "vit", *map(str, range(40)), "full"])]
    text = render_terminal([Section("h", "i", Table(columns, rows))])
    assert max(map(len, text.splitlines())) <= WIDTH
    lines = [line for line in text.splitlines() if line.startswith("mib")]
    assert all(line.split()[:2] == ["mib", "vit"] for line in lines)
    assert [word for line in lines for word in line.split()[2:]] == [*map(str, range(40)), "full"]
    flat = Table([Column("a"), Column("b")], [plain(["x" * 80, "y" * 80])])
    assert "x" * 80 in render_terminal([Section("h", "i", flat)])


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a_b", r"a\_b"), ("50%", r"50\%"), ("a&b", r"a\&b"), ("$", r"\$"), ("#{}", r"\#\{\}"),
        ("^", r"\textasciicircum{}"),
        ("\\", r"\textbackslash{}"), ("<a>", r"\textless{}a\textgreater{}"), ("-1.5", "$-$1.5"), ("a-1", "a-1"),
        ("3.0 [4.0, -1.0]", "3.0 {[}4.0, $-$1.0{]}"), ("[x]", "{[}x{]}"), ("*", "{*}"), ("a--b---c", "a-{}-b-{}-{}-c"),
        ("é", r"\'{e}"), ("Ç", r"\c{C}"), ("中", "U+4E2D"), ("β", "U+03B2"), ("a\nb", "a b"),
        ("1 ± 2", r"1 $\pm$ 2"), ("\x1b", r"\textbackslash{}x1b"), ("-2.0 to -1.0", "$-$2.0 to $-$1.0"),
    ],
)  # fmt: skip
def test_latex_escapes(name: str, written: str) -> None:
    assert escape_latex(name) == written


def test_a_latex_table_has_its_structure() -> None:
    text = render_latex([section(*NASTY)])
    body = [line.strip() for line in text.splitlines() if line.strip().endswith("\\\\")]
    assert len(body) == 2 + len(NASTY)
    for line in body[1:]:
        assert len(re.findall(r"(?<!\\)&", line)) == 3, line
        assert not re.search(r"(?<!\\)[%#_]", line.removesuffix("\\\\")), line
        bare = line.replace("\\{", "").replace("\\}", "")
        assert bare.count("{") == bare.count("}")
        assert not line.startswith(("[", "*")) and line.isascii()
    assert body[0] == r" & \multicolumn{2}{c}{15-1} & \multicolumn{1}{c}{a\textbar{}b\_c} \\".strip()
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-4}" in text
    order = [text.index(word) for word in (r"\toprule", r"\cmidrule", r"\midrule", r"\bottomrule", r"\end{tabular}")]
    assert order == sorted(order)
    assert text.count(r"\midrule") == 2 and text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    assert r"\textbf{1.00 $\pm$ 0.10} & \underline{$-$0.50}" in text
    assert r"\begin{tabular}{lrrr}" in text


@pytest.mark.latex
def test_a_latex_table_of_any_names_compiles(tmp_path: Path) -> None:
    compile_latex(render_latex([section(*NASTY), section("mib")]), tmp_path)


def compile_latex(text: str, folder: Path) -> str:
    """Compile a document with the text and return its log; skip where pdflatex or booktabs is absent."""
    command = shutil.which("pdflatex")
    if command is None:
        pytest.skip("pdflatex is absent; the structure of the table is asserted by the other tests")
    if subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False).returncode:
        pytest.skip("LaTeX's package booktabs is absent")
    head = "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs}\n\\begin{document}\n"
    (folder / "t.tex").write_text(f"{head}{text}\n\\end{{document}}\n", encoding="utf-8")
    words = [command, "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(words, cwd=folder, capture_output=True, check=False, timeout=240)
    log = done.stdout.decode("latin-1")
    assert done.returncode == 0, log[-2000:]
    assert (folder / "t.pdf").stat().st_size > 1000
    assert "Missing character" not in (folder / "t.log").read_text(encoding="latin-1")
    return log
