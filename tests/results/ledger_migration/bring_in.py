"""Bring the first list of published numbers, and what was added to it, into the form of ``results/reported``.

The old list says in free text where a row stands and who ran it. The rules below turn that into facts: the document,
the place in it, who ran it. ``python bring_in.py FOLDER`` writes the files; a test holds the committed ones against
them: rows may be added, these stay.
"""

from __future__ import annotations

import gzip
import re
import sys
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from cispbench.results.documents import NOBODYS, documents, in_runners_document
from cispbench.results.duplicates import adds_nothing, before_it_was_run, same_number, shortened
from cispbench.results.ledger_row import NUMBERS
from cispbench.splits.settings import parse_setting

HERE = Path(__file__).parent
Row = dict[str, Any]

# Start of the old source -> document and place; {} is the rest of the source.
SOURCES = {
    "SELECT (arXiv 2608.30281), Table 12": ("select26", "Table 12"),
    "SELECT (arXiv 2608.30281), ": ("select26", "{}"),
    "'Parameter Release and Knowledge Reuse for CISS' (ICLR 2026 submission, OpenReview 9qbKOaF8YJ), ": (
        "prkr26",
        "{}",
    ),
    "ANDYZAQ/BARM:README.md": ("barm24", "README"),
    "An RL-based automatic sample-selection replay paper for CSS, ": ("sample-selection", "{}"),
    "CFSSeg (ACM MM 2025), ": ("cfsseg25", "{}"),
    "CFSSeg / SegACIL (arXiv 2412.10834), ": ("cfsseg25", "{}"),
    "Decomposed KD (DKD, NeurIPS 2022, arXiv 2210.05941), ": ("dkd22", "{}"),
    "HieuPhan33/REMINDER:images/results.png": ("reminder22", "Tables 1-2 (images/results.png of the repository)"),
    "QIU023/SATS_Continual_Semantic_Seg:images/": ("sats23", "VOC table (images/sats_voc.png of the repository)"),
    "QIU023/SATS_Continual_Semantic_Seg issue 2": ("sats-issue-2", "2023-03-13, 30 epochs"),
    "SegmentationBLWX/cssegmentation:": ("cssegmentation", "docs/modelzoo"),
    "arthurdouillard/CVPR2021_PLOP:": ("plop21", "Table 1 (images/plop_voc.png of the repository)"),
    "clovaai/SSUL:README.md": ("ssul21", "README"),
    "clovaai/SSUL at e08ee9c, README": ("ssul21", "README"),
    "cvlab-yonsei/DKD:README.md": ("dkd22", "README"),
    "fcdl94/MiB:ade-tab.png": ("mib20", "Table 2 (ade-tab.png of the repository)"),
    "fcdl94/MiB:voc-tab.png": ("mib20", "Table 1 (voc-tab.png of the repository)"),
    "jinpeng0528/STAR:README.md": ("star23", "README"),
    "zhangchbin/RCIL:README.md": ("rcil22", "README"),
    "zhangchbin/RCIL at b9aad58, ": ("rcil22", "{} (repository at b9aad58)"),
    "PapersWithCode page of MBS": ("mbs-page", "page"),
}
# Networks that the old list names otherwise than the papers do, by method.
MASK2FORMER = "ResNet-101 Mask2Former"
NETWORKS = {
    "SimCIS": MASK2FORMER, "ECLIPSE": MASK2FORMER, "CoMBO": MASK2FORMER, "CoMasTRe": MASK2FORMER,
    "CoinSeg": "Swin-B", "MiB+NeST": "Swin-B", "PLOP+NeST": "Swin-B",
}  # fmt: skip
PROBABLY = {"CoMBO": "Network: probably", "CoMasTRe": "Network: by its abstract, which calls it query-based"}
# Documents that mark what they ran again; a row without a mark is likely the method's own number.
MARKING = ("prkr26", "select26")
MARK = re.compile("dagger|re-averaged|NeST paper numbers")
OTHER_RUN = re.compile("released weights|re-run")  # own numbers that are not those of the paper's table
# SELECT excerpts rows from MBS and Incrementer, which compare with these: whose number it prints is not known of them.
MAYBE_EXCERPTED = ("MiB", "PLOP", "RCIL")
# Notes of rows whose document does not print their scenario, or prints another one.
ASSIGNED = re.compile("the table does not print disjoint/overlapped|README heads the column Disjoint, .*overlap")
HEAD = """\
# Published old / new / all mIoU (percent, as printed; null where not printed) on {dataset}, {scenario}.
#   document, place   where the numbers stand (documents.yaml)
#   run_by            the document whose authors ran it; null: not known. With run_by_inferred: likely, nobody says it
#   also              other places that print the same numbers; gives: what is taken from there, as the first place does
#                     not print it or with fewer digits; prints: what differs there in the last digit
#   assignment        how a number came to its setting, where its document does not print the two together
# A row's kind (own, quoted, re-run) follows from these facts, see documents.py.
"""
KEYS = (
    "dataset", "setting", "method", "backbone", *NUMBERS, "document", "place", "run_by", "run_by_inferred", "also",
    "note", "assignment",
)  # fmt: skip


def brought_in() -> dict[str, list[Row]]:
    """Return the rows in the new form by the name of their file, without duplicates."""
    with gzip.open(HERE / "reported.yaml.gz", "rt") as file:
        old = yaml.safe_load(file)
    old += yaml.safe_load((HERE / "additions.yaml").read_text())["rows"]
    rows = [_row(entry) for entry in old]
    _infer(rows)
    files: dict[str, list[Row]] = defaultdict(list)
    for row in _merged(rows):
        setting = parse_setting(row["setting"])
        files[f"{setting.dataset}-{setting.scenario}"].append(row)
    return dict(files)


def text_of(name: str, rows: list[Row]) -> str:
    """Return rows as the file of that name holds them: what it is, then one row a line."""
    dataset, scenario = name.split("-")
    head = HEAD.format(dataset={"voc": "PASCAL VOC 2012", "ade": "ADE20K"}[dataset], scenario=scenario)
    lines = [yaml.safe_dump(row, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True).strip()
             for row in rows]  # fmt: skip
    return head + "".join(f"- {line}\n" for line in lines)


def place_of(source: str) -> tuple[str, str]:
    """Return the document and the place that an old source names."""
    start = next(start for start in SOURCES if source.startswith(start))
    document, place = SOURCES[start]
    return document, place.format(source.removeprefix(start))


def network_of(entry: Row) -> str:
    """Return the network of an old row, corrected."""
    backbone = str(entry["backbone"])
    if entry["method"] in NETWORKS and backbone in ("ResNet-101 DeepLabV3", "Swin-B / transformer"):
        wrong = (NETWORKS[entry["method"]] == MASK2FORMER) == (backbone == "ResNet-101 DeepLabV3")
        backbone = NETWORKS[entry["method"]] if wrong else backbone
    return "ResNet-101 DeepLabV3+" if entry.get("note") == "DeepLabV3+" else backbone


def _row(entry: Row) -> Row:
    document, place = place_of(entry["source"])
    notes = [_note(entry, document), PROBABLY.get(entry["method"])]
    row = {name: entry[name] for name in ("dataset", "setting", "method", "backbone", *NUMBERS)}
    runners = _run_by(entry, document)
    row |= {"backbone": network_of(entry), "document": document, "place": place}
    row["run_by"] = documents()[runners].runners if runners else None
    if runners and not _told(entry, document):
        row["run_by_inferred"] = True
    row["note"] = ". ".join(filter(None, notes)) or None
    guess = ASSIGNED.search(str(entry.get("note") or ""))
    row["assignment"] = f"inferred ({guess[0]})" if guess else entry.get("assignment")
    if "ICLR review of SELECT" in entry["source"]:
        row["also"] = [{"document": "select-review", "place": "names the setting"}]
    return row


def _note(entry: Row, document: str) -> str | None:
    note = str(entry.get("note") or "").strip()
    dropped = ("DeepLabV3+", "Mask2Former-type", "listed as 'ViT' in that table; CoinSeg and NeST are Swin-B in SELECT")
    if note in dropped[:2] or (note == dropped[2] and entry["method"] == "PRKR-DKD"):
        note = ""
    return note or None


def _run_by(entry: Row, document: str) -> str | None:
    """Return who ran an old row, as far as the row says it."""
    method, kind, note = entry["method"], entry.get("kind"), str(entry.get("note") or "")
    if method in documents()[document].proposes:
        return document
    if document in ("mbs-page", "sats-issue-2"):
        return "mbs24" if document == "mbs-page" else document
    if "dagger in SELECT" in note and method == "Incrementer":
        return "incrementer23"
    if "NeST paper numbers" in note and "NeST" in method:
        return "nest24"
    # The old list calls these rows reported, but nothing in it says that the authors of the document ran them.
    unexplained = kind == "reported" and (
        note.startswith("ViT rows") or (document == "reminder22" and "re-implementation" not in note)
    )
    ran = kind in ("reported", "reproduced") and (not unexplained or (method == "Joint" and document != "prkr26"))
    return document if ran else None


def _told(entry: Row, document: str) -> bool:
    """Say whether it is known that those whom ``_run_by`` names ran an old row; else they likely did.

    SELECT's dagger names two papers, and MBS's may have run Incrementer again. That a table has a row of joint training
    does not say who trained it; in MiB's, the first with these settings, nobody else can have run any row.
    """
    note = str(entry.get("note") or "")
    if entry["method"] == "Incrementer":
        return False
    return entry["method"] not in NOBODYS or document == "mib20" or "re-implementation" in note


def _infer(rows: list[Row]) -> None:
    """Add who likely ran a row: those whose number of all classes it prints, or else whose method it is.

    The latter in a document that marks what others ran, for a row without a mark. Not where the old list tells against
    it: the method was run again by others on that network, or its paper prints numbers on other networks alone, or
    another row that may be the paper's prints another number on the setting.
    """
    known = [row for row in rows if row["run_by"]]
    again = {(row["method"], row["backbone"]) for row in known if row["run_by"] != _authors(row["method"])}
    own = [row for row in known if in_runners_document(row["document"], _authors(row["method"]))]
    for row in rows:
        if row["run_by"] or row["method"] in NOBODYS:
            continue
        authors = _authors(row["method"])
        printed = {other["run_by"] for other in known if _alike(other, row) and _same_total(row, other)}
        networks = {other["backbone"] for other in own if other["method"] == row["method"]}
        disputed = any(_alike(other, row) and other["run_by"] in (None, authors) and _other_number(row, other)
                       for other in rows)  # fmt: skip
        unmarked = row["document"] in MARKING and not MARK.search(row["note"] or "") and not disputed
        unmarked &= row["document"] != "select26" or row["method"] not in MAYBE_EXCERPTED
        if len(printed) == 1:
            row |= {"run_by": printed.pop(), "run_by_inferred": True}
        elif unmarked and networks <= {row["backbone"]} and (row["method"], row["backbone"]) not in again:
            row |= {"run_by": authors, "run_by_inferred": True}


def _other_number(row: Row, other: Row) -> bool:
    return not (OTHER_RUN.search(other["note"] or "") or _same_total(row, other) or same_number(row, other))


def _authors(method: str) -> str | None:
    return next((entry.runners for entry in documents().values() if method in entry.proposes), None)


def _same_total(row: Row, other: Row) -> bool:
    """Say whether two rows print one number of all classes, and nothing that differs."""
    both = [name for name in NUMBERS if row[name] is not None and other[name] is not None]
    alike = all(shortened(row[name], other[name]) or shortened(other[name], row[name]) for name in both)
    return "all" in both and alike and not before_it_was_run(row, other)


def _merged(rows: list[Row]) -> list[Row]:
    """Return the rows with every number once: the row of who is known to have run it, which names the others."""
    kept: list[Row] = []
    for row in sorted(rows, key=_trust):
        same = next((other for other in kept if _alike(other, row) and same_number(other, row)), None)
        if same is None:
            kept.append(row)
        else:
            _add(same, row)
    order = {id(row): place for place, row in enumerate(rows)}
    return [_written(row) for row in sorted(kept, key=lambda row: order[id(row)])]


def _alike(first: Row, second: Row) -> bool:
    return all(first[key] == second[key] for key in ("setting", "method", "backbone"))


def _trust(row: Row) -> tuple[bool, int]:
    """Sort the rows of who ran them first, then those of most numbers and digits."""
    digits = sum(len(str(row[name])) for name in NUMBERS if row[name] is not None)
    return not in_runners_document(row["document"], row["run_by"]), -digits


def _add(row: Row, again: Row) -> None:
    """Name a row's repetition in it; take from that what the row does not say."""
    source: Row = {"document": again["document"], "place": again["place"]}
    shown = {name: again[name] for name in NUMBERS if again[name] is not None}
    gives = {} if adds_nothing(again, row) else {name: value for name, value in shown.items() if value != row[name]}
    row |= gives
    source |= {"gives": list(gives)} if gives else {}
    differing = {name: value for name, value in shown.items() if not _rounded(value, row[name])}
    source |= {"prints": differing} if differing else {}
    source |= {"note": again["note"]} if again["note"] else {}
    place = {"document": row["document"], "place": row["place"]}
    # Both lists hold some rows: a row that repeats its own place says nothing.
    also = [entry for entry in (*row.get("also", []), source, *again.get("also", [])) if entry != place]
    if also:
        row["also"] = also
    if not again["assignment"]:  # that document prints the number with its setting
        row["assignment"] = None
    if row["run_by"] is None and again["run_by"]:
        row |= {"run_by": again["run_by"], "run_by_inferred": True}


def _rounded(number: float, of: float) -> bool:
    """Say whether a number is another, or that one rounded; what is cut (70.0 of 70.09) reads otherwise."""
    fewer, more = Decimal(repr(number)), Decimal(repr(of))
    return number == of or (more.as_tuple().exponent == -2 and abs(fewer - more) <= Decimal("0.05"))


def _written(row: Row) -> Row:
    """Return a row as its file holds it: who ran it by the id of their document."""
    ids = {entry.runners: name for name, entry in documents().items()}
    row = row | {"run_by": ids.get(row["run_by"])}
    return {key: row[key] for key in KEYS if row.get(key) is not None or key in (*NUMBERS, "run_by")}


if __name__ == "__main__":
    for name, written in brought_in().items():
        Path(sys.argv[1], f"{name}.yaml").write_text(text_of(name, written))
