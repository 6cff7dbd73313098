"""`builder pairs`: preference pairs by a judge that was tried first."""

from builder.options import Context


def pairs(context: Context) -> None:
    """responses → pairs: which of two replies that break no rule the recipe's judge prefers, asked in both orders.
    First it is tried on known answers and pairs; one that errs too often decides nothing. Next: select."""
    context.steps.pairs()
