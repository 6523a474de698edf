"""Check a PNG's bytes from the first to the last, since Pillow reads what it can.

Pillow neither compares the checksums of the pixels' chunks nor looks beyond the last row. Where the pixels' data end
early, it leaves the other rows 0, which is a legal class.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> values a pixel
# The seven passes of an interlaced picture (Adam7): first column and row, then the steps to the next ones.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}
_PIECE = 1 << 20


def check_png(content: bytes) -> None:
    """Raise ValueError, which says where, unless the bytes are one whole PNG picture and nothing else."""
    pixels: list[memoryview] = []
    header, last = b"", b""
    for kind, data in _chunks(content):
        if (kind == b"IHDR") == bool(header):
            raise ValueError("it has a second header" if header else "it does not begin with a header")
        if kind == b"IHDR":
            header = bytes(data)
        elif kind == b"IDAT":
            if pixels and last != kind:
                raise ValueError("other chunks stand among those of its pixels")
            pixels.append(data)
        elif kind in _ANIMATION:
            raise ValueError("it is an animation")
        last = kind
    _check_length(b"".join(pixels), _raw_bytes(header))


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield kind and data of each chunk."""
    view, at = memoryview(content), len(SIGNATURE)
    if not content.startswith(SIGNATURE):
        raise ValueError("it does not begin as a PNG")
    while at < len(content):
        end = at + 8 + int.from_bytes(view[at : at + 4], "big")
        if end + 4 > len(content):
            raise ValueError(f"it ends within the chunk that begins at byte {at}")
        kind, checksum = bytes(view[at + 4 : at + 8]), int.from_bytes(view[end : end + 4], "big")
        if zlib.crc32(view[at + 4 : end]) != checksum:
            raise ValueError(f"the checksum of the chunk that begins at byte {at} does not match")
        yield kind, view[at + 8 : end]
        at = end + 4
        if kind == b"IEND":
            if at < len(content):
                raise ValueError(f"{len(content) - at:,} bytes follow its end")
            return
    raise ValueError("it has no end (IEND)")


def _raw_bytes(header: bytes) -> int:
    """Return how many bytes the pixels' data hold when decompressed: each row and a byte for its filter."""
    if len(header) != 13 or header[9] not in _CHANNELS or header[12] > 1:
        raise ValueError("its header is not a PNG's")
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    bits = header[8] * _CHANNELS[header[9]]
    total = 0
    for left, top, across, down in _PASSES if header[12] else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _check_length(data: bytes, expected: int) -> None:
    stream, found = zlib.decompressobj(), 0
    # In pieces: a small file can decompress to gigabytes.
    while data and not stream.eof and found <= expected:
        found += len(stream.decompress(data, _PIECE))
        data = stream.unconsumed_tail
    if not stream.eof or stream.unused_data or found != expected:
        raise ValueError(f"its pixels' data are {found:,} bytes{' or more' * (not stream.eof)}, not {expected:,}")
