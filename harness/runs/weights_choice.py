"""Which weights the encoder starts from: a file, a name, or none, said once and recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cispbench.harness.models.catalogue import model_spec
from cispbench.harness.models.weight_files import file_sha256, read_state
from cispbench.harness.models.weights_download import fetch
from cispbench.harness.models.weights_table import load_table
from cispbench.splits.errors import UsageError, WeightsError, nearest

if TYPE_CHECKING:
    from cispbench.harness.models.interface import IncrementalModel


@dataclass(frozen=True)
class WeightsChoice:
    """``label`` and ``sha256`` for the record; ``load`` puts the weights into a fresh model (None: random).

    ``normalise``: what the weights were trained with, None where that is not known.
    """

    label: str
    sha256: str | None = None
    normalise: Literal["imagenet", "half"] | None = None
    load: Callable[[IncrementalModel], None] | None = None


def check_weights(choice: str | None, model: str) -> str:
    """Return ``none``, a name of weights.yaml or a file that exists, before anything else is looked at.

    Raises UsageError for an unknown name, WeightsError for a missing file or a model without pre-training.
    """
    if choice is None:
        raise WeightsError("the recipe names no weights.", hint="Use --weights FILE, a name, or none (random start).")
    if choice == "none":
        return "none"
    if choice == "pretrained":
        usual = model_spec(model).weights
        if usual is None:
            raise WeightsError(f"there are no pre-trained weights for {model}.", hint="Use --weights none or a FILE.")
        return usual
    if choice in load_table() or Path(choice).is_file():
        return choice
    if Path(choice).name != choice or Path(choice).suffix in (".pth", ".pt", ".safetensors"):
        raise WeightsError(f"--weights {choice}: there is no such file.", hint="A random start is --weights none.")
    raise UsageError(
        f"--weights {choice}: neither a file nor the name of known weights.",
        hint=f"{nearest(choice, load_table())} A random start is --weights none.",
    )


def choose_weights(choice: str | None, model: str, folder: Path, *, named: bool) -> WeightsChoice:
    """Resolve ``none``, ``pretrained`` (the model's own), a name of weights.yaml or a file.

    Named weights are fetched into ``folder`` unless they are there; ``named`` says that the user asked for them by
    name, which is what weights without a published checksum need. Raises UsageError for a name or file
    that does not exist, WeightsError for what cannot be had or read.
    """
    choice = check_weights(choice, model)
    if choice == "none":
        return WeightsChoice("none")
    path, table = Path(choice), load_table()
    if choice in table:
        path = fetch(choice, folder, allow_unverified=named)
    sha256 = file_sha256(path)
    known = table.get(choice) or next((e for e in table.values() if e.digits and sha256.startswith(e.digits)), None)

    def load(fresh: IncrementalModel) -> None:
        fresh.load_encoder(read_state(path), str(path))

    label = choice if choice in table else path.name
    return WeightsChoice(label, sha256, known.normalise if known else None, load)
