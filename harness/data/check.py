"""Hold a user's data against the published counts and digests, and guess from these alone why they differ."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from cispbench.harness.data.compare import Comparison, ListCheck, compare
from cispbench.harness.data.index import Index, Presence, build_index, find_broken
from cispbench.harness.data.layout import layout_of
from cispbench.harness.data.source import SPLITS, list_data, same_images_note
from cispbench.harness.machine.progress import ProgressView, index_progress
from cispbench.splits.classes import class_names
from cispbench.splits.datasets import dataset as find_dataset
from cispbench.splits.errors import DataError
from cispbench.splits.selection import GoldenList, digest, golden_settings, select_images
from cispbench.splits.settings import Setting

_NAMED = 5  # images or classes that a sentence names
# The search for the one mask that explains a step hashes the step's list once a candidate: it ends after so many
# steps without a find, and leaves out lists that are longer.
_SEARCHES = 5
_LONGEST = 10_000


@dataclass(frozen=True)
class DataReport:
    """What ``check_data`` has found; ``index`` and ``comparison`` are None where broken files forbid both.

    ``causes``: why the data may differ from the published ones. ``notes``: what is worth knowing even where they agree.
    """

    dataset: str
    folder: Path
    masks_only: bool
    broken: tuple[DataError, ...]
    index: Index | None
    comparison: Comparison | None
    causes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether no file is broken and nothing differs."""
        return not self.broken and self.comparison is not None and self.comparison.agrees


def check_data(
    dataset: str, data_root: Path | None, cache: Path, view: ProgressView, *,
    settings: Sequence[Setting] = (), masks_only: bool = False, decode: bool = False,
) -> DataReport:  # fmt: skip
    """Compare the data set found below ``data_root`` with what is published; every listed file must exist.

    Every file is read again. One whose content is not what the index says counts as broken, and the index is made anew.
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
        index = build_index(dataset, pairs, cache, index_progress(view), masks_only, verify=True)
        broken += index.changed
    except DataError:
        if not broken:
            raise
        return DataReport(dataset, folder, masks_only, tuple(broken), None, None, ())
    comparison = compare(dataset, index.presence, chosen)
    files = [(image_id, pair) for part in pairs.values() for image_id, pair in part.items()]
    masks = {path.stem for folder in {pair.mask.parent for _, pair in files} for path in folder.glob("*.png")}
    causes = likely_causes(comparison, index.presence, masks - {image_id for image_id, _ in files})
    note = same_images_note(index)
    notes = () if note is None else (note,)
    return DataReport(dataset, folder, masks_only, tuple(broken), index, comparison, tuple(causes), notes)


def likely_causes(comparison: Comparison, presence: Presence, unlisted: Collection[str] = ()) -> list[str]:
    """Return sentences on why the data differ; none if they agree.

    ``unlisted``: ids of masks that are in the folder but on no list.
    """
    if comparison.agrees:
        return []
    if all(part.agrees for part in comparison.lists):
        return _mask_causes(comparison, presence["train"])
    causes = []
    shared = presence["train"].keys() & presence["val"].keys()
    if shared:
        causes.append(f"images on both lists, so that test images are trained on: {_name_some(sorted(shared))}.")
    named = {part.name: _list_cause(comparison.dataset, part, presence, unlisted) for part in comparison.lists}
    causes += [cause for cause in named.values() if cause]
    known = re.compile(layout_of(comparison.dataset).image_id)
    unknown = sorted(image for split in SPLITS for image in presence[split] if not known.fullmatch(image))
    title = find_dataset(comparison.dataset).title
    if unknown:
        causes.append(f"{len(unknown):,} ids are none of {title}, such as {unknown[0]!r}: these are other images.")
    shorter = [part for part in comparison.lists if part.found[0] < part.published[0]]
    if shorter and not causes:
        parts = " and ".join(f"{p.found[0]:,} of {p.published[0]:,} {p.name} images" for p in shorter)
        causes.append(f"this is a part of {title} ({parts}) and so cannot agree with what is published for the whole.")
    return causes or [f"the lists hold other images than those of {title}."]


def _list_cause(dataset: str, check: ListCheck, presence: Presence, unlisted: Collection[str]) -> str | None:
    ids, (count, sha256) = presence[check.name].keys(), check.published
    if check.agrees:
        return None
    layout = layout_of(dataset)
    known = layout.other_lists.get(len(ids)) if check.name == "train" else None
    if known:
        return f"the train list has {len(ids):,} images, as many as {known}; {layout.train_list} has {count:,}."
    if len(ids | set(unlisted)) == count and digest(ids | set(unlisted)) == sha256:
        return f"missing on the {check.name} list, though their masks are there: {_name_some(sorted(unlisted))}."
    others = set(unlisted).union(*(presence[split] for split in SPLITS if split != check.name))
    odd = find_odd_id(ids, check.published, ids if len(ids) > count else others)
    if odd is not None:
        return f"{odd} {'is too many' if odd in ids else 'is missing'} on the {check.name} list; all others agree."
    if len(ids) == count:
        return f"the {check.name} list has as many images as published, but not the same ones."
    return None if len(ids) < count else f"the {check.name} list has {len(ids) - count:,} images too many."


def find_odd_id(ids: Collection[str], published: GoldenList, candidates: Iterable[str]) -> str | None:
    """Return the candidate that, put on the list or taken off it, makes ``ids`` the published list; else None."""
    surplus = len(ids) - published[0]
    if abs(surplus) != 1:
        return None
    # The text that ``digest`` hashes, after a newline. A line is put in or cut out by its bytes: to sort and join the
    # ids for every candidate would take minutes.
    lines = [f"\n{image_id}".encode() for image_id in sorted(ids)]
    text = b"".join(lines)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    for candidate in candidates:
        line = f"\n{candidate}".encode()
        place = bisect_left(lines, line)
        start = starts[place]
        middle, end = (line, start) if surplus < 0 else (b"", start + len(line))
        if hashlib.sha256((text[:start] + middle + text[end:])[1:]).hexdigest() == published[1]:
            return candidate
    return None


def _mask_causes(comparison: Comparison, presence: Mapping[str, Set[int]]) -> list[str]:
    names = class_names(comparison.dataset)
    off = [
        (step, check.setting) for check in comparison.settings for step in check.steps
        if check.setting.scenario == "overlapped" and not step.agrees
    ]  # fmt: skip
    changed = _changed_masks(off, presence, names)
    if changed:
        return [f"the lists agree, so masks hold other classes than published: {_name_some(changed, '; ')}."]
    absent = sorted(set(range(1, len(names))) - set[int]().union(*presence.values()))
    if absent:
        listed = _name_some([f"{number} ({names[number]})" for number in absent])
        return [f"the lists agree, but classes are in no train mask: {listed}; are the numbers the data set's own?"]
    fewer = bool(off) and all(step.found[0] < step.published[0] for step, _ in off)
    kind = "fewer classes, as they do when resized: small objects vanish" if fewer else "other classes"
    return [f"the lists agree, so masks are not the published ones: they hold {kind}."]


def _changed_masks(
    off: Iterable[tuple[ListCheck, Setting]], presence: Mapping[str, Set[int]], names: Sequence[str]
) -> list[str]:
    """Name the masks that alone explain a step one image too long or too short, smallest lists first."""
    # By image and by whether it is too many: for each step that it explains, the classes that may be the wrong ones.
    found: dict[tuple[str, bool], list[Set[int]]] = {}
    misses = 0
    for check, setting in sorted(off, key=lambda pair: pair[0].published[0]):
        ids, new = select_images(presence, setting, int(check.name)), set(setting.steps[int(check.name)].classes)
        surplus = len(ids) > check.published[0]
        candidates = [image_id for image_id, too_many in found if too_many == surplus]
        if misses < _SEARCHES and len(ids) <= _LONGEST:
            candidates += ids if surplus else sorted(presence.keys() - set(ids))
        odd = find_odd_id(ids, check.published, candidates)
        if odd is None:
            misses += 1
        else:
            found.setdefault((odd, surplus), []).append(new & presence[odd] if surplus else new)
    sentences = []
    for (image_id, surplus), sets in found.items():
        # A step of few classes says more than one of many that holds them too.
        narrowest = {tuple(sorted(one)) for one in sets if not any(other < one for other in sets)}
        wanted = [" or ".join(names[number] for number in numbers) for numbers in sorted(narrowest)]
        sentences.append(f"that of {image_id} should {'not ' if surplus else ''}hold {' and '.join(wanted)}")
    return sentences


def _name_some(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return separator.join(names[:_NAMED]) + more
