"""What a judge costs: its own prices, within one limit with what the teacher took."""

from builder.budget import Budget, open_budget
from builder.config import Recipe, Teacher
from builder.errors import UsageError
from builder.section import Prices
from builder.store import Run


def judge_budget(run: Run, recipe: Recipe, max_cost: float | None, max_tokens: int | None) -> Budget:
    """A budget for a judge's votes with what this run's replies took so far, each model's at its own prices.

    Raises UsageError for a limit on money where teacher or judge has no prices.
    """
    judge = recipe.require_judge()
    if max_cost is None and max_tokens is None:
        return Budget(prices=judge.prices)
    if max_cost is not None and judge.prices is None:
        raise UsageError(
            f"--max-cost {max_cost:g} needs prices to count with: set judge.prices={{input: USD, output: USD}} (per "
            "million tokens), or limit tokens with --max-tokens-total."
        )
    teacher = recipe.teacher or Teacher(model="none", prices=Prices(input=0, output=0))
    used = open_budget(run, teacher, max_cost, max_tokens, judge=judge.prices)
    return Budget(max_cost, max_tokens, judge.prices, cost=used.cost, tokens=used.tokens)
