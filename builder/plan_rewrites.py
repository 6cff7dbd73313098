"""What rewriting comes to, in a plan: requests and money on top of the teacher's."""

from dataclasses import dataclass
from typing import Final

from builder.config import Recipe
from builder.plan_later import replies_each
from builder.store import Run

_TASK_TOKENS: Final = 500
"""Instructions and fences around question and reply; by characters, about four a token."""


@dataclass(frozen=True)
class PlannedRewrites:
    """Requests to the rewriting model that are not stored, at most: as if every prompt had `per_prompt` replies that
    break no rule. `paid` are stored.

    `cost_usd` takes a rewrite to be as long as the reply, and null without prices or measured replies; `at_most_usd`
    takes reply and rewrite at their limits.
    """

    at_most: int
    paid: int
    cost_usd: float | None
    at_most_usd: float | None


def planned_rewrites(run: Run, recipe: Recipe, prompts: int, tokens: float | None) -> PlannedRewrites | None:
    """For so many prompts and completion tokens a reply; None where the recipe rewrites nothing."""
    section = recipe.rewrite
    if section is None:
        return None
    each = min(section.per_prompt or recipe.selection.keep, replies_each(recipe))
    paid = run.rows("rewrites")
    missing = max(0, prompts * each * section.samples - paid)
    prices = section.prices
    cost = most = None
    if prices is not None:
        read = recipe.generation.max_tokens + _TASK_TOKENS
        most = missing * (read * prices.input + section.max_tokens * prices.output) / 1e6
        if tokens is not None:
            cost = missing * ((tokens + _TASK_TOKENS) * prices.input + tokens * prices.output) / 1e6
    return PlannedRewrites(missing, paid, cost, most)
