"""The pre-trained weights that are known by name: the rows of ``weights.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from cispbench.splits.errors import WeightsError, nearest
from cispbench.splits.strict_yaml import load_yaml

TABLE = Path(__file__).with_name("weights.yaml")


@dataclass(frozen=True, kw_only=True)
class WeightsEntry:
    """One row of ``weights.yaml``; the comment at the file's head says what the fields mean."""

    name: str
    url: str
    architecture: str
    normalise: Literal["imagenet", "half"]
    source: str
    licence: str
    file: str = ""
    sha256: str | None = None
    sha256_prefix: str | None = None
    bytes: int | None = None

    @property
    def file_name(self) -> str:
        """The file's name on disk."""
        return self.file or self.url.rsplit("/", 1)[-1]

    @property
    def digits(self) -> str:
        """The known leading digits of the SHA-256, none if it is unknown."""
        return self.sha256 or self.sha256_prefix or ""


def load_table(path: Path | None = None) -> dict[str, WeightsEntry]:
    """Read the known weights by name. Raises WeightsError for fields that are unknown, missing or out of range."""
    path = TABLE if path is None else path
    known = {field.name for field in fields(WeightsEntry)} - {"name"}
    needed = {"url", "architecture", "normalise", "source", "licence"}
    table = {}
    for name, row in load_yaml(path).items():
        place = f"the weights {name!r} in {path}"
        for key in sorted(row.keys() - known):
            raise WeightsError(f"{place} have an unknown field {key!r}.", hint=nearest(key, known))
        if lacking := sorted(needed - row.keys()):
            raise WeightsError(f"{place} lack {', '.join(lacking)}.", hint="Add what is missing.")
        if not row.keys() & {"sha256", "sha256_prefix"}:
            raise WeightsError(f"{place} lack a checksum.", hint="Add sha256 (null if unknown) or sha256_prefix.")
        for key in ("sha256", "sha256_prefix"):
            if not isinstance(row.get(key), str | None):  # digits alone are a number in YAML
                raise WeightsError(f"{place} have {key}: {row[key]!r}, which is no text.", hint="Quote it.")
        if row["normalise"] not in ("imagenet", "half") or not row["url"].startswith(("http:", "https:", "file:")):
            hint = "The URL is one of http, https or file; normalise is imagenet or half."
            raise WeightsError(f"{place} have url: {row['url']}, normalise: {row['normalise']}.", hint=hint)
        table[name] = WeightsEntry(name=name, **row)
    return table
