"""Files that Pillow reads without a word and that are not what they should be: each is refused, and named."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cispbench.harness.data.decode import Pair, read_pair
from cispbench.harness.data.index import find_broken
from cispbench.splits.errors import DataError

HEIGHT, WIDTH = 6, 9
VALUES = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 20
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(bits: int = 8, colour: int = 0, interlace: int = 0, height: int = HEIGHT) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, height, bits, colour, 0, 0, interlace))


def rows(values: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in values)


END = chunk(b"IEND", b"")
PIXELS = chunk(b"IDAT", zlib.compress(rows(VALUES)))
WHOLE = SIGNATURE + header() + PIXELS + END
STREAM = zlib.compress(rows(VALUES))
DAMAGED = {
    "no end": SIGNATURE + header() + PIXELS,
    "half of the rows": SIGNATURE + header() + chunk(b"IDAT", zlib.compress(rows(VALUES[:3]))) + END,
    "no rows": SIGNATURE + header() + chunk(b"IDAT", zlib.compress(b"")) + END,
    "a row too many": SIGNATURE + header() + chunk(b"IDAT", zlib.compress(rows(VALUES) + bytes(10))) + END,
    "a stream cut short": SIGNATURE + header() + chunk(b"IDAT", STREAM[:-6]) + END,
    "a wrong checksum of the stream": SIGNATURE + header() + chunk(b"IDAT", STREAM[:-1] + b"?") + END,
    "two streams": SIGNATURE + header() + chunk(b"IDAT", STREAM + STREAM) + END,
    "a wrong checksum of a chunk": SIGNATURE + header() + PIXELS[:-1] + b"?" + END,
    "a second header": SIGNATURE + header() + header(height=3) + PIXELS + END,
    "no header": SIGNATURE + PIXELS + END,
    "a second picture": WHOLE + WHOLE,
    "bytes after the end": WHOLE + b"\0",
    "pixels in two places": SIGNATURE + header() + PIXELS + chunk(b"tEXt", b"a\0b") + PIXELS + END,
    "an animation": SIGNATURE + header() + chunk(b"acTL", struct.pack(">II", 1, 0)) + PIXELS + END,
    "a chunk longer than the file": SIGNATURE + header() + struct.pack(">I", 10**6) + PIXELS[4:] + END,
}


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    files = Pair(tmp_path / "a.jpg", tmp_path / "a.png")
    Image.new("RGB", (WIDTH, HEIGHT), (120, 120, 120)).save(files.image)
    files.mask.write_bytes(WHOLE)
    return files


def test_the_whole_file_is_read(pair: Pair) -> None:
    assert read_pair(pair, "voc")[1].tolist() == VALUES.tolist()
    pair.image.write_bytes(WHOLE)
    assert read_pair(pair, "voc")[0][2].tolist() == VALUES.tolist()


@pytest.mark.parametrize("which", ["mask", "image"])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_png_is_refused(pair: Pair, which: str, name: str) -> None:
    path: Path = getattr(pair, which)
    path.write_bytes(DAMAGED[name])
    with pytest.raises(DataError) as caught:
        read_pair(pair, "voc")
    assert f"the {which} {path} is truncated or unreadable" in str(caught.value) and caught.value.hint


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3), (6, 9), (17, 33)])
def test_sound_palettes_of_any_depth_and_interlaced(
    pair: Pair, bits: int, interlace: int, size: tuple[int, int]
) -> None:
    """Pillow writes no interlaced files, so the passes are laid out here."""
    height, width = size
    values = np.arange(height * width, dtype=np.uint8).reshape(size) % min(20, 2**bits)
    passes = [values] if not interlace else [
        values[top::down, left::across]
        for left, top, across, down in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4),
                                        (1, 0, 2, 2), (0, 1, 1, 2))
    ]  # fmt: skip
    data = b"".join(b"\0" + pack(row, bits) for part in passes if part.size for row in part)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 3, 0, 0, interlace))
    palette = chunk(b"PLTE", bytes(range(3 * 2**bits % 256)) if bits < 8 else bytes(768))
    pair.mask.write_bytes(SIGNATURE + head + palette + chunk(b"IDAT", zlib.compress(data)) + END)
    Image.new("RGB", (width, height)).save(pair.image)
    assert read_pair(pair, "voc")[1].tolist() == values.tolist()
    pair.mask.write_bytes(SIGNATURE + head + palette + chunk(b"IDAT", zlib.compress(data[:-1])) + END)
    with pytest.raises(DataError, match="is truncated or unreadable"):
        read_pair(pair, "voc")


def pack(row: np.ndarray, bits: int) -> bytes:
    text = "".join(f"{value:0{bits}b}" for value in row.tolist())
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))


def save(mode: str, values: object, **options: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        image = Image.new(mode, (WIDTH, HEIGHT), values)  # type: ignore[arg-type]
        if mode == "P":
            image.putpalette([channel for value in range(256) for channel in (value, 255 - value, 7)])
        image.save(path, **options)  # type: ignore[arg-type]

    return write


REFUSED = {
    "16-bit grey": (save("I;16", 40_000, format="PNG"), "has 16 bits a channel"),
    "RGBA": (save("RGBA", (1, 2, 3, 254), format="PNG"), "has transparent pixels"),
    "LA": (save("LA", (9, 0), format="PNG"), "has transparent pixels"),
    "a transparent colour": (save("P", 3, format="PNG", transparency=3), "has transparent pixels"),
    "a transparent grey": (save("L", 3, format="PNG", transparency=3), "has transparent pixels"),
    "TIFF": (save("F", 0.5, format="TIFF"), "neither a JPEG nor a PNG"),
    "BMP": (save("RGB", (1, 2, 3), format="BMP"), "neither a JPEG nor a PNG"),
    "GIF": (save("L", 3, format="GIF"), "neither a JPEG nor a PNG"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_image_that_has_two_readings_is_refused(pair: Pair, name: str) -> None:
    write, message = REFUSED[name]
    write(pair.image)
    with pytest.raises(DataError, match=message) as caught:
        read_pair(pair, "voc")
    assert str(pair.image) in str(caught.value) and caught.value.hint


def test_16_bit_colours_are_refused(pair: Pair) -> None:
    data = b"".join(b"\0" + bytes(6 * WIDTH) for _ in range(HEIGHT))
    pair.image.write_bytes(SIGNATURE + header(16, 2) + chunk(b"IDAT", zlib.compress(data)) + END)
    with pytest.raises(DataError, match="has 16 bits a channel"):
        read_pair(pair, "voc")


@pytest.mark.parametrize(
    ("write", "colour"),
    [
        (save("L", 77, format="PNG"), [77, 77, 77]),
        (save("1", 1, format="PNG"), [255, 255, 255]),
        (save("RGBA", (1, 2, 3, 255), format="PNG"), [1, 2, 3]),
        (save("LA", (9, 255), format="PNG"), [9, 9, 9]),
        (save("P", 3, format="PNG", transparency=200), [3, 252, 7]),
        (save("RGB", (1, 2, 3), format="PNG", transparency=(9, 9, 9)), [1, 2, 3]),
    ],
    ids=["L", "1", "RGBA", "LA", "P", "RGB"],
)
def test_an_image_without_a_transparent_pixel_is_read(
    pair: Pair, write: Callable[[Path], None], colour: list[int]
) -> None:
    write(pair.image)
    assert read_pair(pair, "voc")[0][:, 2, 3].tolist() == colour


@pytest.mark.parametrize("suffix", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(10))
def test_an_image_that_is_to_be_turned_is_refused(pair: Pair, suffix: str, orientation: int) -> None:
    image, exif = Image.new("RGB", (WIDTH, HEIGHT)), Image.Exif()
    exif[0x0112] = orientation
    image.save(pair.image, format=suffix, exif=exif)
    if orientation in range(2, 9):
        with pytest.raises(DataError, match=rf"a\.jpg is to be turned .* orientation {orientation}"):
            read_pair(pair, "voc")
    else:
        read_pair(pair, "voc")


JPEGS: dict[str, tuple[str, dict[str, object]]] = {
    "colour": ("RGB", {}),
    "every pixel's colour": ("RGB", {"quality": 95, "subsampling": 0}),
    "grey": ("L", {}),
    "CMYK": ("CMYK", {}),
    "restarts": ("RGB", {"restart_marker_blocks": 3}),
    "low quality": ("RGB", {"quality": 5}),
    "own tables": ("RGB", {"optimize": True}),
    "a comment and Exif data": ("RGB", {"comment": b"\xff\xda\xff\xd9", "exif": b"Exif\0\0\xff\xd9"}),
    "progressive": ("RGB", {"progressive": True}),
}


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_was_cut_and_closed_again_is_found_by_decoding(pair: Pair, name: str) -> None:
    mode, options = JPEGS[name]
    pixels = np.random.default_rng(0).integers(0, 255, (61, 83, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(pair.image, format="JPEG", **options)  # type: ignore[arg-type]
    pairs = {"train": {"a": pair}}
    content = pair.image.read_bytes()
    for tail in (b"", b"bytes after the end \xff\xd9", content):
        pair.image.write_bytes(content + tail)
        assert find_broken("voc", pairs) == []
    if name == "progressive":
        return
    data = content.index(b"\xff\xda", content.index(b"\xff\xc4"))  # the pixels, after the tables
    for left in (0.2, 0.5, 0.9):
        pair.image.write_bytes(content[: data + int(left * (len(content) - data))] + b"\xff\xd9")
        with Image.open(pair.image) as image:
            image.load()  # Pillow says nothing
        assert [str(pair.image) in error.message for error in find_broken("voc", pairs)] == [True]


def test_broken_exif_data_turn_nothing(pair: Pair) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(pair.image, exif=b"Exif\0\0no exif at all")
    image, mask = read_pair(pair, "voc")
    assert image.shape[1:] == mask.shape == (HEIGHT, WIDTH)
