"""PASCAL VOC 2012 with the SBD masks: its folders, and the lists that pair images with masks."""

from __future__ import annotations

from pathlib import Path

from cispbench.harness.data.decode import Pair
from cispbench.harness.data.layout import Layout
from cispbench.splits.errors import DataError

MARKERS = ("JPEGImages", "SegmentationClassAug")
HOW_TO_GET = (
    "Unpack VOCtrainval_11-May-2012.tar there; add to its VOC2012 folder SegmentationClassAug"
    " (SegmentationClassAug.zip: the masks of SBD's benchmark.tgz as PNGs) and ImageSets/Segmentation/train_aug.txt"
    " (10,582 ids)."
)
_LISTS = {"train": "train_aug.txt", "val": "val.txt"}
_LIST_FOLDERS = ("ImageSets/Segmentation", "list")


def list_pairs(folder: Path, split: str, masks_only: bool = False) -> dict[str, Pair]:
    """Return the split's images with their masks by id, read from its list; the files are not looked at.

    A list holds an id a line, or, as in MiB's ``list`` folder, ``path_to_image path_to_mask`` below ``folder``.
    ``masks_only``: the folder of the images may be missing. Raises DataError for a folder or list that is missing, an
    empty or malformed list, an id that occurs twice.
    """
    for part in MARKERS[masks_only:]:
        if not (folder / part).is_dir():
            raise DataError(f"{folder} holds no folder {part}.", hint=HOW_TO_GET)
    path = _find_list(folder, split)
    try:
        # Not splitlines(): it also ends a line at characters that a damaged list may hold by chance.
        lines = path.read_text(encoding="utf-8").replace("\r\n", "\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list {path} cannot be read ({error}).", hint="Get the list again.") from error
    pairs: dict[str, Pair] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        image_id, pair = _parse(folder, path, number, line)
        if image_id in pairs:
            raise DataError(f"{path}, line {number}: the id {image_id!r} occurs twice.", hint="Take one of them out.")
        pairs[image_id] = pair
    if not pairs:
        raise DataError(f"the list {path} is empty.", hint="Get the list again: it holds an image's id a line.")
    return pairs


def _find_list(folder: Path, split: str) -> Path:
    places = [folder / place / _LISTS[split] for place in _LIST_FOLDERS]
    for path in places:
        if path.is_file():
            return path
    raise DataError(f"no list of {split} images: looked for {' and '.join(map(str, places))}.", hint=HOW_TO_GET)


def _parse(folder: Path, path: Path, number: int, line: str) -> tuple[str, Pair]:
    words = line.split()
    if not line.replace("\t", " ").isprintable():
        raise DataError(
            f"{path}, line {number}: {line!r} holds a character that cannot be printed.", hint="Get the list again."
        )
    if len(words) == 1 and "/" not in words[0]:
        name = words[0]
        return name, Pair(folder / "JPEGImages" / f"{name}.jpg", folder / "SegmentationClassAug" / f"{name}.png")
    if len(words) == 2:
        # MiB's paths begin with a slash and are meant below the data set's folder all the same.
        image, mask = (folder / word.lstrip("/") for word in words)
        return image.stem, Pair(image, mask)
    raise DataError(
        f"{path}, line {number}: {line.strip()!r} is neither an id nor 'path_to_image path_to_mask'.",
        hint="Correct the line or get the list again.",
    )


LAYOUT = Layout(
    folders=("VOCdevkit/VOC2012", "VOC2012", "."),
    markers=MARKERS,
    list_pairs=list_pairs,
    how_to_get=HOW_TO_GET,
    image_id=r"\d{4}_\d{6}",
    train_list="train_aug",
    other_lists={1464: "VOC 2012's own train list", 2913: "VOC 2012's own trainval list", 8498: "SBD's own train list"},
)
