"""Read files of weights without running pickled code, and load them strictly into a network."""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cispbench.harness.models.weights_checks import check_tensors, check_torch_file, numpy_stand_ins
from cispbench.splits.errors import WeightsError
from cispbench.splits.plain_files import open_plain
from cispbench.splits.printable import shown

if TYPE_CHECKING:
    from torch import Tensor, nn

# What torch.load was seen to raise for damaged files.
FILE_ERRORS = (
    *(OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, EOFError),
    *(ArithmeticError, pickle.PickleError, MemoryError, struct.error, zipfile.BadZipFile, NotImplementedError),
)
# (blocks of the third stage, whether they are bottlenecks) -> depth: enough to tell the ResNets from each other.
RESNETS = {(2, False): "18", (6, False): "34", (6, True): "50", (23, True): "101", (36, True): "152"}


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits. Raises WeightsError if it cannot be read."""
    try:
        with open_plain(path) as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error}.") from error


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a file of named tensors on the CPU: .safetensors, or .pth / .pt with tensors alone, never other objects.

    The dict may lie one level down as ``state_dict``, ``model`` or ``model_state``; ``module.`` before a name is
    dropped. Raises WeightsError for whatever else the file is or holds, and as ``check_tensors`` does.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise WeightsError(f"{path} is no file of weights by its name.", hint="Known: .safetensors, .pth, .pt.")
    try:
        with warnings.catch_warnings(), open_plain(path) as file:
            # Before they raise an error, torch and pickletools warn of the same in a damaged file.
            warnings.simplefilter("ignore")
            content: Any = load_file(path) if path.suffix == ".safetensors" else _load_tensors(file)
    except (*FILE_ERRORS, SafetensorError) as error:
        hint = "Fetch it again if it is damaged; save it again as a plain dict of tensors if it holds more than that."
        raise WeightsError(f"cannot read the weights in {path}: {_reason(error)}.", hint=hint) from error
    for key in ("state_dict", "model", "model_state"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping) and content[key]:
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds no named tensors but {type(content).__name__}.", hint="Save a state_dict.")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(f"{path} holds {type(value).__name__} as {shown(key)}.", hint="Save the tensors alone.")
    check_tensors(content, path)
    state = {key.removeprefix("module."): value for key, value in content.items()}
    if len(state) < len(content):
        twice = next(key for key in content if f"module.{key}" in content)
        raise WeightsError(f"{path} holds {twice!r} twice, with and without `module.` before it.", hint="Keep one.")
    return state


def _load_tensors(file: BinaryIO) -> Any:
    """Read a pickle of tensors, plain values and numpy scalars (such as a best score) without running code from it."""
    import torch

    check_torch_file(file)
    with torch.serialization.safe_globals(numpy_stand_ins()):
        return torch.load(file, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """Return why torch could not read a file, without its advice to load the pickle with ``weights_only=False``."""
    text = str(error)
    if refused := re.search(r"unsupported global:? (?:GLOBAL )?([\w.]+)", text, re.IGNORECASE):
        return f"it holds {refused[1]}, which is no tensor and is not run"
    if isinstance(error, (pickle.PickleError, LookupError, EOFError, struct.error, zipfile.BadZipFile)):
        return "it is no file of tensors, or it is damaged"
    return text.strip().partition("\n")[0].partition(". ")[0] or type(error).__name__


def load_backbone(module: nn.Module, state: Mapping[str, Tensor], *, place: str, ignore: tuple[str, ...] = ()) -> None:
    """Copy ``state`` into ``module``, all of it or nothing; ``place`` says in errors where the state came from.

    Names that begin with one of ``ignore`` ("fc.", "classifier.", "head.") may be left over, and what no output depends
    on may be missing: BatchNorm's counters (``num_batches_tracked``, unused at a fixed momentum), as in files of before
    PyTorch 0.4.1, and states of random generators (``_extra_state``), which no released checkpoint holds.
    Raises WeightsError with the first names that are missing, left over or of another shape.
    """
    expected: dict[str, Tensor] = module.state_dict()
    problems = [
        f"{key}: expected {_shape(expected, key)}, found {_shape(state, key)}"
        for key in [*expected, *(key for key in state if key not in expected and not key.startswith(ignore))]
        if _shape(expected, key) != _shape(state, key)
        and not (key.endswith(("num_batches_tracked", "_extra_state")) and key not in state)
    ]
    if problems:
        wanted, found = likely_architecture(expected) or type(module).__name__, likely_architecture(state)
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(
            f"{place} does not fit {wanted}: {'; '.join(problems[:3])}{more}.",
            hint=f"The weights look like {found or 'no network known here'}; name a model and weights that fit.",
        )
    # Not strict, because counters may be missing; everything else has been compared above, before the first copy.
    module.load_state_dict({key: state[key] for key in expected if key in state}, strict=False)


def likely_architecture(state: Mapping[str, Tensor]) -> str | None:
    """Guess a network from its tensors' names ("ResNet-101", "MobileNetV2", "ViT, 12 blocks of width 768")."""
    if blocks := _count(state, r"(?:^|\.)layer3\.(\d+)\.conv1\.weight$"):
        depth = RESNETS.get((blocks, any(key.endswith("layer3.0.conv3.weight") for key in state)))
        return f"ResNet-{depth}" if depth else "a ResNet of another depth"
    if blocks := _count(state, r"(?:^|\.)blocks\.(\d+)\.attn\.qkv\.weight$"):
        width = next(value.shape[-1] for key, value in state.items() if key.endswith("attn.qkv.weight"))
        return f"ViT, {blocks} blocks of width {width}"
    return "MobileNetV2" if _count(state, r"(?:^|\.)features\.(\d+)\.conv\.0\.0\.weight$") == 17 else None


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for key in state if (found := re.search(pattern, key))})


def _shape(state: Mapping[str, Tensor], key: str) -> str:
    return str(tuple(state[key].shape)) if key in state else "nothing"
