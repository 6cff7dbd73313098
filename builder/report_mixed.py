"""The mixed-policy row that the report shows: the first of its stage, by position."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from builder.lens import Part, prefix_and_rest
from builder.store import Run


@dataclass(frozen=True)
class Reply:
    """What stands above a sampled reply. `messages` are the prompt's, as (role, content)."""

    response_id: str
    stage: str
    position: int
    temperature: float
    completion_tokens: int | None
    model: str
    messages: tuple[tuple[str, str], ...]
    gold: str | None
    verdicts: tuple[str, ...]


@dataclass(frozen=True)
class Mixed:
    """A kept reply that the student began: (author, part, text) in order."""

    reply: Reply
    prefix_chars: int
    pieces: tuple[tuple[str, Part, str], ...]


def mixed_sample(run: Run, stages: Sequence[str]) -> Mixed | None:
    """The first mixed-policy row of the first stage that has one; None where no row was begun by a student."""
    for stage in stages:
        first = _first(_kept(run, stage).filter(pl.col("prefix_chars") > 0), 1)
        for row in _whole(run, first).collect().to_dicts():
            pieces = prefix_and_rest(row["reasoning"], row["answer"], row["prefix_chars"])
            return Mixed(_reply(run, row, stage), row["prefix_chars"], tuple(pieces))
    return None


def _kept(run: Run, stage: str) -> pl.LazyFrame:
    """Rows of a stage without their texts: a stage may hold hundreds of thousands."""
    chosen = run.scan("selection").filter((pl.col("stage") == stage) & (pl.col("kind") == "sft"))
    wanted = chosen.select(pl.col("grain_id").alias("response_id"), "position")
    return wanted.join(run.scan("responses").select("response_id", "prefix_chars"), on="response_id")


def _first(kept: pl.LazyFrame, number: int) -> pl.DataFrame:
    return kept.select("response_id", "position").sort("position").head(number).collect()


def _whole(run: Run, first: pl.DataFrame) -> pl.LazyFrame:
    """These few replies with their texts and positions."""
    wanted = run.scan("responses").filter(pl.col("response_id").is_in(first["response_id"].to_list()))
    return wanted.join(first.lazy(), on="response_id")


def _reply(run: Run, row: dict[str, Any], stage: str) -> Reply:
    prompts = run.scan("prompts").filter(pl.col("prompt_id") == row["prompt_id"]).collect().to_dicts()
    prompt: dict[str, Any] = prompts[0] if prompts else {"messages": [], "gold": None}
    judged = run.scan("verdicts").filter(pl.col("response_id") == row["response_id"]).sort("verifier").collect()
    return Reply(
        response_id=row["response_id"],
        stage=stage,
        position=row["position"],
        temperature=row["temperature"],
        completion_tokens=row["completion_tokens"],
        model=row["model"],
        messages=tuple((message["role"], message["content"]) for message in prompt["messages"]),
        gold=prompt["gold"],
        verdicts=tuple(f"{name}: {verdict}" for name, verdict in judged.select("verifier", "verdict").iter_rows()),
    )
