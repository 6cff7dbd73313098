"""`builder rewrite`: a second model makes the teacher's replies readable."""

from builder.options import Context


def rewrite(context: Context) -> None:
    """responses → rewrites: the recipe's second model makes replies that break no rule readable, in the language of
    the question; they are verified again, because a rewrite may change the answer. Next: select."""
    context.steps.rewrite()
