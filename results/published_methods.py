"""Facts about published methods besides their numbers: venue, stored images, extra supervision, from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cispbench.results.protocols import load_protocol
from cispbench.splits.strict_fields import read_fields
from cispbench.splits.strict_yaml import load_yaml

NO_MEMORY = "none"
_PATH = Path(__file__).parent / "published_methods.yaml"


@dataclass(frozen=True)
class MethodFacts:
    """A method's facts, None where not known; ``published_methods.yaml`` says what each means.

    ``source``: where the facts come from; "" where nothing is known.
    """

    source: str
    venue: str | None = None
    year: int | None = None
    memory: str | None = None
    supervision: str | None = None
    pretraining: str | None = None
    protocol: str | None = None

    @property
    def exemplars(self) -> bool | None:
        """Whether training images of earlier steps are stored; None where not known."""
        return None if self.memory is None else self.memory != NO_MEMORY

    @property
    def selected_on_test(self) -> bool:
        """Whether the released code keeps the checkpoint that does best on the test images."""
        return self.protocol is not None and load_protocol(self.protocol).checkpoint == "best"


UNKNOWN = MethodFacts(source="")


@cache
def method_facts() -> Mapping[str, MethodFacts]:
    """Return the facts by the ledger's name of the method. Raises StoreError naming an entry that breaks a rule."""
    return {name: read_fields(MethodFacts, entry, f"{_PATH} {name}") for name, entry in load_yaml(_PATH).items()}
