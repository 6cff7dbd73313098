"""responses → verdicts: was the answer right? `builder.verifiers` decides; here are the joins, deadlines and the table.

Most answers are decided in this process, by proof: equal spelling or exact fractions (`verifiers.first_checks`). That
is safe because those checks are bounded for every text, whatever its length or content. Only what they leave open goes
to math-verify, in processes with a deadline and a memory limit, so that 9^(9^(9^9)) costs seconds and a `timeout`.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from builder.claim import claimed
from builder.errors import UsageError
from builder.outcome import Open, Outcome
from builder.sandbox import sandbox_problem
from builder.shards import Shard, drop_rows, of_shard
from builder.store import Run, columns_table
from builder.supervised import Supervised
from builder.verifiers import (
    READ_REASONING,
    VERIFIERS,
    default_verifier,
    first_checks,
    settle,
    verifier_version,
)

JUDGED_ROLES: Final = ("teacher", "student", "mixed", "rewrite", "eval")
JUDGE: Final = "judge"
"""The verifier that is no program: `builder.judge` asks a model, after all others."""
DEADLINE_S: Final = 5.0
"""Seconds for math-verify on one answer; ordinary ones take about a millisecond."""

CHUNK: Final = 2000
"""Replies between two writes: what an interrupted run computes again at most."""
CHUNK_CHARACTERS: Final = 50_000_000
"""Characters of replies between two writes, so that a few replies of 10 MB do not fill the memory."""

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
    """What `verify` found. All counts are replies of its shard.

    `verdicts` counts every judged reply by verdict, `by_verifier` the same apart; `computed` and `kept` say
    how many were judged now and before. Without a verdict: `without_gold`, `not_verifiable` by gold type, `for_judge`,
    whose prompts name the judge, and `not_run`, programs for which this machine has no sandbox, as `sandbox_problem`
    says.
    """

    computed: int = 0
    kept: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    by_verifier: dict[str, dict[str, int]] = field(default_factory=dict)
    without_gold: int = 0
    not_verifiable: dict[str, int] = field(default_factory=dict)
    for_judge: int = 0
    not_run: int = 0
    sandbox_problem: str | None = None


def verify(
    run: Run, *, shard: Shard = (0, 1), workers: int | None = None, progress: Progress | None = None
) -> VerifyResult:
    """Judge every reply that has no verdict by its prompt's verifier at today's version; written chunk by chunk.

    Raises UsageError for a verifier that does not exist, VerifyError when no worker process can be started, ShardBusy
    where another process verifies this shard.
    """
    with claimed(run, "verify", shard):
        return _verify(run, shard, workers, progress)


def _verify(run: Run, shard: Shard, workers: int | None, progress: Progress | None) -> VerifyResult:
    prompts = _verifiable_prompts(run)
    wanted = (
        run.scan("responses")
        .filter(pl.col("role").is_in(JUDGED_ROLES) & of_shard(shard))
        .select("response_id", "prompt_id")
        .unique("response_id", keep="first", maintain_order=True)
        .collect()
        .join(prompts, on="prompt_id", how="inner", maintain_order="left")
    )
    judgeable = wanted.filter(pl.col("gold").is_not_null() & pl.col("verifier").is_not_null())
    versions = {name: verifier_version(name) for name in judgeable["verifier"].unique()}
    drop_outdated(run, judgeable, versions, shard)
    have = run.read("verdicts", ["response_id", "verifier"])
    missing = judgeable.join(have, on=["response_id", "verifier"], how="anti", maintain_order="left")
    programs, problem = missing.filter(verifier="code"), None
    if programs.height and (problem := sandbox_problem()):  # no verdict, so that they get one where a sandbox is
        missing = missing.filter(pl.col("verifier") != "code")
    done = 0
    with math_verify_pool(workers) as pool:
        for rows in chunks(run, missing):
            outcomes = verify_answers([_item(row) for row in rows], pool)
            run.append("verdicts", columns_table("verdicts", verdict_rows(rows, outcomes, versions)), shard=shard[0])
            done += len(rows)
            if progress:
                progress(done, missing.height)
    found = _result(run, wanted, judgeable, computed=done)
    return replace(found, not_run=programs.height, sandbox_problem=problem) if problem else found


def verify_answers(items: Sequence[Item], pool: Supervised) -> list[Outcome]:
    """Outcomes in the order of `items`, in bounded time whatever they hold; `pool` is one of `math_verify_pool`."""
    with ThreadPoolExecutor(pool.workers) as threads:
        # A program runs in processes of its own while its thread waits; for all else threads would only take turns.
        programs = any(item.verifier == "code" for item in items)
        firsts = list((threads.map if programs else map)(_first, items))
    outcomes: dict[int, Outcome] = {}
    left_open: list[tuple[int, Open]] = []
    for index, first in enumerate(firsts):
        if isinstance(first, Open):
            left_open.append((index, first))
        else:
            outcomes[index] = first
    for result in pool.run((pending.gold, pending.extracted) for _, pending in left_open):
        index, pending = left_open[result.index]
        outcomes[index] = settle(pending, result.value if result.status == "ok" else result.status)
    return [outcomes[index] for index in range(len(items))]


def math_verify_pool(workers: int | None = None, deadline_s: float = DEADLINE_S) -> Supervised:
    """Processes of math-verify for `verify_answers`, a context. One for many calls: half a second to start each."""
    return Supervised("builder.verifiers:math_verify_vote", workers=workers or _cores(), deadline_s=deadline_s)


def _item(row: dict[str, Any]) -> Item:
    cut = row["finish_reason"] == "length"
    return Item(row["gold"], row["answer"], row["verifier"], row["gold_type"], cut, row.get("reasoning"))


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
    """Prompts with the verifier that decides them: the recipe's, else the one of the gold type, else null.

    Null as well where that is the judge: column `for_judge` says so.
    """
    prompts = run.read("prompts", ["prompt_id", "gold", "gold_type", "verifier"]).unique("prompt_id", keep="last")
    unknown = sorted(set(prompts["verifier"].drop_nulls()) - {*VERIFIERS, JUDGE})
    if unknown:
        raise UsageError(
            f"There is no verifier {', '.join(map(repr, unknown))}; this version has {', '.join(VERIFIERS)}, {JUDGE}. "
            "Correct `verifier` in the recipe's prompts or in the questions file; leave it out to decide by gold_type."
        )
    defaults = pl.Series([default_verifier(gold_type) for gold_type in prompts["gold_type"]], dtype=pl.String)
    for_judge = pl.col("verifier").eq_missing(pl.lit(JUDGE))
    return prompts.with_columns(
        for_judge=for_judge,
        verifier=pl.when(~for_judge).then(pl.coalesce("verifier", defaults)),
        gold=pl.when(pl.col("gold").str.strip_chars() != "").then("gold"),
    )


def drop_outdated(run: Run, judgeable: pl.DataFrame, versions: Mapping[str, str], shard: Shard = (0, 1)) -> None:
    """Delete verdicts of other versions or on other golds from the shard: a reply has one verdict per verifier.

    A judge's `error` goes too, for its endpoint may answer today. `judgeable` has columns response_id, verifier, gold,
    gold_type; `versions` today's version of each verifier.
    """
    now = judgeable.select("response_id", "verifier", now_gold="gold", now_type="gold_type", is_known=True)
    ours = None
    if shard[1] > 1:
        ours = run.scan("responses").filter(of_shard(shard)).select("response_id").collect()["response_id"]
    # not as structs: polars 2.1 panics where one side of such a comparison comes from a frame of one row
    same_gold = pl.col("gold").eq_missing(pl.col("now_gold")) & pl.col("gold_type").eq_missing(pl.col("now_type"))
    expected = pl.col("verifier").replace_strict(versions, default=pl.col("verifier_version"))
    again = (pl.col("verifier") == JUDGE) & (pl.col("verdict") == "error")
    stays = (pl.col("verifier_version") == expected) & (same_gold | pl.col("is_known").is_null()) & ~again

    def gone(rows: pa.Table) -> list[bool]:
        frame: Any = pl.from_arrow(rows)
        known = frame.join(now, on=["response_id", "verifier"], how="left", maintain_order="left")
        goes = known.select(goes=~stays).to_series()
        if ours is not None and goes.any():
            goes &= frame["response_id"].is_in(ours.implode())
        return list(goes)

    decide = ["response_id", "verifier", "verifier_version", "verdict", "gold", "gold_type"]
    drop_rows(run, "verdicts", gone, decide)


def chunks(run: Run, missing: pl.DataFrame) -> Iterator[list[dict[str, Any]]]:
    """Rows to judge (response_id, verifier, …) with their answers, part by part: a run need not fit into memory."""
    rest = missing
    rows: list[dict[str, Any]] = []
    size = 0
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
            for row in found.iter_rows(named=True):
                rows.append(row)
                size += len(row["answer"] or "") + len(row.get("reasoning") or "")
                if len(rows) >= CHUNK or size >= CHUNK_CHARACTERS:
                    yield rows
                    rows, size = [], 0
    if rows:
        yield rows


def verdict_rows(
    rows: Iterable[dict[str, Any]], outcomes: Iterable[Outcome], versions: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Rows of table verdicts, from rows of `chunks` and what their verifiers, at these versions, say of them."""
    return [
        {
            "response_id": row["response_id"],
            "verifier": row["verifier"],
            "verifier_version": versions[row["verifier"]],
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
    for_judge = other.filter("for_judge").height
    other = other.filter(~pl.col("for_judge"))
    return VerifyResult(
        computed=computed,
        kept=verdicts.height - computed,
        verdicts=dict(sum(by_verifier.values(), Counter())),
        by_verifier={name: dict(counts) for name, counts in sorted(by_verifier.items())},
        without_gold=no_gold,
        not_verifiable=dict(Counter(other["gold_type"].fill_null("none").to_list())),
        for_judge=for_judge,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
