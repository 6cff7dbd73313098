"""What a judge's calibration and its verdicts come to, in a few lines of at most 80 columns."""

from dataclasses import asdict

from builder.config import Recipe
from builder.console import Reporter
from builder.grid import folded, grid
from builder.judge import JudgeResult
from builder.judge_calibration import Calibration, Measured, PairCalibration

_WIDTH = 80


def show_calibration(reporter: Reporter, recipe: Recipe, calibration: Calibration) -> None:
    """A line for each kind of known answers, then the three rates that decide whether the judge is believed."""
    judge = recipe.require_judge()
    cost = "" if calibration.cost_usd is None else f", ${calibration.cost_usd:.2f}"
    _say(
        reporter,
        f"calibrate: {judge.model}, {sum(one.cases for one in calibration.kinds):,} known answers, {calibration.votes} "
        f"votes each; {calibration.sent:,} requests now, {calibration.tokens:,} tokens{cost}",
    )
    columns = ("known answers", "number", "correct", "wrong", "null", "errors", "95%")
    rows = [_cells(one) for one in (*calibration.kinds, *calibration.totals)]
    for line in grid(columns, rows, _WIDTH).lines:
        reporter.line(line)
    _say(reporter, "columns correct and wrong: what it called them; null: no majority; errors: of its verdicts")
    totals = {name: asdict(one) for name, one in zip(("right", "wrong", "orders"), calibration.totals, strict=True)}
    facts = asdict(calibration) | {"totals": totals, "problem": calibration.problem}
    reporter.result({"calibration": facts})


def _cells(one: Measured) -> tuple[str | int, ...]:
    rate = "–" if one.error_rate is None else f"{one.error_rate:.1%}"
    low, high = one.interval
    return one.kind, one.cases, one.correct, one.wrong, one.null, rate, f"{low:.1%} … {high:.1%}"


def show_pairs(reporter: Reporter, found: PairCalibration) -> None:
    """Pairs of a right and a wrong reply, and what their order does."""
    bias = found.bias
    reporter.result({"pairs": asdict(found)})
    if bias.share is None:
        _say(reporter, "pairs: no prompt has a right and a wrong reply, both proved; position bias is not measured")
        return
    low, high = bias.interval
    _say(
        reporter,
        f"pairs: {bias.pairs:,} of a right and a wrong reply; the right one preferred in {found.right:,}, "
        f"the wrong one in {found.wrong:,}, neither in {found.tied:,}",
    )
    _say(
        reporter,
        f"position bias: the first place named in {bias.share:.1%} of {bias.answers:,} answers "
        f"(95%: {low:.1%} … {high:.1%}; none is 50%)",
    )
    _say(reporter, f"{bias.flipped:,} of {bias.votes:,} votes follow the order, not the reply: they count as ties")


def show_judged(reporter: Reporter, result: JudgeResult) -> None:
    """Verdicts of the judge."""
    verdicts = (
        ", ".join(f"{number:,} {verdict}" for verdict, number in sorted(result.verdicts.items())) or "no verdicts"
    )
    reporter.line(f"judge: {result.computed:,} new; {verdicts}")
    if result.not_asked:
        _say(
            reporter, f"{result.not_asked:,} of the new ones without a request: no answer, or one too long to ask about"
        )
    reporter.result({"judge": asdict(result)})


def _say(reporter: Reporter, text: str) -> None:
    for line in folded(text, _WIDTH):
        reporter.line(line)
