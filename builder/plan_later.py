"""What comes after the teacher's replies, in a plan: votes of a judge on answers and on pairs, rows of quotas."""

from dataclasses import dataclass
from math import comb

import polars as pl

from builder.config import Recipe
from builder.judge_known import MOST_KNOWN, PAIRS
from builder.prompts import Prompts
from builder.store import Run
from builder.verify import JUDGE


@dataclass(frozen=True)
class PairVotes:
    """Requests to the judge that `builder pairs` may send, at most: `votes` on pairs that have no row yet, and `tries`
    on known pairs and answers; stored ones, such as those of `builder verify`, are not sent again.

    `at_most_usd` is their output at the judge's price, null without one.
    """

    votes: int
    tries: int
    at_most_usd: float | None


def replies_each(recipe: Recipe) -> int:
    """Replies that a prompt may get of the teacher, at all temperatures."""
    until = recipe.generation.until_correct
    return len(recipe.generation.temperatures) * (until.samples if until else recipe.generation.samples)


def pair_votes(run: Run, recipe: Recipe, prompts: Prompts | int, *, limit: int | None = None) -> PairVotes | None:
    """Votes of section `preference`: as if every reply broke no rule and no two were alike. None without the section.

    Replies that the run holds already, imported ones too, count where they are more than the recipe asks for.
    """
    judge, preference = recipe.judge, recipe.preference
    if judge is None or preference is None:
        return None
    from builder.pairs import pairs_version  # here, because a plan without pairs does without SQL

    stored = run.scan("responses").filter(role="teacher").group_by("prompt_id").len("replies").collect()
    known = set(stored["prompt_id"])
    if isinstance(prompts, Prompts):
        known |= {row["prompt_id"] for row in prompts.rows}
    number = max(len(known), prompts if isinstance(prompts, int) else 0)
    replies = max([replies_each(recipe) if recipe.teacher else 0, *stored["replies"]])
    each = min(preference.pairs_per_prompt, comb(replies, 2))
    judged = run.read("pairs").filter(pl.col("judge_version") == pairs_version(recipe)).group_by("prompt_id").len()
    pairs = min(number, limit or number) * each - sum(min(each, done) for done in judged["len"])
    votes, tries = max(0, pairs) * judge.votes * 2, (MOST_KNOWN + 2 * PAIRS) * judge.votes  # both orders of a pair
    price = judge.max_tokens * judge.prices.output / 1e6 if judge.prices else None
    return PairVotes(votes, tries, None if price is None else (votes + tries) * price)


def quota_rows(recipe: Recipe, prompts: int) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Rows that stages with quotas ask for, by stage and domain; and in words which ask for more than can come."""
    asked = {name: stage.quotas.counts() for name, stage in recipe.stages.items() if stage.quotas is not None}
    generation = recipe.generation
    kept = min(recipe.selection.keep, replies_each(recipe) // len(generation.temperatures))
    most = prompts * len(generation.temperatures) * kept
    said = [
        f"stages.{name}.quotas asks for {sum(counts.values()):,} rows, but these prompts give at most {most:,} "
        "(selection.keep a prompt and temperature): the rest must come from builder import"
        for name, counts in asked.items()
        if sum(counts.values()) > most
    ]
    return asked, said


def judged_on_top(recipe: Recipe, prompts: Prompts | int) -> list[str]:
    """What a judge may be asked by `builder verify`, in words: how much verifiers leave open is not known before."""
    if (judge := recipe.judge) is None:
        return []
    rows = prompts.rows if isinstance(prompts, Prompts) else []
    open_prompts = sum(bool(row["gold"]) and row["verifier"] in (None, JUDGE) for row in rows)
    unread = open_prompts * replies_each(recipe)
    which = f"at most {unread:,} replies that no verifier reads, and " if unread else ""
    price = f", at most ${judge.max_tokens * judge.prices.output / 1e6:.4f} of output each" if judge.prices else ""
    tie = "" if judge.votes % 2 else " (as many for as against is no verdict)"
    return [
        f"builder verify asks the judge {judge.model} on top: {judge.votes} votes{tie}{price}, on {which}replies that "
        f"verifiers leave open; and on at most {MOST_KNOWN} known answers, to try it"
    ]
