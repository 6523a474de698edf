"""Pictures of a store: what each shows, where it lies, the same bytes anywhere, and nothing that a name could do."""

from __future__ import annotations

import doctest
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cispbench.harness.cli import main
from cispbench.reports.plots import confusion, scatter, wording
from cispbench.reports.plots.confusion import background_shift, row_shares
from cispbench.reports.plots.cost import costs, draw_cost
from cispbench.reports.plots.curves import draw_curves
from cispbench.reports.plots.gallery import KINDS, plan_pictures
from cispbench.reports.plots.heat_map import class_rows, draw_heat_map
from cispbench.reports.plots.page import COLUMN, DPI, FULL, Page, drawing, render
from cispbench.reports.plots.scatter import draw_scatter
from cispbench.reports.plots.subject import Subject, styles, subjects
from cispbench.reports.tables.cells import Cell, cells
from cispbench.reports.tables.scoring import load_runs
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import DataUsed, Memory, ModelUsed, Timing
from cispbench.results.store import Store
from cispbench.splits.classes import class_names
from cispbench.splits.settings import parse_setting

Maker = Callable[..., StepRecord]
FULL_DATA = DataUsed("full", "f0", 10582, 1449, "cd" * 32)
RESNET = ModelUsed("deeplabv3-resnet101", 58_000_000, "resnet101", "aa" * 32)
ODD = (
    "$\\frac{",
    "$\\frac{$",
    "$x_1$",
    "<script>alert(1)</script>",
    "_x",
    "a\x1b[2Jb",
    "../../up",
    "\u540d\u524d",
    "--> <b>&amp;",
    "%s {0}",
)


def matrix(setting: str, step: int, keep: int) -> tuple[tuple[int, ...], ...]:
    """Counts after a step: a class has kept so many of 100 pixels for each step since it was learnt; the rest is lost
    to the background, and a tenth of the background's 1000 to the newest class."""
    plan = parse_setting(setting)
    rows = np.zeros((plan.num_foreground + 1,) * 2, dtype=int)
    known = plan.num_classes(step)
    rows[0, 0], rows[0, known - 1] = 900, 100
    for part in plan.steps:
        for number in part.classes:
            index = plan.learning_order.index(number)
            rows[index, index] = max(0, keep - 20 * (step - part.index)) if part.index <= step else 0
            rows[index, 0] = 100 - rows[index, index]
    return tuple(map(tuple, rows.tolist()))


def write(
    store: Store, make_record: Maker, method: str, keep: int, setting: str = "overlapped-15-1", **more: Any
) -> None:
    """Write a whole run; each step took ten seconds more than the one before it."""
    seed = more.get("seed", 0)
    fields = {"method": method, "model": RESNET, "data": FULL_DATA, "run_key": f"{method}{seed}{setting}"[:40]} | more
    for step in range(len(parse_setting(setting).steps)):
        timing = Timing(100.0 + 10 * step, 2.0, 12.3, 210.4, False)
        memory = Memory(10**9, (1 + step) * 2**30)
        store.write(
            make_record(
                setting, step=step, confusion=matrix(setting, step, keep), timing=timing, memory=memory, **fields
            )
        )


@pytest.fixture
def store(tmp_path: Path, make_record: Maker) -> Store:
    """Two methods on 15-1, the first by two seeds, and joint training."""
    store = Store(tmp_path / "out")
    write(store, make_record, "mib", 90)
    write(store, make_record, "mib", 80, seed=1)
    write(store, make_record, "plop", 95)
    joint = {"joint": True, "steps": 1, "classes": tuple(range(1, 21)), "method": "joint", "model": RESNET}
    store.write(make_record(data=FULL_DATA, confusion=matrix("overlapped-15-1", 5, 99), run_key="joint" * 4, **joint))
    return store


@pytest.fixture
def canvas() -> Iterator[None]:
    with drawing():
        yield


def cell_of(subject: Subject, method: str) -> Cell:
    return next(cell for cell in subject.cells if cell.key.method == method)


def subject_of(store: Store, protocol: str = "strict") -> Subject:
    made = cells(load_runs(store, protocol))
    (subject,) = subjects(made[0].group, made, protocol)
    return subject


def run(store: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["plots", "--out", str(store), *words])


def refused(code: int, store: Path, *words: str) -> str:
    result = run(store, *words)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return result.stderr


def texts(svg: Path) -> list[str]:
    """What is written on a picture: matplotlib notes it beside the shapes of the letters."""
    return [text.strip() for text in re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"), re.DOTALL)]


def test_every_picture_is_drawn_in_both_formats(store: Store, tmp_path: Path) -> None:
    own = [f"{name}@deeplabv3-resnet101" for name in ("mib", "plop")]
    planned = {str(picture.path) for picture in plan_pictures(store)}
    folder = Path("voc-full-paper", "overlapped-15-1")
    names = ["cost", "curves", "scatter", *(f"{name}/{kind}" for name in own for kind in ("classes", "confusion"))]
    names += ["joint@deeplabv3-resnet101/confusion"]  # it forgets nothing
    names += [f"{name}@deeplabv3-resnet101/losses" for name in ("mib", "plop", "joint")]
    assert planned == {str(folder / name) for name in names}
    result = run(store.path, "--method", "mib")
    assert result.exit_code == 0, result.output
    drawn = sorted(path for path in (store.path / "plots").rglob("*.*"))
    assert sorted(result.stdout.split()) == list(map(str, drawn))
    assert {path.stem for path in drawn} == set(KINDS)
    for path in drawn:
        root = ElementTree.parse(path).getroot()
        assert float(root.get("width", "").removesuffix("pt")) / 72 in (pytest.approx(COLUMN), pytest.approx(FULL))
        assert "full data, profile paper" in " ".join(texts(path))
    words = ("--format", "png", "--pictures", "curves,confusion", "--method", "plop", "--output", str(tmp_path / "p"))
    listed = json.loads(run(store.path, *words, "--json").stdout)
    assert [Path(name).name for name in listed] == ["curves.png", "confusion.png"]
    for name in listed:
        with Image.open(name) as image:
            assert image.width == round(COLUMN * DPI)
            assert set(image.info) == {"Title", "Description", "dpi"}  # no version, no date
            assert "plop" in image.info["Title"] or "curves" in name


def test_the_same_bytes_in_another_process_and_nothing_is_written_elsewhere(store: Store, tmp_path: Path) -> None:
    """Whatever a matplotlibrc says, where the hashes of Python differ, in a home of its own."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    (here / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\n")
    words = ["plots", "--out", str(store.path), "--method", "mib", "--output", "FOLDER", "--format"]
    both = [[*words, "svg", "--pictures", "curves,confusion"], [*words, "png", "--pictures", "curves"]]
    for line in both:
        assert (
            CliRunner().invoke(main, [word.replace("FOLDER", str(tmp_path / "first")) for word in line]).exit_code == 0
        )
    code = "import sys, json; from cispbench.harness.cli import main\n"
    code += "for words in json.loads(sys.argv[1]): main(words, standalone_mode=False)"
    lines = json.dumps(both).replace("FOLDER", str(tmp_path / "second"))
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "XDG"))}
    done = subprocess.run(
        [sys.executable, "-c", code, lines], capture_output=True, text=True, cwd=here,
        env=variables | {"HOME": str(home), "PYTHONHASHSEED": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    drawn = {path.relative_to(tmp_path / "first"): path.read_bytes() for path in (tmp_path / "first").rglob("*.*")}
    assert len(drawn) == 3
    for name, content in drawn.items():
        assert (tmp_path / "second" / name).read_bytes() == content, name
    assert list(home.iterdir()) == []


def test_names_are_shown_as_they_are_and_lead_nowhere(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path / "out" / "deep")
    for number, name in enumerate(ODD):
        write(store, make_record, name, 80, "overlapped-19-1", run_key=f"{number}" * 16)
    planned = [picture.path for picture in plan_pictures(store)]
    assert len(set(planned)) == 3 + 3 * len(ODD)
    assert not any(path.is_absolute() or ".." in path.parts for path in planned)
    folder = tmp_path / "out" / "pictures"
    words = ("--output", str(folder), "--pictures")
    assert run(store.path, *words, "curves,cost,scatter").exit_code == 0
    assert run(store.path, *words, "classes,confusion,losses", "--run", "0").exit_code == 0  # the first of the odd ones
    drawn = {path.stem: path for path in folder.rglob("*.svg")}
    assert set(drawn) == set(KINDS)
    for path in drawn.values():
        elements = list(ElementTree.parse(path).iter())
        tags = {element.tag.rpartition("}")[2] for element in elements}
        shapes = {"svg", "defs", "style", "g", "path", "use", "clipPath", "rect"}
        assert tags <= shapes | {"image", "metadata", "RDF", "Work", "title", "description", "type", "format"}
        links = [value for element in elements for name, value in element.attrib.items() if name.endswith("href")]
        assert links and all(link.startswith(("#", "data:image/png")) for link in links)
    for name in ("classes", "confusion", "losses"):
        assert "$\\frac{, overlapped-19-1" in " ".join(texts(drawn[name]))
    for name in ("curves", "scatter", "cost"):
        shown = set(texts(drawn[name]))
        assert {"$\\frac{", "$\\frac{$", "$x_1$", "_x", "a\\x1b[2Jb", "../../up", "\u540d\u524d", "%s {0}"} <= shown
        assert any("script" in text and "alert(1)" in text for text in shown)


def test_kinds_of_data_never_share_a_picture(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    kinds = (("full", "paper"), ("synthetic", "quick"), ("mini", "mini"))
    for kind, profile in kinds:
        data = DataUsed(kind, "f2", 40, 20, "ab" * 32)
        write(store, make_record, "mib", 50, "overlapped-19-1", data=data, profile=profile, run_key=kind * 3)
    assert run(store.path, "--pictures", "scatter").exit_code == 0
    told = ("", "synthetic scenes", "a small part of the real data")
    assert len(list((store.path / "plots").iterdir())) == 3
    for (kind, profile), data in zip(kinds, told, strict=True):
        (path,) = (store.path / "plots" / f"voc-{kind}-{profile}").rglob("*.svg")
        words = " ".join(texts(path))
        assert f"{kind} data, profile {profile}" in words
        assert ("NOT comparable" in re.sub(r"\s+", " ", words)) == (kind != "full")
        assert not data or f"Measured on {data}: these numbers are" in words


def test_nothing_to_draw_is_said(store: Store, tmp_path: Path, make_record: Maker) -> None:
    assert "does not exist" in refused(1, tmp_path / "none")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no finished run" in refused(1, empty)
    Store(empty).write(make_record())  # step 0 of 6
    assert "`cispbench status`" in refused(1, empty)
    assert "unknown picture 'curve'" in refused(2, store.path, "--pictures", "curve")
    assert "Did you mean 'curves'?" in refused(2, store.path, "--pictures", "scatter,curve")
    assert "unknown format 'pdf'" in refused(2, store.path, "--format", "pdf")
    assert "Did you mean 'mib20'?" in refused(2, store.path, "--protocol", "mib2")
    assert "Did you mean 'plop'?" in refused(2, store.path, "--method", "plo")
    assert "curves, classes and scatter need" in refused(
        1, store.path, "--method", "joint", "--pictures", "classes,curves"
    )
    assert not (store.path / "plots").exists()


def test_a_run_from_files_alone_has_no_cost_and_no_curve(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    counts = matrix("overlapped-15-5", 1, 70)
    scored = make_record("overlapped-15-5", step=1, confusion=counts, origin="predictions", previous_key=None)
    store.write(scored)
    names = [picture.path.name for picture in plan_pictures(store)]
    assert names == ["scatter", "confusion"]


def test_curves_hold_the_means_and_bands_over_seeds(store: Store, canvas: None) -> None:
    subject = subject_of(store)
    (axes,) = draw_curves(subject).figure.axes
    curves = {tuple(line.get_xdata()): line for line in axes.lines if len(line.get_xdata()) > 2}
    drawn = [line for line in axes.lines if len(line.get_xdata()) == 6]
    assert len(curves) == 1 and len(drawn) == 2  # mib and plop
    runs = {run.facts.seed: run for cell in subject.cells for run in cell.runs if cell.key.method == "mib"}
    for step in range(6):
        values = [runs[seed].steps[step].scores.all for seed in (0, 1)]
        assert drawn[0].get_ydata()[step] == pytest.approx(sum(values) / 2)
        band = axes.collections[0].get_paths()[0].vertices
        ends = {round(float(y), 6) for x, y in band if x == step}
        assert ends == {
            round(sum(values) / 2 + sign * abs(values[0] - values[1]) / math.sqrt(2), 6) for sign in (-1, 1)
        }
    assert len(axes.collections) == 1  # plop has one seed and no band
    level = subject.cells[subject.labels.index("joint")].numbers["all"].mean
    assert [line.get_ydata()[0] for line in axes.lines if list(line.get_xdata()) == [0, 1]] == [level]


def test_class_rows_are_blank_before_a_class_is_learnt(store: Store) -> None:
    subject = subject_of(store)
    mib = cell_of(subject, "mib")
    rows = class_rows(mib, subject)
    assert rows.names[0] == "background" and rows.steps == (0, 1, 2, 3, 4, 5)
    for row, (name, learnt) in enumerate(zip(rows.names, rows.learnt, strict=True)):
        place = class_names("voc").index(name)
        assert learnt == max(0, place - 15)
        for step in range(6):
            value = rows.iou[row, step]
            if step < learnt:
                assert math.isnan(value)
            else:
                seeds = [run.steps[step].scores.per_class[place] for run in mib.runs]
                assert value == pytest.approx(sum(seeds) / 2)
        change = rows.changes()[row]
        assert math.isnan(change) if learnt == 5 else change == pytest.approx(rows.iou[row, 5] - rows.iou[row, learnt])
    assert rows.changes()[1] == pytest.approx(-85)  # of 90 and 80, in five steps, to 0


def test_shift_against_a_slow_count() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, (7, 7))
    counts[2] = 0  # no ground truth
    first = 4
    shares = [[100 * counts[i, j] / counts[i].sum() for j in range(7)] for i in range(7) if i != 2]
    kept = [i for i in range(7) if i != 2]
    old, new = ([kept.index(i) for i in kept if i in part] for part in (range(1, first), range(first, 7)))
    shift = background_shift(counts, first)
    assert shift.old_to_background == pytest.approx(sum(shares[i][0] for i in old) / 2)
    assert shift.old_to_new == pytest.approx(sum(sum(shares[i][first:]) for i in old) / 2)
    assert shift.new_to_background == pytest.approx(sum(shares[i][0] for i in new) / 3)
    assert shift.new_to_old == pytest.approx(sum(sum(shares[i][1:first]) for i in new) / 3)
    assert shift.background_to_new == pytest.approx(sum(shares[0][first:]))
    assert np.isnan(row_shares(counts)[2]).all()
    assert math.isnan(background_shift(np.zeros((3, 3), dtype=int), 2).old_to_background)


def test_the_confusion_matrix_tells_its_background_shift(store: Store) -> None:
    words = ("--pictures", "confusion", "--method", "mib")
    assert run(store.path, *words).exit_code == 0
    told = " ".join(texts(next((store.path / "plots").rglob("confusion.svg"))))
    # Old classes have lost all to background, and background a tenth to the newest class, in both seeds.
    shift = "of an old class's pixels 100.0 % are predicted as background, of the background's 10.0 % as a new class."
    assert f"Background shift: {shift}" in re.sub(r"\s+", " ", told)
    assert {"old class to background", "background to new class"} <= set(
        texts(next((store.path / "plots").rglob("confusion.svg")))
    )


def test_costs_of_a_run(store: Store, canvas: None) -> None:
    subject = subject_of(store)
    found = costs(cell_of(subject, "mib"))
    assert (found.first.mean, found.total.mean) == (100.0, 750.0)
    assert (found.memory.mean, found.on_device, found.parameters) == (6 * 2.0**30, True, 58_000_000)
    axes = draw_cost(subject).figure.axes
    assert [a.get_xlabel() for a in axes] == ["training (min)", "peak memory (GiB)", "parameters (millions)"]
    place = [label.get_text() for label in axes[0].get_yticklabels()].index("mib")
    assert axes[1].patches[place].get_width() == 6 and axes[2].patches[place].get_width() == 58


def test_what_is_drawn_lies_on_the_page_and_legends_off_the_axes(
    store: Store, canvas: None, make_record: Maker
) -> None:
    for number in range(12):
        name = "m" * (3 * number) + str(number)
        write(store, make_record, name, 60 + number, run_key=f"{number:x}" * 16)
    subject = subject_of(store)
    pages: list[Page] = [draw_curves(subject), draw_scatter(subject), draw_cost(subject)]
    longest = max(zip(subject.cells, subject.labels, strict=True), key=lambda pair: len(pair[1]))
    pages += [draw_heat_map(subject, *longest), confusion.draw_confusion(subject, *longest)]
    for drawn in pages:
        figure = drawn.figure
        figure.set_dpi(DPI)
        figure.draw_without_rendering()
        whole = figure.bbox
        boxes = [axes.get_tightbbox() for axes in figure.axes]
        others = [text.get_window_extent() for text in figure.texts] + [
            item.get_window_extent() for item in figure.legends
        ]
        for box in [*boxes, *others]:
            assert box.x0 >= whole.x0 - 1 and box.x1 <= whole.x1 + 1, drawn.words.title
            assert box.y0 >= whole.y0 - 1 and box.y1 <= whole.y1 + 1, drawn.words.title
        for box in boxes:
            assert not any(box.overlaps(other) for other in others), drawn.words.title


def test_pictures_of_151_classes(tmp_path: Path, make_record: Maker, canvas: None) -> None:
    store = Store(tmp_path)
    write(store, make_record, "mib", 90, "overlapped-100-50")
    subject = subject_of(store)
    drawn = draw_heat_map(subject, subject.cells[0], "mib")
    named = [label.get_text() for axes in drawn.figure.axes[:3] for label in axes.get_yticklabels()]
    assert named == list(class_names("ade")[1:])  # row 0 is no class of ADE20K
    assert drawn.figure.get_size_inches()[0] == FULL
    with_zero = subject_of(store, "plop21")
    assert class_rows(with_zero.cells[0], with_zero).names == class_names("ade")
    matrix_page = confusion.draw_confusion(subject, subject.cells[0], "mib")
    labels = [label.get_text() for label in matrix_page.figure.axes[0].get_yticklabels()]
    assert 40 < len(labels) < 120  # thinned out, evenly
    assert labels == list(class_names("ade")[:: -(-151 // len(labels))])
    assert "does not score" in " ".join(matrix_page.words.caption)
    assert len(render(matrix_page, "svg")) < 1_000_000


def test_styles_differ() -> None:
    looks = list(styles(f"m{number}" for number in range(60)).values())
    assert len(set(looks)) == 60
    assert len({(look.colour, look.marker) for look in looks[:42]}) == 42


def test_texts_are_measured_wrapped_and_cut(canvas: None) -> None:
    long = "words of all kinds " * 5 + "w" * 80
    for line in wording.wrap(long, 1.5, 7):
        assert wording.text_width(line, 7) <= 1.5
    assert "".join(wording.wrap(long, 1.5, 7)).replace(" ", "") == long.replace(" ", "")
    cut = wording.shorten(long, 1.5, 7)
    assert cut.endswith("…") and wording.text_width(cut, 7) <= 1.5
    assert wording.shorten("short", 1.5, 7) == "short"
    names = {wording.file_part(text) for text in (*ODD, "", ".", "..", "a/b", "a b", "a_b", "x" * 300)}
    assert len(names) == len(ODD) + 7
    assert all(re.fullmatch(r"[A-Za-z0-9_+][A-Za-z0-9._+-]{0,70}", name) for name in names)


@pytest.mark.parametrize("module", [wording, scatter, confusion])
def test_examples_in_docstrings(module: Any) -> None:
    assert doctest.testmod(module, extraglobs={"np": np}).failed == 0
