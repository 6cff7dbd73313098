"""responses → verdicts: was the answer right? `builder.verifiers` decides; here are the joins, deadlines and the table.

Most answers are decided in this process, by proof: equal spelling or exact fractions (`verifiers.first_checks`). That
is safe because those checks are bounded for every text, whatever its length or content. Only what they leave open goes
to math-verify, in processes with a deadline and a memory limit, so that 9^(9^(9^9)) costs seconds and a `timeout`.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

import polars as pl
import pyarrow.parquet as pq

from builder.errors import UsageError
from builder.outcome import Open, Outcome
from builder.sandbox import sandbox_problem
from builder.schema import TABLES
from builder.store import Run, columns_table, write_parquet
from builder.supervised import supervised
from builder.verifiers import (
    READ_REASONING,
    VERIFIERS,
    default_verifier,
    first_checks,
    settle,
    verifier_version,
)

JUDGED_ROLES: Final = ("teacher", "student", "mixed", "rewrite", "eval")
DEADLINE_S: Final = 5.0
"""Seconds for math-verify on one answer; ordinary ones take about a millisecond."""

CHUNK: Final = 2000
"""Replies between two writes: what an interrupted run computes again at most."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Item:
    """One answer to judge. `answer` is the final part of the reply; `cut` says that it ended at its token limit.

    `reasoning` is the part before; the verifiers `language` and `format` alone read it.
    """

    gold: str
    answer: str | None
    verifier: str
    gold_type: str | None = None
    cut: bool = False
    reasoning: str | None = None


@dataclass(frozen=True)
class VerifyResult:
    """What `verify` found. All counts are replies.

    `verdicts` counts every judged reply of the run by verdict, `by_verifier` the same apart; `computed` and `kept` say
    how many were judged now and before. Without a verdict: `without_gold`, `not_verifiable` by gold type, and
    `not_run`, programs for which this machine has no sandbox, as `sandbox_problem` says.
    """

    computed: int = 0
    kept: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    by_verifier: dict[str, dict[str, int]] = field(default_factory=dict)
    without_gold: int = 0
    not_verifiable: dict[str, int] = field(default_factory=dict)
    not_run: int = 0
    sandbox_problem: str | None = None


def verify(run: Run, *, shard: int = 0, workers: int | None = None, progress: Progress | None = None) -> VerifyResult:
    """Judge every reply that has no verdict by its prompt's verifier at today's version; written chunk by chunk.

    Raises UsageError for a verifier that does not exist, VerifyError when no worker process can be started.
    """
    prompts = _verifiable_prompts(run)
    wanted = (
        run.scan("responses")
        .filter(pl.col("role").is_in(JUDGED_ROLES))
        .select("response_id", "prompt_id")
        .unique("response_id", keep="first", maintain_order=True)
        .collect()
        .join(prompts, on="prompt_id", how="inner", maintain_order="left")
    )
    judgeable = wanted.filter(pl.col("gold").is_not_null() & pl.col("verifier").is_not_null())
    _drop_outdated(run, judgeable)
    have = run.read("verdicts", ["response_id", "verifier"])
    missing = judgeable.join(have, on=["response_id", "verifier"], how="anti", maintain_order="left")
    programs, problem = missing.filter(verifier="code"), None
    if programs.height and (problem := sandbox_problem()):  # no verdict, so that they get one where a sandbox is
        missing = missing.filter(pl.col("verifier") != "code")
    done = 0
    for rows in _chunks(run, missing):
        items = [
            Item(
                row["gold"],
                row["answer"],
                row["verifier"],
                row["gold_type"],
                row["finish_reason"] == "length",
                row.get("reasoning"),
            )
            for row in rows
        ]
        outcomes = verify_answers(items, workers=workers)
        run.append("verdicts", columns_table("verdicts", _verdict_rows(rows, outcomes)), shard=shard)
        done += len(rows)
        if progress:
            progress(done, missing.height)
    found = _result(run, wanted, judgeable, computed=done)
    return replace(found, not_run=programs.height, sandbox_problem=problem) if problem else found


def verify_answers(
    items: Sequence[Item], *, workers: int | None = None, deadline_s: float = DEADLINE_S
) -> list[Outcome]:
    """Outcomes in the order of `items`, in bounded time whatever they hold."""
    with ThreadPoolExecutor(workers or _cores()) as pool:
        # A program runs in processes of its own while its thread waits; for all else threads would only take turns.
        programs = any(item.verifier == "code" for item in items)
        firsts = list((pool.map if programs else map)(_first, items))
    outcomes: dict[int, Outcome] = {}
    left_open: list[tuple[int, Open]] = []
    for index, first in enumerate(firsts):
        if isinstance(first, Open):
            left_open.append((index, first))
        else:
            outcomes[index] = first
    calls = [(pending.gold, pending.extracted) for _, pending in left_open]
    for result in supervised(
        "builder.verifiers:math_verify_vote", calls, workers=workers or _cores(), deadline_s=deadline_s
    ):
        index, pending = left_open[result.index]
        outcomes[index] = settle(pending, result.value if result.status == "ok" else result.status)
    return [outcomes[index] for index in range(len(items))]


def _first(item: Item) -> Outcome | Open:
    return first_checks(
        item.gold,
        item.verifier,
        item.answer,
        gold_type=item.gold_type,
        cut=item.cut,
        reasoning=item.reasoning,
    )


def _verifiable_prompts(run: Run) -> pl.DataFrame:
    """Prompts with the verifier that decides them: the recipe's, else the one of the gold type, else null."""
    prompts = run.read("prompts", ["prompt_id", "gold", "gold_type", "verifier"]).unique("prompt_id", keep="last")
    unknown = sorted(set(prompts["verifier"].drop_nulls()) - set(VERIFIERS))
    if unknown:
        raise UsageError(
            f"There is no verifier {', '.join(map(repr, unknown))}; this version has {', '.join(VERIFIERS)}. "
            "Correct `verifier` in the recipe's prompts or in the questions file; leave it out to decide by gold_type."
        )
    defaults = [default_verifier(gold_type) for gold_type in prompts["gold_type"]]
    return prompts.with_columns(
        verifier=pl.coalesce("verifier", pl.Series(defaults, dtype=pl.String)),
        gold=pl.when(pl.col("gold").str.strip_chars() != "").then("gold"),
    )


def _drop_outdated(run: Run, judgeable: pl.DataFrame) -> None:
    """Delete verdicts of other versions or on other golds, part by part: a reply has one verdict per verifier."""
    current = {name: verifier_version(name) for name in judgeable["verifier"].unique()}
    now = judgeable.select("response_id", "verifier", pl.struct("gold", "gold_type").alias("now"))
    for part in run.parts("verdicts"):
        rows = pl.read_parquet(part)
        expected = pl.col("verifier").replace_strict(current, default=pl.col("verifier_version"))
        same_gold = pl.col("now").is_null() | (pl.col("now") == pl.struct("gold", "gold_type"))
        known = rows.join(now, on=["response_id", "verifier"], how="left", maintain_order="left")
        keep = known.filter((pl.col("verifier_version") == expected) & same_gold).drop("now")
        if keep.height < rows.height:
            write_parquet(keep.to_arrow().cast(TABLES["verdicts"].schema), part)


def _chunks(run: Run, missing: pl.DataFrame) -> Iterator[list[dict[str, Any]]]:
    """Rows to judge with their answers, read part by part: the texts of a run need not fit into memory."""
    rest = missing
    rows: list[dict[str, Any]] = []
    columns, at_once = ["response_id", "answer", "finish_reason"], 10_000
    if not missing.filter(pl.col("verifier").is_in(READ_REASONING)).is_empty():
        # Most of a run's text is reasoning: read only where a verifier asks for it, and then less at a time.
        columns, at_once = [*columns, "reasoning"], 1_000
    for part in run.parts("responses"):
        for batch in pq.ParquetFile(part).iter_batches(at_once, columns=columns):
            if rest.is_empty():
                break
            texts: Any = pl.from_arrow(batch)
            found = texts.unique("response_id", keep="first", maintain_order=True).join(
                rest, on="response_id", how="inner", maintain_order="left"
            )
            rest = rest.join(found.select("response_id"), on="response_id", how="anti")
            rows.extend(found.iter_rows(named=True))
            while len(rows) >= CHUNK:
                yield rows[:CHUNK]
                rows = rows[CHUNK:]
    if rows:
        yield rows


def _verdict_rows(rows: Iterable[dict[str, Any]], outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    return [
        {
            "response_id": row["response_id"],
            "verifier": row["verifier"],
            "verifier_version": verifier_version(row["verifier"]),
            "verdict": outcome.verdict,
            "gold": row["gold"],
            "gold_type": row["gold_type"],
            "extracted": outcome.extracted,
            "votes": list(outcome.votes),
        }
        for row, outcome in zip(rows, outcomes, strict=True)
    ]


def _result(run: Run, wanted: pl.DataFrame, judgeable: pl.DataFrame, *, computed: int) -> VerifyResult:
    verdicts = run.read("verdicts", ["response_id", "verifier", "verdict"]).join(
        judgeable.select("response_id", "verifier"), on=["response_id", "verifier"]
    )
    by_verifier: dict[str, Counter[str]] = {}
    for name, verdict in verdicts.select("verifier", "verdict").iter_rows():
        by_verifier.setdefault(name, Counter())[verdict] += 1
    no_gold = wanted.filter(pl.col("gold").is_null()).height
    other = wanted.filter(pl.col("gold").is_not_null() & pl.col("verifier").is_null())
    return VerifyResult(
        computed=computed,
        kept=verdicts.height - computed,
        verdicts=dict(sum(by_verifier.values(), Counter())),
        by_verifier={name: dict(counts) for name, counts in sorted(by_verifier.items())},
        without_gold=no_gold,
        not_verifiable=dict(Counter(other["gold_type"].fill_null("none").to_list())),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
