"""What a judge or a rewriting model costs: its own prices, within one limit with what the teacher took."""

from dataclasses import replace

from builder.budget import Budget, open_budget
from builder.config import Recipe, Teacher
from builder.errors import UsageError
from builder.section import Prices
from builder.store import Run


def prices_of_others(recipe: Recipe) -> dict[str, Prices | None]:
    """Prices by the role of replies that are not the teacher's; None where the recipe declares none."""
    return {
        "judge": recipe.judge.prices if recipe.judge else None,
        "rewrite": recipe.rewrite.prices if recipe.rewrite else None,
    }


def judge_budget(run: Run, recipe: Recipe, max_cost: float | None, max_tokens: int | None) -> Budget:
    """A budget for a judge's votes with what this run's replies took so far, each model's at its own prices.

    Raises UsageError for a limit on money where teacher or judge has no prices.
    """
    return _budget(run, recipe, "judge", recipe.require_judge().prices, max_cost, max_tokens)


def rewrite_budget(run: Run, recipe: Recipe, max_cost: float | None, max_tokens: int | None) -> Budget:
    """The same for rewrites."""
    return _budget(run, recipe, "rewrite", recipe.require_rewrite().prices, max_cost, max_tokens)


def _budget(
    run: Run, recipe: Recipe, section: str, prices: Prices | None, max_cost: float | None, max_tokens: int | None
) -> Budget:
    if max_cost is None and max_tokens is None:
        return Budget(prices=prices)
    if max_cost is not None and prices is None:
        raise UsageError(
            f"--max-cost {max_cost:g} needs prices to count with: set {section}.prices={{input: USD, output: USD}} "
            "(per million tokens), or limit tokens with --max-tokens-total."
        )
    teacher = recipe.teacher or Teacher(model="none", prices=Prices(input=0, output=0))
    return replace(open_budget(run, teacher, max_cost, max_tokens, others=prices_of_others(recipe)), prices=prices)
