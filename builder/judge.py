"""Verdicts by a model where no verifier has one: `builder.judge_ask` asks, here is what it is asked about.

A judge is believed only as far as `builder.judge_calibration` has seen it right. Its verdict is that of more than half
of its votes, else `unscorable`: a reply of it that cannot be read is a vote without a verdict. Where the endpoint
refused a vote for good and the others decide nothing, it is `error`, and the next call asks again.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from builder.answers import LONGEST_ANSWER
from builder.claim import claimed
from builder.config import Recipe
from builder.identity import canonical_json, sha256_hex
from builder.judge_answer import final_answer, is_askable, judged_prompts, parts
from builder.judge_ask import MISSING, Judging, Said, Send, distinct, majority, said_by
from builder.outcome import Outcome, Verdict
from builder.release_rows import unplaced
from builder.requests import Request
from builder.schema import CANDIDATE_ROLES
from builder.shards import Shard, of_shard
from builder.store import Run, columns_table
from builder.verify import JUDGE, chunks, drop_outdated, verdict_rows

_OPINIONS: Final = ("correct", "wrong")


@dataclass(frozen=True)
class JudgeResult:
    """What judging did, in replies: `computed` now, `kept` from before; `verdicts` counts both, of all shards.

    `not_asked` of those now have no answer (`wrong`), or one that is too long to ask about (`unscorable`).
    """

    computed: int = 0
    kept: int = 0
    not_asked: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)


def open_replies(run: Run, recipe: Recipe, *, shard: Shard = (0, 1)) -> pl.DataFrame:
    """Replies of a shard that a judge has to decide and that this judge has not: what `judge` takes.

    Those that a release may hold, on a prompt with a gold that is an answer, which no verifier called correct or wrong;
    where the prompt names the judge, whatever verifiers say. Raises UsageError where the recipe has no judge.
    """
    prompts = judged_prompts(run)
    verdicts = run.read("verdicts", ["response_id", "verifier", "verifier_version", "verdict", "gold", "gold_type"])
    decided = (
        verdicts.lazy()
        .filter(~pl.col("verifier").str.starts_with(JUDGE) & pl.col("verdict").is_in(_OPINIONS))
        .select("response_id", is_decided=True)
        .unique()
    )
    have = verdicts.lazy().filter(
        (pl.col("verifier") == JUDGE)
        & (pl.col("verifier_version") == judge_version(recipe))
        & (pl.col("verdict") != "error")  # its endpoint may answer today
    )
    return (
        run.scan("responses")
        .filter(pl.col("role").is_in(CANDIDATE_ROLES) & of_shard(shard))
        .select("response_id", "prompt_id")
        .unique("response_id", keep="first", maintain_order=True)
        .join(prompts.lazy(), on="prompt_id", maintain_order="left")
        .join(decided, on="response_id", how="left", maintain_order="left")
        .filter(pl.col("for_judge") | pl.col("is_decided").is_null())
        .join(have, on=["response_id", "gold", "gold_type"], how="anti", nulls_equal=True, maintain_order="left")
        .select("response_id", "prompt_id", "messages", "gold", "gold_type", verifier=pl.lit(JUDGE))
        .collect()
    )


def judge(run: Run, recipe: Recipe, replies: pl.DataFrame, send: Send, *, shard: Shard = (0, 1)) -> JudgeResult:
    """Ask about these replies, as `open_replies` gives them for the shard, and write a verdict for each.

    Verdicts are written once all votes are there; until then they are safe as replies, and asked for once. They take
    the place of this judge's verdicts on other golds, and of all that judges before it said. Raises as `send`, and
    ShardBusy where another process verifies this shard.
    """
    with claimed(run, "verify", shard):
        still_open = open_replies(run, recipe, shard=shard).select("response_id")  # a call before may have judged some
        return _judge(run, recipe, replies.join(still_open, on="response_id", how="semi"), send, shard)


def _judge(run: Run, recipe: Recipe, replies: pl.DataFrame, send: Send, shard: Shard) -> JudgeResult:
    judging = Judging.of(recipe)
    number = sum(1 for _ in _requests(run, judging, replies))
    if number:
        send("judge votes", judging.wire, _requests(run, judging, replies), number)
    said, versions = said_by(run), {JUDGE: judge_version(recipe)}
    drop_outdated(run, replies, versions, shard)
    done = not_asked = 0
    for rows in chunks(run, replies):
        outcomes = [_outcome(judging, row, said) for row in rows]
        run.append("verdicts", columns_table("verdicts", verdict_rows(rows, outcomes, versions)), shard=shard[0])
        done += len(rows)
        not_asked += sum(not is_askable(row, _text(row)) for row in rows)
    found = run.read("verdicts", ["verifier", "verdict"]).filter(verifier=JUDGE)
    verdicts = Counter(found["verdict"].to_list())
    return JudgeResult(done, sum(verdicts.values()) - done, not_asked, dict(verdicts))


def judge_version(recipe: Recipe) -> str:
    """Model and votes in words, and a hash of all that decides a vote: another judge's verdicts are made anew."""
    judging, section = Judging.of(recipe), recipe.require_judge()
    example = judging.asked({"QUESTION": "q", "REFERENCE": "r", "ANSWER": "a"})
    requests = [[request.key, request.max_tokens] for request in judging.requests("", example)]
    model = f"{unplaced(section.model)}@{section.revision}" if section.revision else unplaced(section.model)
    return f"{sha256_hex(canonical_json(requests))[:8]} {model} {section.votes} votes at {section.temperature:g}"


def _text(row: Mapping[str, Any]) -> str:
    return final_answer(row["answer"], cut=row["finish_reason"] == "length")


def _requests(run: Run, judging: Judging, replies: pl.DataFrame) -> Iterator[Request]:
    rows = (row for chunk in chunks(run, replies) for row in chunk)
    asked = (
        request
        for row in rows
        if is_askable(row, _text(row))
        for request in judging.requests(row["prompt_id"], judging.asked(parts(row, _text(row))))
    )
    return distinct(asked)


def _outcome(judging: Judging, row: Mapping[str, Any], said: Said) -> Outcome:
    text = _text(row)
    if not text:
        return Outcome("wrong", None, ("empty:wrong",))
    if not is_askable(row, text):
        return Outcome("unscorable", None, ("too_long:unscorable",))
    votes = judging.votes(judging.asked(parts(row, text)), said)
    verdict: Verdict = "error" if MISSING in votes else "unscorable"
    match majority(votes):
        case "correct" | "wrong" as found:
            verdict = found
    return Outcome(verdict, text[:LONGEST_ANSWER], tuple(f"{JUDGE}:{vote}" for vote in votes))
