"""A user's data held against the published counts and digests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cispbench.harness.data.causes import likely_causes
from cispbench.harness.data.compare import Comparison, compare
from cispbench.harness.data.index import Index, Pairs, build_index, find_broken
from cispbench.harness.data.source import list_data
from cispbench.harness.machine.progress import ProgressView, index_progress
from cispbench.splits.errors import DataError
from cispbench.splits.selection import golden_settings
from cispbench.splits.settings import Setting


@dataclass(frozen=True)
class DataReport:
    """What ``check_data`` has found; ``index`` and ``comparison`` are None where broken files forbid both."""

    dataset: str
    folder: Path
    masks_only: bool
    broken: tuple[DataError, ...]
    index: Index | None
    comparison: Comparison | None
    causes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether no file is broken and nothing differs."""
        return not self.broken and self.comparison is not None and self.comparison.agrees


def check_data(
    dataset: str, data_root: Path | None, cache: Path, view: ProgressView, *,
    settings: Sequence[Setting] = (), masks_only: bool = False, decode: bool = False,
) -> DataReport:  # fmt: skip
    """Compare the data set found below ``data_root`` with what is published; every listed file must exist.

    ``settings``: those to compare, all with published figures if empty. ``decode``: read every image and mask to its
    end, which reports broken ones instead of raising. ``masks_only``: without images. Raises DataError as
    ``list_data`` and ``build_index`` do, SettingError for a setting without figures.
    """
    chosen = settings or golden_settings(dataset)
    folder, pairs = list_data(dataset, data_root, masks_only)
    broken: list[DataError] = []
    if decode:
        broken = find_broken(dataset, pairs, lambda done, total: view.counting("decoding", done, total), masks_only)
    try:
        index = build_index(dataset, pairs, cache, index_progress(view), masks_only)
    except DataError:
        if not broken:
            raise
        return DataReport(dataset, folder, masks_only, tuple(broken), None, None, ())
    comparison = compare(dataset, index.presence, chosen)
    causes = likely_causes(comparison, index.presence, _unlisted(pairs))
    return DataReport(dataset, folder, masks_only, tuple(broken), index, comparison, tuple(causes))


def _unlisted(pairs: Pairs) -> set[str]:
    folders = {pair.mask.parent for part in pairs.values() for pair in part.values()}
    listed = {image_id for part in pairs.values() for image_id in part}
    return {path.stem for folder in folders for path in folder.glob("*.png")} - listed
