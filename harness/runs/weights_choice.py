"""Which pre-trained weights the encoder starts from: a file, a name of ``weights.yaml``, or none (a random start)."""

from __future__ import annotations

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
    """``label`` and ``sha256`` are for the record; ``path`` is the file, None for a random start.

    ``normalise``: how images were normalised in their training, None where that is not known. ``fetched``: False for a
    name whose file a plan has not fetched.
    """

    label: str
    sha256: str | None = None
    normalise: Literal["imagenet", "half"] | None = None
    path: Path | None = None
    fetched: bool = True

    @property
    def random(self) -> bool:
        """Whether the encoder starts from random weights."""
        return self.path is None and self.fetched

    def load(self, fresh: IncrementalModel) -> None:
        """Put the weights into a model that nothing is trained of. Raises WeightsError."""
        if self.path is not None:
            fresh.load_encoder(read_state(self.path), str(self.path))


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
        if usual not in load_table():
            raise WeightsError(
                f"the model {model} names the weights {usual!r}, which nobody knows.",
                hint=f"{nearest(usual, load_table())} Use --weights none or a FILE.",
            )
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
    label = choice if choice in table else path.name
    return WeightsChoice(label, sha256, known.normalise if known else None, path)
