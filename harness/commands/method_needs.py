"""What a method needs besides the images and labels of each step, and where it was published.

Nothing of this is written down for the list: what a method needs is asked of the method, as its recipes make it, and
where it was published stands in ``results/published_methods.yaml`` under the published name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields

from cispbench.harness.method import Method
from cispbench.harness.models.catalogue import MODELS
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import make_method
from cispbench.harness.runs.method_code import is_built_in
from cispbench.harness.wrapper import Wrapper
from cispbench.results.ledger import find_published_name
from cispbench.results.published_methods import UNKNOWN, method_facts
from cispbench.splits.datasets import SHORT_NAMES, dataset
from cispbench.splits.settings import Setting, parse_setting


def published_in(cls: type[Method]) -> str | None:
    """Return where a built-in method was published, such as ``CVPR 2020``; None for any other.

    A method of another package may share nothing but its name with a published one.
    """
    if not is_built_in(cls):
        return None
    return method_facts().get(find_published_name(cls.name) or "", UNKNOWN).venue


def needs_of(cls: type[Method]) -> list[str]:
    """Return what a method needs, in few words each, under the papers' recipes of the built-in data sets.

    Raises what the method's options, recipes or declarations raise.
    """
    kept: dict[str, int] = {}
    maps: dict[str, list[str]] = {}
    # What a wrapper needs beyond this is its base's: only a run says which that is.
    words = [_another_method(cls)] if issubclass(cls, Wrapper) else []
    if not words:
        made = {name: method_for(cls, name) for name in SHORT_NAMES}
        for name, (method, setting) in made.items():
            if (memory := method.memory()) is not None:
                kept[name] = memory.size
            for companion in method.companions(setting):
                maps.setdefault(companion.name, []).append(name)
        words += [f"memory ({_by_data_set(kept, str)} images)"] if kept else []
        words += [f"{companion} maps{_only_on(names)}" for companion, names in maps.items()]
        words += _families(made.values())
    words += [f"a network that offers {', '.join(sorted(cls.needs))}"] if cls.needs else []
    if not cls.devices:
        return [*words, "one device"]
    return words if cls.micro_batches else [*words, "whole batches"]


def _another_method(cls: type[Method]) -> str:
    """Return what a wrapper needs, with the base that its options name where nothing else does."""
    usual = next(entry.default for entry in fields(cls.Options) if entry.name == "base")
    return "another method" if usual is MISSING else f"another method ({usual}, if no other is named)"


def method_for(cls: type[Method], name: str) -> tuple[Method, Setting]:
    """Return the method as the papers' recipe makes it for a setting of the data set ``name``, and that setting."""
    setting = parse_setting(dataset(name).paper_table[0])
    recipe = load_recipe(cls, setting, "paper")
    return make_method(cls, recipe.method), setting


def _families(made: Iterable[tuple[Method, Setting]]) -> list[str]:
    """Return the families of networks that serve the method, empty if all do."""
    families: dict[str, bool] = {}
    for spec in MODELS.load_all():
        served = any(method.unsupported(setting, spec.name) is None for method, setting in made)
        families[spec.family] = families.get(spec.family, False) or served
    fit = [family for family, served in families.items() if served]
    return [] if len(fit) == len(families) else [f"a {' or '.join(sorted(fit))} network"]


def _by_data_set(found: Mapping[str, int], text: Callable[[int], str]) -> str:
    """Return ``100``, or ``100 on voc, 300 on ade`` where the data sets differ."""
    if len(found) == len(SHORT_NAMES) and len(set(found.values())) == 1:
        return text(next(iter(found.values())))
    return ", ".join(f"{text(value)} on {name}" for name, value in found.items())


def _only_on(names: Iterable[str]) -> str:
    listed = list(names)
    return "" if len(listed) == len(SHORT_NAMES) else f" on {' and '.join(listed)}"
