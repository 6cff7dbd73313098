"""Rules that go by what people decided; steps before any decision do without them."""

from collections.abc import Collection
from pathlib import PurePath
from typing import Final

from builder.config import Recipe

REVIEW_RULES: Final = ("review_dropped", "review_missing")


def without_rules(recipe: Recipe, names: Collection[str]) -> Recipe:
    """The recipe less the rules of these names."""
    rules = [rule for rule in recipe.selection.rules if PurePath(rule).stem not in names]
    return recipe.model_copy(update={"selection": recipe.selection.model_copy(update={"rules": rules})})
