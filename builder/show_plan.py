"""What `builder plan` prints: a table of at most 80 columns."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from builder.config import Recipe
from builder.console import Reporter, shown

if TYPE_CHECKING:
    from builder.plan import Interval, Plan
    from builder.plan_later import PairVotes
    from builder.plan_rewrites import PlannedRewrites


def show_plan(reporter: Reporter, recipe: Recipe, plan: "Plan") -> None:
    """The plan of a recipe."""
    for warning in plan.warnings:
        reporter.warn(warning)
    rows = [("prompts", f"{plan.prompts:,}{_merged(plan)}")]
    if recipe.teacher is not None:
        rows += _asked(recipe, plan)
    reporter.table(f"Plan of {recipe.name}", ("", ""), [*rows, *_later(plan)])
    if plan.is_assumed:
        reporter.line("Estimates from the given tokens a reply: an assumption, nothing was measured.")
    elif plan.measured_replies:
        reporter.line(f"Estimates from {plan.measured_replies:,} replies of this run, 95% interval of the mean.")
    elif plan.need.missing:
        reporter.line("No reply yet to estimate from: --pilot K asks the first K prompts (and keeps the replies).")
    reporter.result({"plan": asdict(plan), "recipe": recipe.resolved()})


def _asked(recipe: Recipe, plan: "Plan") -> list[tuple[str, str]]:
    """What the teacher is asked, and what that takes."""
    generation = recipe.generation
    rows = [
        ("temperatures × samples", f"{', '.join(map(str, generation.temperatures))} × {generation.samples}"),
        ("requests", f"{plan.need.total:,}"),
        ("paid for already", f"{plan.need.stored:,}"),
    ]
    if generation.until_correct:
        rows.append((f"rounds until {generation.until_correct.correct} correct", _range(plan, 0)))
    rows.append(("to send", _range(plan, plan.need.missing)))
    if plan.batches is not None:
        batch = recipe.require_teacher().batch
        factor = batch.price_factor if batch else 1.0
        rows.append(("offline batches, at least", f"{plan.batches:,} (USD below: prices × {factor:g})"))
    tokens = (("completion tokens", plan.completion_tokens), ("tokens, all rounds", plan.completion_tokens_most))
    rows += [(name, _estimate(interval)) for name, interval in tokens if interval]
    rows.append(("completion tokens, at most", f"{plan.at_most_tokens:,}"))
    money = (("USD", plan.cost_usd), ("USD, all rounds", plan.cost_usd_most))
    rows += [(name, _estimate(interval)) for name, interval in money if interval]
    if plan.at_most_usd is not None:
        rows.append(("USD, at most (output)", f"{plan.at_most_usd:,.2f}"))
    if plan.hours:
        rows.append(("hours at the given rate", _estimate(plan.hours)))
    if plan.disk_bytes:
        megabytes = {name: size / 1e6 for name, size in asdict(plan.disk_bytes).items()}
        rows.append(("disk in the end, MB", _estimate(replace(plan.disk_bytes, **megabytes))))
    return rows


def _later(plan: "Plan") -> list[tuple[str, str]]:
    """What the steps after `builder generate` take."""
    rows = []
    if plan.rescored_tokens:
        rows.append(("builder score, on top: tokens read", f"{plan.rescored_tokens:,}"))
    if plan.mixed_at_most is not None:
        rows.append(("builder mix, on top, at most", f"{plan.mixed_at_most:,} rollouts, as many continuations"))
    if plan.pair_votes is not None:
        rows.append(("builder pairs, on top, at most", _votes(plan.pair_votes)))
    if plan.rewrites is not None:
        rows.append(("builder rewrite, on top, at most", _rewrites(plan.rewrites)))
    for stage, counts in plan.quota_rows.items():
        rows.append((f"rows of quotas, stage {stage}", f"{sum(counts.values()):,}"))
        rows += [(f"  {domain}", f"{number:,}") for domain, number in counts.items()]
    return rows


def _range(plan: "Plan", least: int) -> str:
    """Requests, from `least` and the rounds that are certain to those that are not."""
    low, high = least + plan.rounds_least, least + plan.rounds_most
    return f"{low:,}" if low == high else f"{low:,} … {high:,}"


def _rewrites(planned: "PlannedRewrites") -> str:
    paid = f" ({planned.paid:,} stored)" if planned.paid else ""
    least = "" if planned.cost_usd is None else f"; about {planned.cost_usd:,.2f} USD"
    most = "" if planned.at_most_usd is None else f"; at most {planned.at_most_usd:,.2f} USD"
    return f"{planned.at_most:,} requests{paid}{least}{most}"


def _votes(votes: "PairVotes") -> str:
    price = "" if votes.at_most_usd is None else f"; {votes.at_most_usd:,.2f} USD (output)"
    return f"{votes.votes:,} votes, {votes.tries:,} tries{price}"


def _merged(plan: "Plan") -> str:
    parts = []
    if plan.duplicates:
        parts.append(f"{plan.duplicates:,} duplicates merged")
    if plan.gold_conflicts:
        parts.append(f"{plan.gold_conflicts:,} with conflicting golds")
    return f" ({', '.join(parts)})" if parts else ""


def _estimate(interval: "Interval") -> str:
    if interval.low == interval.high:
        return shown(interval.value)
    return f"{shown(interval.value)} (95%: {shown(interval.low)} … {shown(interval.high)})"
