"""What a recipe would cost: requests, tokens, money, disk. Sends nothing."""

import math
from dataclasses import dataclass, field

import polars as pl

from builder import journal
from builder.batch_config import FIRST_REQUESTS
from builder.config import Recipe
from builder.errors import SourceError
from builder.plan_disk import disk_bytes
from builder.plan_later import PairVotes, judged_on_top, pair_votes, quota_rows
from builder.plan_rewrites import PlannedRewrites, planned_rewrites
from builder.prompts import Prompts, load_prompts
from builder.requests import Need, need
from builder.resample import bounds
from builder.rescore import tokens_to_rescore
from builder.section import Prices
from builder.stages import stages_with
from builder.store import Run


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval; one number where the interval has no width."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Plan:
    """Requests of a recipe and what the missing ones would cost. Nulls are unknown, not zero.

    `completion_tokens` are estimated from this run's replies, or from the given tokens a reply (`is_assumed`); without
    either, only `at_most_tokens` is known. `disk_bytes` are those of the whole run in the end, see `plan_disk`. `hours`
    need a given rate. `mixed_at_most` rollouts of the student, and as many continuations by the teacher, come on top
    with `builder mix`; the `rescored_tokens`, of stored replies that the teacher reads again for their logprobs, with
    `builder score`. Rounds of `generation.until_correct` take at least
    `rounds_least` requests, which the estimates hold, and at most `rounds_most`: `…_most` are the estimates with those.
    `pair_votes` come on top with `builder pairs`, `rewrites` with `builder rewrite`. `quota_rows` are rows that
    quotas ask for, by stage and domain. `batches` is how many at least, where the teacher is asked in offline batches;
    then USD are at their price.
    """

    prompts: int
    duplicates: int
    gold_conflicts: int
    need: Need
    completion_tokens: Interval | None
    at_most_tokens: int
    cost_usd: Interval | None
    at_most_usd: float | None
    disk_bytes: Interval | None
    measured_replies: int
    warnings: list[str]
    hours: Interval | None = None
    is_assumed: bool = False
    mixed_at_most: int | None = None
    rescored_tokens: int = 0
    rounds_least: int = 0
    rounds_most: int = 0
    completion_tokens_most: Interval | None = None
    cost_usd_most: Interval | None = None
    pair_votes: PairVotes | None = None
    quota_rows: dict[str, dict[str, int]] = field(default_factory=dict)
    rewrites: PlannedRewrites | None = None
    batches: int | None = None


def make_plan(
    run: Run,
    recipe: Recipe,
    *,
    limit: int | None = None,
    tokens_per_reply: float | None = None,
    tokens_per_second: float | None = None,
) -> Plan:
    """Count what is wanted, what is stored, and what the rest would cost.

    Given `tokens_per_reply` (completion tokens) stand in for measured ones; `tokens_per_second` is the rate of all
    endpoints together and gives hours.
    """
    warnings = _unpinned(recipe)
    prompts = _countable(recipe, limit, warnings)
    warnings += judged_on_top(recipe, prompts)
    votes = pair_votes(run, recipe, prompts, limit=limit)
    if recipe.teacher is None:
        return _without_teacher(recipe, prompts, warnings, votes)
    stored, answered = journal.stored_replies(run.journal_dir), journal.answered_prompts(run.journal_dir)
    if isinstance(prompts, Prompts):
        warnings += prompts.notes
        wanted = need(recipe, prompts, stored, answered=answered)
        rows, duplicates, conflicts = len(prompts.rows), prompts.duplicates, prompts.gold_conflicts
    else:
        rows, duplicates, conflicts = prompts, 0, 0
        wanted = _declared_need(run, recipe, rows, stored)
    quotas, too_many = quota_rows(recipe, rows)
    warnings += too_many
    tokens, prompt_mean, replies = _measured(run, recipe)
    if tokens_per_reply is not None:
        tokens = Interval(tokens_per_reply, tokens_per_reply, tokens_per_reply)
    least, most = bounds(run, recipe, prompts, stored, answered)
    missing, with_rounds = wanted.missing + least, wanted.missing + most
    total, whole = _times(tokens, missing), _times(tokens, with_rounds)
    at_most = with_rounds * recipe.generation.max_tokens
    return Plan(
        prompts=rows,
        duplicates=duplicates,
        gold_conflicts=conflicts,
        need=wanted,
        completion_tokens=total,
        at_most_tokens=at_most,
        cost_usd=_cost(recipe, total, prompt_mean * missing),
        at_most_usd=_at_most_usd(recipe, at_most),
        batches=_batches(recipe, missing),
        disk_bytes=_disk(run, recipe, wanted.total + least, tokens),
        measured_replies=replies,
        warnings=warnings,
        hours=_hours(total, tokens_per_second),
        is_assumed=tokens_per_reply is not None,
        mixed_at_most=min(recipe.mixed_policy.prompts, rows) if recipe.mixed_policy else None,
        rescored_tokens=tokens_to_rescore(run, recipe),
        rounds_least=least,
        rounds_most=most,
        completion_tokens_most=whole if most else None,
        cost_usd_most=_cost(recipe, whole, prompt_mean * with_rounds) if most else None,
        pair_votes=votes,
        quota_rows=quotas,
        rewrites=planned_rewrites(run, recipe, rows, tokens.value if tokens else None),
    )


def _times(each: Interval | None, number: int) -> Interval | None:
    return Interval(each.value * number, each.low * number, each.high * number) if each else None


def _hours(tokens: Interval | None, tokens_per_second: float | None) -> Interval | None:
    if tokens is None or tokens_per_second is None:
        return None
    return Interval(*(value / tokens_per_second / 3600 for value in (tokens.value, tokens.low, tokens.high)))


def _without_teacher(recipe: Recipe, prompts: Prompts | int, warnings: list[str], votes: PairVotes | None) -> Plan:
    """A recipe that releases prompts for reinforcement learning, or imported replies: no teacher is paid."""
    merged = prompts if isinstance(prompts, Prompts) else Prompts([], 0, 0, 0)
    needs_replies = [name for name, stage in stages_with(recipe, is_mixed=False).items() if stage.kind != "grpo"]
    made = "its stages are made of prompts"
    if needs_replies:
        made = f"stages {', '.join(needs_replies)} are made of replies that builder import brings"
    return Plan(
        prompts=len(merged.rows) if isinstance(prompts, Prompts) else prompts,
        duplicates=merged.duplicates,
        gold_conflicts=merged.gold_conflicts,
        need=Need(0, 0),
        completion_tokens=None,
        at_most_tokens=0,
        cost_usd=None,
        at_most_usd=None,
        disk_bytes=None,
        measured_replies=0,
        warnings=[*warnings, f"the recipe names no teacher, so none is asked: {made}"],
        pair_votes=votes,
        quota_rows=quota_rows(recipe, 0)[0],
    )


def _countable(recipe: Recipe, limit: int | None, warnings: list[str]) -> Prompts | int:
    """The prompts, or their declared number where a source is on the Hub and has not been downloaded."""
    if not any(source.is_hub for source in recipe.prompts):
        return load_prompts(recipe, limit=limit)
    declared = [source.rows for source in recipe.prompts]
    if any(rows is None for rows in declared):
        names = ", ".join(source.source for source in recipe.prompts if source.rows is None)
        raise SourceError(
            f"The number of questions is not known for {names}: nothing is downloaded for a plan. "
            "Declare prompts.N.rows, or point prompts.N.source at a local file."
        )
    warnings.append("counts are the recipe's declared rows; duplicates show when the sources are read")
    total = sum(rows or 0 for rows in declared)
    return min(total, limit) if limit is not None else total


def _declared_need(run: Run, recipe: Recipe, rows: int, stored: dict[bytes, int]) -> Need:
    """Requests of the declared rows; paid for are those of the prompts that this run has read so far."""
    known = Prompts(run.read("prompts", ["prompt_id", "messages"]).to_dicts(), 0, 0, 0)
    total = rows * len(recipe.generation.temperatures) * recipe.generation.samples
    return Need(total, min(total, need(recipe, known, stored).stored))


def _unpinned(recipe: Recipe) -> list[str]:
    found = [
        f"{source.source} has no revision: generate will refuse it until prompts.{index}.revision is a full commit id"
        for index, source in enumerate(recipe.prompts)
        if source.is_hub and source.revision is None
    ]
    if recipe.teacher and recipe.teacher.revision is None:
        found.append("teacher.revision is not declared: replies of two versions of the model would count as one")
    return found


def _measured(run: Run, recipe: Recipe) -> tuple[Interval | None, float, int]:
    """Mean completion tokens of this run's replies with its 95% interval, mean prompt tokens, replies."""
    teacher = recipe.require_teacher()
    rows = (
        run.scan("responses")
        .filter((pl.col("model") == teacher.model) & (pl.col("role") == "teacher"))
        .select(
            pl.len(),
            pl.col("completion_tokens").mean().alias("mean"),
            pl.col("completion_tokens").std().alias("std"),
            pl.col("prompt_tokens").mean().alias("prompt"),
        )
        .collect()
        .row(0, named=True)
    )
    if not rows["len"] or rows["mean"] is None:
        return None, 0.0, 0
    half = 1.96 * (rows["std"] or 0.0) / math.sqrt(rows["len"])
    mean = rows["mean"]
    return Interval(mean, max(0.0, mean - half), mean + half), rows["prompt"] or 0.0, rows["len"]


def _cost(recipe: Recipe, tokens: Interval | None, prompt_tokens: float) -> Interval | None:
    prices = _prices(recipe)
    if prices is None or tokens is None:
        return None
    base = prompt_tokens * prices.input / 1e6
    return Interval(*(base + value * prices.output / 1e6 for value in (tokens.value, tokens.low, tokens.high)))


def _prices(recipe: Recipe) -> Prices | None:
    """The teacher's, those of its batches where requests go in such."""
    teacher = recipe.require_teacher()
    return teacher.prices.times(teacher.batch.price_factor) if teacher.prices and teacher.batch else teacher.prices


def _batches(recipe: Recipe, missing: int) -> int | None:
    """Batches that so many requests take at least: a small first one proves the endpoint, file sizes may ask more."""
    batch = recipe.require_teacher().batch
    if batch is None:
        return None
    first = min(missing, FIRST_REQUESTS, batch.max_requests)
    return math.ceil(first / FIRST_REQUESTS) + math.ceil((missing - first) / batch.max_requests)


def _at_most_usd(recipe: Recipe, tokens: int) -> float | None:
    prices = _prices(recipe)
    return tokens * prices.output / 1e6 if prices else None


def _disk(run: Run, recipe: Recipe, replies: int, tokens: Interval | None) -> Interval | None:
    """With so many replies in the end, those that are here among them."""
    return Interval(*disk_bytes(run, recipe, replies, (tokens.value, tokens.low, tokens.high))) if tokens else None
