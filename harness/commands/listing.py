"""What ``cispbench list`` prints."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

from cispbench.harness.models.catalogue import MODELS
from cispbench.reports.tables.terminal import table_text
from cispbench.results.protocols import load_protocol, protocol_names
from cispbench.splits.errors import CispbenchError, UsageError, nearest
from cispbench.splits.plugins import BrokenPluginWarning
from cispbench.splits.selection import golden_steps
from cispbench.splits.settings import Setting, list_settings

Columns = dict[str, Any]  # a row of a list: its values by column


def listing(what: str, as_json: bool, terminal: bool = False) -> str:
    """Return the list of ``what`` as a table for a terminal, as Markdown or as JSON. Raises UsageError."""
    lists = {
        "methods": _methods, "settings": _settings, "models": _models, "profiles": _profiles,
        "protocols": _protocols, "weights": _weights, "quirks": _quirks,
    }  # fmt: skip
    if what not in lists:
        raise UsageError(f"there is no list of {what!r}.", hint=nearest(what, lists))
    rows = lists[what]()
    if as_json:
        return json.dumps(rows)
    return table_text(list(rows[0]), [list(map(_shown, row.values())) for row in rows], terminal=terminal)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _methods() -> list[Columns]:
    from cispbench.harness.registry import METHODS

    return [
        {"method": cls.name, "version": cls.version, "what": (cls.__doc__ or "").strip().partition("\n")[0]}
        for cls in METHODS.load_all()
    ]


def _settings() -> list[Columns]:
    return [_setting_row(setting) for setting in list_settings()]


def _setting_row(setting: Setting) -> Columns:
    golden = golden_steps(setting)
    return {
        "setting": setting.name,
        "dataset": setting.dataset,
        "steps": len(setting.steps),
        "classes per step": _class_counts([len(step.classes) for step in setting.steps]),
        "training images per step": None if golden is None else [images for images, _ in golden],
    }


def _class_counts(numbers: Sequence[int]) -> str:
    """Return ``15 + 5 x 1``, or all numbers where those after the first differ."""
    first, rest = numbers[0], numbers[1:]
    return f"{first} + {len(rest)} x {rest[0]}" if len(set(rest)) == 1 else " + ".join(map(str, numbers)) or str(first)


def _models() -> list[Columns]:
    return [{"model": s.name, "family": s.family, "encoder": s.encoder, "pre-trained weights": s.weights,
             "offers": ", ".join(sorted(s.offers)) or None} for s in MODELS.load_all()]  # fmt: skip


def _profiles() -> list[Columns]:
    return [
        {"profile": "paper", "data": "the full data set", "what": "the published recipe: GPUs and hours"},
        {
            "profile": "mini",
            "data": "any folder in the data set's layout",
            "what": "a small backbone, minutes on a CPU",
        },
        {"profile": "quick", "data": "built-in synthetic scenes", "what": "a tiny model, minutes on a CPU"},
    ]


def _protocols() -> list[Columns]:
    from dataclasses import asdict

    return [asdict(load_protocol(name)) for name in protocol_names()]


def _weights() -> list[Columns]:
    from cispbench.harness.models.weights_table import load_table

    return [
        {"weights": name, "architecture": entry.architecture, "source": entry.source, "licence": entry.licence}
        for name, entry in load_table().items()
    ]


def _quirks() -> list[Columns]:
    from cispbench.harness.recipes.quirks import as_word, read_quirks
    from cispbench.harness.registry import METHODS

    rows: dict[str, Columns] = {}
    for cls in METHODS.load_all():
        try:
            quirks = read_quirks(cls)
        except CispbenchError as error:
            warnings.warn(str(error), BrokenPluginWarning, stacklevel=2)
            continue
        for quirk in quirks:
            title = quirk.name if quirk.method is None else f"{quirk.method}.{quirk.name}"
            rows[title] = {
                "quirk": title,
                "option": quirk.option,
                "released": as_word(quirk.released),
                "otherwise": as_word(quirk.otherwise),
                "only for": quirk.where or None,
                "what": quirk.what,
                "source": quirk.source,
            }
    return sorted(rows.values(), key=lambda row: "." in row["quirk"])
