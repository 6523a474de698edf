"""Find JPEGs that were cut short and closed again: their missing pixels are grey, and no decoder says so."""

from __future__ import annotations

import re

_SCAN, _END = b"\xff\xda", b"\xff\xd9"
# What may follow 0xff among the pixels' data: a 0, a restart, another 0xff. All else begins the next part of the file.
_NEXT_PART = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Decoders look some bytes ahead. With more bytes than these, a cut of as many would pass.
_AHEAD = bytes(8)


def without_end(content: bytes) -> bytes:
    """Return a JPEG with zeros in the place of its end marker, so that decoding fails where pixels are missing.

    A decoder that meets the end marker too early makes the other pixels up; one that runs out of data fails. A file of
    several scans (progressive) comes back as it is: there a decoder cannot know how many belong to it.
    """
    at = 2
    # From one segment of the header to the next, up to the pixels.
    while content[at : at + 2] != _SCAN:
        if at + 4 > len(content) or content[at] != 0xFF:
            return content
        # Any number of bytes 0xff may stand before a segment.
        at += 1 if content[at + 1] == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    end = _NEXT_PART.search(content, at + 2 + int.from_bytes(content[at + 2 : at + 4], "big"))
    return content[: end.start()] + _AHEAD if end and end.group() == _END else content
