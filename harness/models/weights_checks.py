"""Check files of weights from anywhere: before torch reads one, what it would do; afterwards, what tensors it gave.

``torch.load(weights_only=True)`` runs no code of a file, but it trusts it otherwise. It unpacks compressed parts of any
size, compares no checksum, builds every kind of tensor, and calls some functions that can take any amount of memory.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cispbench.splits.errors import WeightsError
from cispbench.splits.printable import cut, shown

if TYPE_CHECKING:
    from torch import Tensor

MAX_PICKLE = 16 * 1024**2  # bytes; that of a network of a thousand tensors takes 0.1 MB
LEGACY_PICKLES = 4  # of a file before PyTorch 1.6: a magic number, a version, sizes of the system, and the content
# What plain tensors and values need. Among what is not here and torch would call: bytearray(10**12).
_NEEDED = re.compile(
    r"torch\._utils _rebuild_(?:tensor_v2|parameter)|torch (?:\w+Storage|Size|b?float\d+|u?int\d+|bool)"
    r"|collections (?:OrderedDict|Counter)|(?:builtins|__builtin__) set"
    r"|numpy dtype|numpy\._?core\.multiarray scalar|_codecs encode"
)
# By ``_codecs encode`` a file can lengthen a text again and again; numpy's scalars need latin1 alone.
_LONGER = re.compile(r"(?:base_?64|bz2|hex|quopri|quoted_?printable|uu|zip|zlib)(?:_codec)?")
_NAME = re.compile(r"[!-~]{1,300}")  # visible ASCII
_COUNTS = ("uint8", "int8", "int16", "int32", "int64", "bool")
_NUMBERS = ("float16", "bfloat16", "float32", "float64")


def check_torch_file(file: BinaryIO) -> None:
    """Check a .pth file before torch reads it; the position is 0 afterwards.

    Raises ValueError or OSError with the reason, or what ``zipfile`` raises, for a part that is compressed, damaged or
    there twice, and for a pickle that asks for more than plain tensors and values. The message names no file.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            _check_archive(archive)
    else:
        file.seek(0)
        start = io.BytesIO(file.read(MAX_PICKLE))
        for _ in range(LEGACY_PICKLES):
            _check_pickle(start)
    file.seek(0)


def _check_archive(archive: zipfile.ZipFile) -> None:
    parts = archive.infolist()
    # torch and zipfile may take different ones of two parts with the same name, or find other parts behind a comment.
    if len({part.filename for part in parts}) < len(parts) or archive.comment:
        raise ValueError("it is an archive with two meanings")
    for part in parts:
        if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
            raise ValueError(f"its part {shown(part.filename)} is compressed, as torch.save never does")
    pickles = [part for part in parts if part.filename.endswith("data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
        raise ValueError("it is no archive of torch.save")
    if (damaged := archive.testzip()) is not None:
        raise ValueError(f"its part {shown(damaged)} is damaged: its checksum does not match")
    _check_pickle(io.BytesIO(archive.read(pickles[0])))


def _check_pickle(stream: BinaryIO) -> None:
    """Read over one pickle, without building what it describes."""
    texts: set[str] = set()
    called: set[str] = set()
    for opcode, value, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            called.add(str(value))
        elif isinstance(value, str):
            texts.add(re.sub(r"[^a-z0-9]+", "_", value.lower()))
    for name in sorted(called):
        if not _NEEDED.fullmatch(name):
            what = "a kind of tensor that is not read" if name.startswith("torch") else "no tensor and is not run"
            raise ValueError(f"it holds {cut(name.replace(' ', '.'))}, which is {what}")
    if "_codecs encode" in called and any(map(_LONGER.fullmatch, texts)):
        raise ValueError("it holds a text in a code, which is no tensor and is not run")


def numpy_stand_ins() -> list[Any]:
    """Return what a pickle of numpy scalars may call, for ``torch.serialization.safe_globals``."""
    import numpy as np

    make: Any = np.float64(0).__reduce__()[0]
    kinds = {name: np.dtype(name) for name in ("f2", "f4", "f8", "i4", "i8", "b1")}

    # numpy's own functions would make a scalar of any size out of a short text such as "V2000000000".
    def dtype(name: str, *flags: object) -> Any:
        return kinds[name]

    def scalar(kind: Any, content: bytes) -> Any:
        return make(kind, content)

    # numpy 2 moved the module; files keep the name that it had when they were written.
    names = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
    return [(dtype, "numpy.dtype"), *{type(kind) for kind in kinds.values()}, *names]


def check_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise WeightsError unless each tensor is dense, of finite numbers, and has a place of its own in the file.

    That is what training leaves behind; anything else could take more memory than its file, or be read as something
    else than was meant.
    """
    import torch

    counts, numbers = ({getattr(torch, name) for name in names} for names in (_COUNTS, _NUMBERS))
    taken: dict[int, int] = {}
    for name, value in state.items():
        if not _NAME.fullmatch(name):
            raise WeightsError(
                f"{path} holds a tensor called {shown(name)}, which is no name of a parameter.",
                hint="Names have at most 300 visible ASCII characters.",
            )
        place = f"{path}: {name}"
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            what = "quantised" if value.is_quantized else f"{value.layout}, on the device {value.device}"
            raise WeightsError(f"{place} is no dense tensor with values ({what}).", hint="Save plain dense tensors.")
        if value.dtype not in counts | numbers:
            raise WeightsError(f"{place} holds {value.dtype}.", hint=f"Save it as one of {', '.join(_NUMBERS)}.")
        if _span(value) < value.numel():
            raise WeightsError(
                f"{place} has {value.numel():,} values in {_span(value):,} places (it was expanded).",
                hint="Save a copy of its own by .contiguous().",
            )
        storage = value.untyped_storage()
        taken[storage.data_ptr()] = taken.get(storage.data_ptr(), 0) + value.nbytes
        if taken[storage.data_ptr()] > storage.nbytes():
            raise WeightsError(
                f"{place} overlaps another tensor in memory.", hint="Save a copy of each tensor by .clone()."
            )
        if value.dtype in numbers and not bool(value.float().isfinite().all()):
            raise WeightsError(f"{place} holds values that are not finite.", hint="Its training had failed.")


def _span(value: Tensor) -> int:
    """Return how many places in memory lie between a tensor's first and last value, both included."""
    if value.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
