"""ADE20K (SceneParsing): where its parts lie and which image belongs to which mask."""

from __future__ import annotations

from pathlib import Path

from cispbench.harness.data.decode import Pair
from cispbench.splits.errors import DataError

FOLDERS: tuple[str, ...] = ("ADEChallengeData2016", ".")
MARKERS: tuple[str, ...] = ("images/training", "annotations/training")
HOW_TO_GET = "Unpack ADEChallengeData2016.zip there (its images/ and annotations/ with training/ and validation/)."
_FOLDERS = {"train": "training", "val": "validation"}


def list_pairs(folder: Path, split: str, masks_only: bool = False) -> dict[str, Pair]:
    """Return the split's images with their masks by id, the stem of the file's name; the files are not read.

    An image without a mask, or a mask without an image, is listed with both paths: whoever reads it finds out.
    ``masks_only``: the folder of the images is not looked at. Raises DataError for a folder that is missing or empty.
    """
    images, masks = folder / "images" / _FOLDERS[split], folder / "annotations" / _FOLDERS[split]
    stems: set[str] = set()
    for part, suffix in ((images, ".jpg"), (masks, ".png"))[masks_only:]:
        if not part.is_dir():
            raise DataError(f"the folder {part} does not exist.", hint=HOW_TO_GET)
        found = {path.stem for path in part.iterdir() if path.suffix == suffix}
        if not found:
            raise DataError(f"the folder {part} holds no {suffix} file.", hint=HOW_TO_GET)
        stems |= found
    return {stem: Pair(images / f"{stem}.jpg", masks / f"{stem}.png") for stem in sorted(stems)}
