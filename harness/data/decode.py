"""Images and masks out of files, by Pillow: what breaks a rule is a DataError with the file, the rule and the cure."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cispbench.harness.data.png import SIGNATURE, check_png
from cispbench.harness.machine.lazy import torch
from cispbench.splits.datasets import dataset as find_dataset
from cispbench.splits.errors import DataError
from cispbench.splits.plain_files import NotPlainError, read_plain
from cispbench.splits.settings import VOID

if TYPE_CHECKING:
    from torch import Tensor

# Each is raised by Pillow for some kind of damage.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error, Image.DecompressionBombError)
_JPEG = b"\xff\xd8\xff"
_ORIENTATION, _TURNED = 0x0112, range(2, 9)  # the Exif tag; its values that turn or mirror
COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
_AGAIN = "Get the file from the data set's archive again."


@dataclass(frozen=True)
class Pair:
    """The two files of one image."""

    image: Path
    mask: Path


@dataclass(frozen=True)
class Digests:
    """The SHA-256 sums of the two files of one image; ``image`` is None where only masks are looked at."""

    image: str | None
    mask: str


def sha256(content: bytes) -> str:
    """Return the SHA-256 sum of a file's content, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read_pair(pair: Pair, dataset: str, digests: Digests | None = None) -> tuple[Tensor, Tensor]:
    """Read an image, uint8 (3, H, W), and its mask, uint8 (H, W) in the data set's numbers.

    ``digests``: those of the files when they were checked by ``check_image`` and ``decode_mask``, which is then not
    done again. Raises DataError for a file that breaks a rule or has changed since.
    """
    content = read_regular_file(pair.image, "image")
    mask_content = read_regular_file(pair.mask, "mask")
    if digests is None:
        check_image(pair.image, content)
        mask, _ = decode_mask(pair.mask, mask_content, dataset)
    else:
        check_digest("image", pair.image, content, digests.image)
        check_digest("mask", pair.mask, mask_content, digests.mask)
        mask = _open_mask(pair.mask, mask_content)
    image = decode_image(pair.image, content)
    check_sizes(pair, (image.shape[1], image.shape[2]), (mask.height, mask.width))
    return image, torch.from_numpy(np.array(mask))


def read_regular_file(path: Path, what: str) -> bytes:
    """Read a whole file; ``what`` names it in errors. Raises DataError, also for a device, pipe, socket or folder."""
    with as_data_error(what, path):
        return read_plain(path)


def check_image(path: Path, content: bytes) -> tuple[int, int]:
    """Return the (height, width) of an image by its header. Raises DataError for a file that breaks a rule.

    A PNG is checked to its end, a JPEG is not decoded. An image that is to be turned (the Exif tag Orientation) is
    refused: nothing says whether its mask is stored turned or not.
    """
    with as_data_error("image", path):
        image = _open_image(path, content)
        if content.startswith(SIGNATURE):
            check_png(content)
            _to_rgb(path, image)
        orientation = _orientation(image)
    if orientation in _TURNED:
        raise DataError(
            f"the image {path} is to be turned when shown (Exif orientation {orientation}); its mask may be or not.",
            hint="Store image and mask as they are to be seen, and remove the tag.",
        )
    return image.height, image.width


def decode_image(path: Path, content: bytes) -> Tensor:
    """Decode an image's bytes as RGB, uint8 (3, H, W), as they are stored.

    JPEG or PNG of at most 8 bits a channel, grey, RGB, palette or CMYK (converted without a colour profile).
    Raises DataError for anything else, and for an image with a transparent pixel.
    """
    with as_data_error("image", path):
        # A copy: Pillow's own buffer is read-only, which torch cannot express.
        pixels = np.array(_to_rgb(path, _open_image(path, content)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_mask(path: Path, content: bytes, dataset: str) -> tuple[Image.Image, frozenset[int]]:
    """Decode a mask's bytes; return it with the class numbers it holds, neither 0 nor 255 among them.

    Palette or grey PNG of at most 8 bits a pixel (grey: exactly 8, since decoders stretch fewer to 0..255).
    Raises DataError for anything else, a value that is no class of the data set, and a file with any damage.
    """
    found = _decode_mask(path, content, dataset)
    with as_data_error("mask", path):
        check_png(content)
    return found


def check_sizes(pair: Pair, image: tuple[int, int], mask: tuple[int, int]) -> None:
    """Raise DataError unless image and mask have the same (height, width)."""
    if image != mask:
        raise DataError(
            f"the mask {pair.mask} has {mask[0]} x {mask[1]} pixels, its image {pair.image} {image[0]} x {image[1]}"
            " (height x width); both must be the same.",
            hint="Resize neither or both, or get them from the data set's archive again.",
        )


def missing(what: str, path: Path) -> DataError:
    """Return the error for an image, a mask or a map that does not exist."""
    hint = "Unpack the data set again, or take it off its list." if what != "map" else "Every image needs its map."
    return DataError(f"the {what} {path} does not exist.", hint=hint)


def _decode_mask(path: Path, content: bytes, dataset: str) -> tuple[Image.Image, frozenset[int]]:
    _check_header(path, content)
    mask = _open_mask(path, content)
    # Pillow counts in C: a sixth of what numpy.unique costs.
    values = frozenset(value for value, count in enumerate(mask.histogram()) if count)
    home = find_dataset(dataset)
    illegal = values - set(range(home.classes + 1)) - {VOID}
    if illegal:
        raise _no_class(path, mask, sorted(illegal), home.title, home.classes)
    return mask, values - {0, VOID}


def _open_mask(path: Path, content: bytes) -> Image.Image:
    with as_data_error("mask", path):
        mask = Image.open(io.BytesIO(content), formats=("PNG",))
        mask.load()
    return mask


def _open_image(path: Path, content: bytes) -> Image.Image:
    """Read the header of an image. Raises DataError for a kind of file or pixel that is never read."""
    is_png = content.startswith(SIGNATURE)
    if content and not is_png and not content.startswith(_JPEG):
        raise DataError(f"the image {path} is neither a JPEG nor a PNG.", hint="Store it as one of them.")
    # By these two alone: Pillow reads damaged files of some other formats without a word.
    image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
    if is_png and content[24] > 8:
        raise DataError(
            f"the image {path} has {content[24]} bits a channel; images have 8.",
            hint="Convert it, and choose which of its values become black and white.",
        )
    return image


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if "transparency" in image.info or "A" in image.mode:
        image = image.convert("RGBA")
        # What lies below a transparent pixel is never seen, and may be anything.
        if image.getchannel("A").getextrema()[0] != 255:
            raise DataError(f"the image {path} has transparent pixels.", hint="Store it without transparency, as RGB.")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    # Cameras write broken Exif data, which turn nothing.
    except (*_BROKEN, TypeError):
        return 1


def check_digest(what: str, path: Path, content: bytes, digest: str | None) -> None:
    """Raise DataError unless a file's content has the SHA-256 sum that the index knows."""
    if sha256(content) != digest:
        again = "start again" if what == "map" else "run `cispbench data check`, then start again"
        raise DataError(
            f"the {what} {path} has changed since the data were indexed.",
            hint=f"Put the old file back. To use the new one, {again}.",
        )


@contextmanager
def as_data_error(what: str, path: Path) -> Iterator[None]:
    """Turn what Pillow and the system raise into a DataError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise missing(what, path) from error
    except NotPlainError as error:
        raise DataError(f"the {what} {path} {str(error).removeprefix('it ')}.", hint=_AGAIN) from error
    except _BROKEN as error:
        raise _unreadable(what, path, error) from error


def _unreadable(what: str, path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"the {what} {path} is truncated or unreadable ({reason}).", hint=_AGAIN)


def _check_header(path: Path, content: bytes) -> None:
    if not content.startswith(SIGNATURE):
        raise DataError(f"the mask {path} is no PNG.", hint="Masks are palette or 8-bit grey PNGs of class numbers.")
    if content[12:16] != b"IHDR" or len(content) < 33:
        raise _unreadable("mask", path, EOFError("it does not begin with a header"))
    bits, colour = content[24], content[25]
    if colour != 3 and (colour, bits) != (0, 8):
        raise DataError(
            f"the mask {path} is a {bits}-bit {COLOUR_TYPES.get(colour, 'unknown')} PNG; "
            "masks are palette or 8-bit grey PNGs of class numbers.",
            hint="Turn colours into class numbers by the data set's palette, or get the original mask.",
        )


def _no_class(path: Path, mask: Image.Image, illegal: list[int], title: str, classes: int) -> DataError:
    row, column = np.argwhere(np.asarray(mask) == illegal[0])[0].tolist()
    others = f" (and {', '.join(map(str, illegal[1:]))})" if len(illegal) > 1 else ""
    return DataError(
        f"the mask {path} holds the value {illegal[0]}, first at row {row}, column {column}{others}, "
        f"which is no class of {title} (legal: 0 background, 1 to {classes}, {VOID} void).",
        hint="Masks hold the data set's own class numbers: get the original mask.",
    )
