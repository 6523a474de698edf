"""What the selectors of a recipe (``harness/recipes/selectors.py``) name in the network of a step."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from cispbench.harness.method import StepContext
from cispbench.harness.models.catalogue import ALL
from cispbench.harness.models.groups import CLASSES, CLASSIFIER
from cispbench.harness.recipes.fields import OptimRecipe

_DROP_PATHS = ("DropPath", "StochasticDepth")  # by name: their packages may not be installed


def selectors_of_parameters(context: StepContext) -> dict[int, tuple[str, ...]]:
    """Return the selectors of every parameter of ``context.model`` by its ``id``, the most specific first."""
    of_groups = {id(parameter): words for words, group in _groups(context) for parameter in group}
    return {
        id(parameter): (*of_groups.get(id(parameter), ()), section)
        for section, _, parameter in context.model.named_sections()
    }


def factor(factors: Mapping[str, float], selectors: Collection[str]) -> float:
    """Return the factor of a parameter: that of its most specific selector with one, else 1."""
    return next((factors[word] for word in selectors if word in factors), 1.0)


def frozen_modules(context: StepContext, recipe: OptimRecipe) -> Iterator[tuple[str, nn.Module]]:
    """Yield the batch norms of ``frozen_norms`` and the dropouts of ``frozen_dropout``, with their names."""
    model, selectors = context.model, selectors_of_parameters(context)
    sections = {id(module): name for name, section in model.sections().items() for module in section.modules()}
    for name, module in model.named_modules():
        # A norm without parameters of its own belongs to its section, as a dropout does.
        words = {sections.get(id(module), CLASSIFIER)}
        if isinstance(module, _BatchNorm):
            frozen = recipe.frozen_norms
            words.update(*(selectors[id(parameter)] for parameter in module.parameters()))
        elif isinstance(module, _DropoutNd) or type(module).__name__ in _DROP_PATHS:
            frozen = recipe.frozen_dropout
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
