"""What rewriting came to, in a few lines of at most 80 columns."""

from dataclasses import asdict

from builder.console import Reporter
from builder.grid import folded
from builder.rewrite import RewriteResult
from builder.rewrite_steps import RewriteCounts

_WIDTH = 80


def show_rewritten(reporter: Reporter, result: RewriteResult) -> None:
    """Requests, what came of them, and what they cost."""
    cost = "" if result.cost_usd is None else f", ${result.cost_usd:.2f}"
    outcomes = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in result.outcomes.items()) or "none"
    lines = [
        f"rewrite: {result.chosen:,} of {result.whole:,} replies that break no rule were chosen; {result.asked:,} "
        f"requests, {result.sent:,} answered now, {result.tokens:,} tokens{cost}",
        f"replies by what they are: {outcomes}",
    ]
    if result.without_text:
        lines.append(f"{result.without_text:,} more lack reasoning or answer: there is nothing to rewrite")
    for line in lines:
        for part in folded(line, _WIDTH):
            reporter.line(part)
    if result.unanswered:
        reporter.warn(f"{result.unanswered:,} requests have no reply; the next builder rewrite asks again.")
    if bare := result.outcomes.get("no_reasoning", 0):
        reporter.warn(
            f"{bare:,} replies have no think block and are no rewrite. What an endpoint sends as reasoning of its own "
            "counts as the rewriting model's thoughts: serve that model without a reasoning parser."
        )
    reporter.result({"rewrite": asdict(result)})


def show_answers(reporter: Reporter, counts: RewriteCounts) -> None:
    """What the verdicts say of the rewrites."""
    for part in folded(counts.answers(), _WIDTH):
        reporter.line(part)
    reporter.result({"answers": asdict(counts)})
