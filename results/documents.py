"""The documents that published numbers stand in, from ``documents.yaml``; and what a number is by who ran it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from cispbench.splits.errors import StoreError, nearest
from cispbench.splits.strict_fields import read_fields
from cispbench.splits.strict_yaml import load_yaml

OWN, QUOTED, RERUN, NOT_KNOWN = "own", "quoted", "re-run", "not known"
# The one definition of each kind; everything that explains a kind prints these words.
KINDS = {
    OWN: "run by the authors of the method, and known from their own paper, repository or a page about it",
    QUOTED: "run by the authors of the method, and repeated by another document, from which it is known",
    RERUN: "run by anybody else than the authors of the method",
    NOT_KNOWN: "printed by a document that does not say who ran it",
}
NOBODYS = ("FT", "Joint")  # trained by everybody, proposed by nobody: the own numbers of whoever runs them
_PATH = Path(__file__).parent / "documents.yaml"
_FORMS = {
    "arxiv": (r"\d{4}\.\d{5}", "https://arxiv.org/abs/{}"),
    "openreview": (r"\w{10}", "https://openreview.net/forum?id={}"),
    "repository": (r"[\w.-]+/[\w.-]+", "https://github.com/{}"),
}


@dataclass(frozen=True)
class Document:
    """A paper with its repository, a code base, or a page; ``documents.yaml`` says what each field means."""

    short: str
    title: str | None = None
    authors: str | None = None
    venue: str | None = None
    year: int | None = None
    status: Literal["withdrawn"] | None = None
    proposes: tuple[str, ...] = ()
    about: str | None = None
    says: str | None = None
    people: str | None = None
    arxiv: str | None = None
    openreview: str | None = None
    repository: str | None = None
    urls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value!r}, not of the form {form}"
            for name, (form, _) in _FORMS.items()
            if (value := getattr(self, name)) is not None and not re.fullmatch(form, value)
        ]
        wrong += [f"{url!r} is no link" for url in self.urls if not re.fullmatch(r"https://[\w.-]+/\S+", url)]
        if wrong:
            raise StoreError(f"{'; '.join(wrong)}.")

    @property
    def links(self) -> tuple[str, ...]:
        """The addresses of the document and its code, the paper first."""
        made = {name: form.format(getattr(self, name)) for name, (_, form) in _FORMS.items() if getattr(self, name)}
        code = (made.pop("repository"),) if "repository" in made else ()
        return (*made.values(), *self.urls, *code)

    @property
    def runners(self) -> str:
        """Who ran the numbers that are said to be run by the document."""
        return self.people or f"{self.short} authors"

    @property
    def cited(self) -> str:
        """The short name, with the paper's number on arXiv or OpenReview and its status, if it has any."""
        numbers = {"arXiv": self.arxiv, "OpenReview": self.openreview}
        more = ", ".join(filter(None, [*(f"{of} {number}" for of, number in numbers.items() if number), self.status]))
        return f"{self.short} ({more})" if more else self.short


@cache
def documents() -> MappingProxyType[str, Document]:
    """Return every document by its id. Raises StoreError naming an entry that breaks a rule."""
    found = {name: read_fields(Document, entry, f"{_PATH} {name}") for name, entry in load_yaml(_PATH).items()}
    for name, entry in found.items():
        if entry.about is not None and entry.about not in found:
            raise StoreError(f"{_PATH} {name}: about is {entry.about!r}. {nearest(entry.about, found)}")
    return MappingProxyType(found)


def document_links(document: str) -> tuple[str, ...]:
    """Return the addresses of a document, given by its id; of the one that it is about, where it has none itself."""
    entry = documents()[document]
    return entry.links or (documents()[entry.about].links if entry.about else ())


def in_runners_document(document: str, run_by: str | None) -> bool:
    """Say whether a document, given by its id, is of the people who ran a number (a row's ``run_by``), or about it."""
    entry = documents()[document]
    return run_by in [entry.runners, *([documents()[entry.about].runners] if entry.about else [])]


def kind_of(method: str, document: str, run_by: str | None) -> str:
    """Return the kind of a number of a method, by the ids of the document that it stands in and of who ran it.

    >>> kind_of("MBS", "select26", "select26"), kind_of("MBS", "mbs-page", "mbs24"), kind_of("MBS", "select26", None)
    ('re-run', 'own', 'not known')
    """
    if run_by is None:
        return NOT_KNOWN
    known = documents()
    if method not in (*NOBODYS, *known[run_by].proposes):
        return RERUN
    return OWN if in_runners_document(document, known[run_by].runners) else QUOTED
