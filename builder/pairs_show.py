"""What judging pairs came to, in a few lines of at most 80 columns."""

from dataclasses import asdict

from builder.console import Reporter
from builder.grid import folded
from builder.pairs import PairsResult

_WIDTH = 80


def show_judged_pairs(reporter: Reporter, result: PairsResult) -> None:
    """Pairs by gap, and what the order of the replies did in those judged now."""
    gaps = ", ".join(f"{number:,} at gap {gap}" for gap, number in result.gaps.items()) or "none"
    lines = [f"pairs: {result.judged:,} judged now, {result.kept:,} before; {gaps}"]
    if result.without_pair:
        lines.append(f"{result.without_pair:,} of {result.prompts:,} prompts have no two replies to compare")
    if result.bias.share is not None:
        low, high = result.bias.interval
        lines.append(
            f"position bias: the first place named in {result.bias.share:.1%} of {result.bias.answers:,} answers "
            f"(95%: {low:.1%} … {high:.1%}; none is 50%); {result.bias.flipped:,} of {result.bias.votes:,} votes "
            "follow the order and count as ties"
        )
    for line in lines:
        for part in folded(line, _WIDTH):
            reporter.line(part)
    if result.unanswered:
        reporter.warn(
            f"{result.unanswered:,} pairs lack a vote that the judge's endpoint refused; they are not written, and the "
            "next builder pairs asks again."
        )
    reporter.result({"preference": asdict(result)})
