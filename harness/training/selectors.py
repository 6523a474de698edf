"""Selectors: the words by which a recipe names parameters and modules of a network.

``rates``, ``decay`` and ``frozen_norms`` take, from the most specific to the least:

- a role: that of a group (``Group.role``), such as "unknown"; "classes", which all other groups have, is none;
- "base": groups of classes of step 0;
- "old", "new", "future": groups of classes of earlier steps, of the step that is trained, and of later ones. A group
  without a class is new in the step that adds it, old afterwards, and never base;
- a section: "encoder", "decoder", and whatever else the network's ``sections()`` names;
- "classifier": all that is in no section.

Of several selectors of a parameter that a recipe gives a value, the most specific one wins. ``frozen_dropout`` takes
sections and "classifier". A word that can name nothing of the network is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from cispbench.harness.method import StepContext
from cispbench.harness.models.groups import CLASSES
from cispbench.harness.recipes.fields import ALL, OptimRecipe
from cispbench.splits.errors import RecipeError, nearest

AGES = ("base", "old", "new", "future")
CLASSIFIER = "classifier"
_DROP_PATHS = ("DropPath", "StochasticDepth")  # by name: their packages may not be installed


def selectors_of_parameters(context: StepContext) -> dict[int, tuple[str, ...]]:
    """Return the selectors of every parameter of ``context.model`` by its ``id``, the most specific first."""
    of_groups = {id(parameter): words for words, group in _groups(context) for parameter in group}
    return {
        id(parameter): (*of_groups.get(id(parameter), ()), section)
        for section, _, parameter in context.model.named_sections()
    }


def check_selectors(context: StepContext, phase: OptimRecipe) -> None:
    """Raise RecipeError for a selector that can name nothing of the network, with what there is."""
    sections = (*context.model.sections(), CLASSIFIER)
    roles = dict.fromkeys(group.role for group in context.model.class_groups() if group.role != CLASSES)
    words = (*roles, *AGES, *sections)
    known = {
        "rates": words, "decay": words, "frozen_norms": (*words, ALL), "frozen_dropout": (*sections, ALL),
    }  # fmt: skip
    for field, choices in known.items():
        for word in getattr(phase, field):
            if word not in choices:
                raise RecipeError(
                    f"{field} of step {context.step} names {word!r}, which is nothing of this network.",
                    hint=f"{nearest(word, choices)} See docs/recipes.md.",
                )


def factor(factors: Mapping[str, float], selectors: Collection[str]) -> float:
    """Return the factor of a parameter: that of its most specific selector with one, else 1."""
    return next((factors[word] for word in selectors if word in factors), 1.0)


def frozen_modules(context: StepContext, phase: OptimRecipe) -> Iterator[tuple[str, nn.Module]]:
    """Yield the batch norms of ``frozen_norms`` and the dropouts of ``frozen_dropout``, with their names."""
    model, selectors = context.model, selectors_of_parameters(context)
    sections = {id(module): name for name, section in model.sections().items() for module in section.modules()}
    for name, module in model.named_modules():
        # A norm without parameters of its own belongs to its section, as a dropout does.
        words = {sections.get(id(module), CLASSIFIER)}
        if isinstance(module, _BatchNorm):
            frozen = phase.frozen_norms
            words.update(*(selectors[id(parameter)] for parameter in module.parameters()))
        elif isinstance(module, _DropoutNd) or type(module).__name__ in _DROP_PATHS:
            frozen = phase.frozen_dropout
        else:
            continue
        if ALL in frozen or words & set(frozen):
            yield name, module


def _groups(context: StepContext) -> Iterator[tuple[tuple[str, ...], list[nn.Parameter]]]:
    """Yield the selectors of each group of the network with its parameters."""
    base = context.setting.num_classes(0)
    before = 0 if context.previous is None else len(context.previous.class_groups())
    first = 0  # the group's first class, by its number in the order of learning
    for place, group in enumerate(context.model.class_groups()):
        role = () if group.role == CLASSES else (group.role,)
        classes = group.bias.numel() - group.extra
        if classes == 0:
            age: tuple[str, ...] = ("old",) if place < before else ("new",)
        elif first < context.old_classes:
            age = ("old",)
        else:
            age = ("new",) if first < context.num_classes else ("future",)
        yield (*role, *(("base",) if classes and first < base else ()), *age), group.parameters()
        first += classes
