"""Facts about published methods and networks besides their numbers, from YAML: venue, stored images, pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cispbench.results.protocols import load_protocol
from cispbench.splits.strict_fields import read_fields
from cispbench.splits.strict_yaml import load_yaml

_NONE = "none"
_USUAL_PRETRAINING = "ImageNet-1k"
_METHODS = Path(__file__).parent / "published_methods.yaml"
_NETWORKS = Path(__file__).parent / "published_networks.yaml"


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
    supervision_on: tuple[str, ...] = ()
    protocol: str | None = None

    @property
    def exemplars(self) -> bool | None:
        """Whether training images of earlier steps are stored; None where not known."""
        return None if self.memory is None else self.memory != _NONE

    def extra_supervision(self, dataset: str) -> bool | None:
        """Say whether it learns from more than the labels of a data set; None where not known."""
        if self.supervision is None:
            return None
        return self.supervision != _NONE and (not self.supervision_on or dataset in self.supervision_on)

    @property
    def selected_on_test(self) -> bool | None:
        """Whether the released code keeps the checkpoint that does best on the test images; None where not known."""
        return None if self.protocol is None else load_protocol(self.protocol).checkpoint == "best"


@dataclass(frozen=True)
class NetworkFacts:
    """What a published network has learnt from before the first step, and ``source``, where that is known from."""

    pretraining: str
    source: str

    @property
    def unusual(self) -> bool:
        """Whether it has learnt from more than ImageNet-1k."""
        return self.pretraining != _USUAL_PRETRAINING


UNKNOWN = MethodFacts(source="")


@cache
def method_facts() -> Mapping[str, MethodFacts]:
    """Return the facts by the ledger's name of the method. Raises StoreError naming an entry that breaks a rule."""
    return {name: read_fields(MethodFacts, entry, f"{_METHODS} {name}") for name, entry in load_yaml(_METHODS).items()}


@cache
def network_facts() -> Mapping[str, NetworkFacts]:
    """Return the facts by the ledger's name of the network. Raises StoreError naming an entry that breaks a rule."""
    entries = load_yaml(_NETWORKS)
    return {name: read_fields(NetworkFacts, entry, f"{_NETWORKS} {name}") for name, entry in entries.items()}
