"""Selectors: the words by which a recipe names parameters and modules of a network.

``rates``, ``decay`` and ``frozen_norms`` take, from the most specific to the least:

- a role: that of a group (``Group.role``), such as "unknown"; "classes", which all other groups have, is none;
- "base": groups of classes of step 0;
- "old", "new", "future": groups of classes of earlier steps, of the step that is trained, and of later ones. A group
  without a class is new in the step that adds it, old afterwards, and never base;
- a section of the network (``ModelSpec.sections``), such as "encoder" and "decoder";
- "classifier": all that is in no section.

Of several selectors of a parameter that a recipe gives a value, the most specific one wins. ``frozen_dropout`` takes
sections and "classifier". ``frozen_norms`` and ``frozen_dropout`` take "all", too.
"""

from __future__ import annotations

from collections.abc import Iterable

from cispbench.harness.models.catalogue import ALL
from cispbench.harness.models.groups import CLASSES, CLASSIFIER
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.splits.errors import MethodError, RecipeError, nearest

AGES = ("base", "old", "new", "future")


def check_selectors(recipe: OptimRecipe, step: int, roles: Iterable[str], sections: Iterable[str]) -> None:
    """Raise RecipeError for a selector that can name nothing of a network with these roles and sections.

    Raises MethodError for a role whose name is that of another selector.
    """
    parts, named = (*sections, CLASSIFIER), [role for role in dict.fromkeys(roles) if role != CLASSES]
    for role in named:
        if role in (*AGES, *parts, ALL):
            raise MethodError(
                f"the role {role!r} of a group means something else in recipes.", hint="Rename it in `layout`."
            )
    words = (*named, *AGES, *parts)
    choices = {"rates": words, "decay": words, "frozen_norms": (*words, ALL), "frozen_dropout": (*parts, ALL)}
    for field, known in choices.items():
        for word in getattr(recipe, field):
            if word not in known:
                raise RecipeError(
                    f"{field} of step {step} names {word!r}, which is nothing of this network.",
                    hint=f"{nearest(word, known)} See docs/recipes.md.",
                )
