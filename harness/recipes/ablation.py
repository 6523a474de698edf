"""Ablations: a method's parts switched off one by one, as rows that a sweep runs beside the recipe."""

from __future__ import annotations

from collections.abc import Mapping

from cispbench.harness.method import Method
from cispbench.harness.recipes.overrides import parse_override
from cispbench.harness.recipes.recipe_files import beside, check_changes
from cispbench.splits.errors import RecipeError, UsageError
from cispbench.splits.strict_yaml import load_yaml


def load_ablation(method: type[Method]) -> dict[str, tuple[str, ...]]:
    """Return the rows of ``ablations/<name>.yaml`` beside the method's module: a name, and its words for ``--set``.

    Raises UsageError where there is no such file, RecipeError naming the file and the row that is wrong.
    """
    path = beside(method, "ablations")
    if path is None:
        raise UsageError(
            f"{method.name} has no ablation.", hint=f"It would be ablations/{method.name}.yaml beside its module."
        )
    rows = load_yaml(path)
    if not isinstance(rows, Mapping) or not all(isinstance(words, list) for words in rows.values()):
        raise RecipeError(f"{path}: an ablation maps names to lists of section.key=value.")
    for name, words in rows.items():
        for text in words:
            try:
                change = parse_override(str(text))
            except RecipeError as error:
                raise RecipeError(f"{path}: {name}: {error.message}", hint=error.hint) from error
            check_changes(change, method.Options, f"{path}: {name}")
    return {str(name): tuple(map(str, words)) for name, words in rows.items()}
