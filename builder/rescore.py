"""Replies that came without logprobs: the teacher reads them again and gives the logprobs of their tokens.

A rescored reply stands in `logprobs` as any other, with `align_detail` "rescored …", while `responses.logprobs_mode`
stays null. What could not be rescored stands there without logprobs, with the reason, so that it is paid once.
The values are those of the bare model at temperature 1 (vLLM: prompt tokens skip every sampling setting).
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from builder.client import endpoints_of
from builder.config import Recipe
from builder.continuation import Harmony, ThinkTagCompletions
from builder.errors import FatalReply, ScoreError
from builder.models import teacher_tokenizer
from builder.prefix import Prefix
from builder.requests import messages_of
from builder.scoring_server import TEST_TEXT, Outcome, ProofText, ScoringServer
from builder.section import Endpoint
from builder.shards import Shard, of_shard
from builder.store import Run, columns_table
from builder.student import NoLogprobs
from builder.text import THINK_CLOSE, THINK_OPEN
from builder.tokens import AlignError, align, token_bytes
from builder.windows import Row, Windowed, windows

if TYPE_CHECKING:
    import polars as pl

_CHUNK: Final = 256
"""Replies rescored between two parts: what a crash costs, in teacher tokens."""
RESCORED: Final = "rescored"
"""How `align_detail` begins for logprobs that did not come with their reply."""
_NOT: Final = "not rescored: "
_ADVICE: Final = (
    "Replies without logprobs cannot be rescored there, and divergence-aware sampling needs logprobs. Serve the "
    "teacher with vLLM, or select without the student: selection.selector=random (or longest), no rule score_missing, "
    "and teacher.rescore=false."
)


@dataclass(frozen=True)
class Rescored:
    """Replies rescored by one call, those that could not be, and what that cost: tokens read, USD by the prices."""

    replies: int = 0
    failed: int = 0
    tokens: int = 0
    cost_usd: float | None = None


class _Unfit(Exception):
    """The reply cannot be shown to the teacher as it wrote it; the message says why."""


@dataclass(frozen=True)
class _Shown:
    """A reply in the teacher's tokens, and where each of them ends in the canonical text."""

    row: Row
    ends: np.ndarray


def rescorable(run: Run, recipe: Recipe, *, shard: Shard = (0, 1)) -> "pl.DataFrame":
    """Ids of the teacher's own replies that have no logprobs and were not rescored; none unless the recipe asks."""
    import polars as pl  # here and below: `generate` imports this module and does without

    if not recipe.require_teacher().rescore:
        return pl.DataFrame(schema={"response_id": pl.String})
    replies = run.scan("responses").filter(
        (pl.col("role") == "teacher")
        & pl.col("logprobs_mode").is_null()
        & (pl.col("prefix_chars") == 0)
        & (pl.col("reasoning").is_not_null() | pl.col("answer").is_not_null())
        & of_shard(shard)
    )
    return (
        replies.join(run.read("prompts", ["prompt_id"]).lazy(), on="prompt_id", how="semi")
        .select("response_id")
        .join(run.read("logprobs", ["response_id"]).lazy(), on="response_id", how="anti")
        .unique()
        .collect()
    )


def tokens_to_rescore(run: Run, recipe: Recipe, *, shard: Shard = (0, 1)) -> int:
    """Tokens of prompts and replies that `rescore` would send now, by the endpoint's own counts.

    Where there are none, as for imported replies, a byte counts as a token: the most that it can be.
    """
    import polars as pl

    replies = run.scan("responses").join(rescorable(run, recipe, shard=shard).lazy(), on="response_id", how="semi")
    asked = pl.col("messages").list.eval(pl.element().struct.field("content").str.len_bytes()).list.sum()
    written = pl.sum_horizontal(pl.col("reasoning", "answer").str.len_bytes())
    tokens = pl.coalesce("prompt_tokens", asked) + pl.coalesce("completion_tokens", written)
    prompts = run.read("prompts", ["prompt_id", "messages"]).lazy()
    return int(replies.join(prompts, on="prompt_id").select(tokens.sum()).collect().item() or 0)


def _chunks(run: Run, replies: "pl.DataFrame") -> Iterator[list[dict[str, Any]]]:
    """Texts, messages and prompt tokens of these replies, part by part: all of them may be more than memory holds."""
    import polars as pl

    prompts = run.read("prompts", ["prompt_id", "messages"]).lazy()
    for part in run.parts("responses"):
        rows = pl.scan_parquet(part, glob=False).join(replies.lazy(), on="response_id", how="semi")
        wanted = rows.select("response_id", "prompt_id", "reasoning", "answer", "prompt_tokens")
        found = wanted.join(prompts, on="prompt_id").unique("response_id").sort("response_id").collect()
        for chunk in found.iter_slices(_CHUNK):
            yield list(chunk.iter_rows(named=True))


def rescored_ids(run: Run, *, failed: bool = False) -> set[str]:
    """Replies whose logprobs came by rescoring; with `failed` those whose rescoring brought none."""
    wanted = _NOT if failed else RESCORED
    return {
        identity
        for _, rows in run.by_part("logprobs", ["response_id", "align_detail"])
        for identity, detail in zip(*(column.to_pylist() for column in rows.itercolumns()), strict=True)
        if detail is not None and detail.startswith(wanted)
    }


async def check_rescoring(recipe: Recipe) -> None:
    """Ask every endpoint of the teacher for a short text. Raises ScoreError unless all of them can rescore."""
    await _servers(recipe, _wire(recipe))


def rescore(
    run: Run,
    recipe: Recipe,
    replies: "pl.DataFrame",
    *,
    shard: Shard = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> Rescored:
    """Rescore `replies` (those of `rescorable`), chunk by chunk: each is stored before the next is paid.

    Raises ScoreError where the teacher's tokenizer is not to be had, where an endpoint gives no logprobs of given
    tokens, or goes away; what was rescored by then is kept.
    """
    if not replies.height:
        return Rescored()
    wire = _wire(recipe)
    table = token_bytes(wire.tokenizer.backend_tokenizer.to_str()) or {}
    servers = asyncio.run(_servers(recipe, wire))
    done = failed = tokens = 0
    for chunk in _chunks(run, replies):
        rows, sent = asyncio.run(_chunk(servers, wire, table, chunk))
        stored = [row for row in rows if row["align_detail"] is not None]
        run.append("logprobs", columns_table("logprobs", stored), shard=shard[0])
        done += len(stored)
        failed += sum(row["align_detail"].startswith(_NOT) for row in stored)
        tokens += sent
        if progress:
            progress(done, replies.height)
        if len(stored) < len(rows):
            raise ScoreError(
                f"{next(row['left'] for row in rows if row['left'])}. {done:,} of {replies.height:,} replies without "
                "logprobs were rescored, which is kept. Start the teacher's endpoint again and rerun builder score."
            )
    prices = recipe.require_teacher().prices
    return Rescored(done - failed, failed, tokens, tokens * prices.input / 1e6 if prices else None)


def _wire(recipe: Recipe) -> ThinkTagCompletions:
    """How this teacher's replies are written as token ids. Raises ScoreError."""
    teacher = recipe.require_teacher()
    tokenizer = teacher_tokenizer(teacher)
    if tokenizer is None:
        raise ScoreError(
            f"teacher.rescore is set, but the tokenizer and chat template of {teacher.tokenizer or teacher.model!r} "
            "are not to be had, so replies cannot be shown to the teacher as it wrote them. Name a folder or a Hub "
            "model in teacher.tokenizer."
        )
    speaks_harmony = {"<|channel|>", "<|message|>"} <= set(tokenizer.get_added_vocab())
    kind = Harmony if speaks_harmony else ThinkTagCompletions
    return kind(teacher, recipe.generation, "teacher", tokenizer=tokenizer)


async def _servers(recipe: Recipe, wire: ThinkTagCompletions) -> list[ScoringServer]:
    ids = wire.ids(TEST_TEXT)
    proof = ProofText(TEST_TEXT, Row(ids[:1], ids[1:]), [str(wire.tokenizer.decode([index])) for index in ids])

    def prove(endpoint: Endpoint) -> Any:
        return ScoringServer.proved(endpoint, proof, name=lambda listed: wire.name, advice=_ADVICE)

    return list(await asyncio.gather(*(prove(endpoint) for endpoint in endpoints_of(recipe.require_teacher()))))


async def _chunk(
    servers: list[ScoringServer], wire: ThinkTagCompletions, table: dict[int, bytes], replies: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], int]:
    """Rows of `logprobs` with a reason in `left` where the endpoint went away; and tokens that the teacher read."""
    fit: list[tuple[str, _Shown]] = []
    rows: list[dict[str, Any]] = []
    for reply in replies:
        try:
            fit.append((reply["response_id"], _shown(wire, table, reply)))
        except _Unfit as error:
            rows.append(_row(reply["response_id"], detail=f"{_NOT}{error}"))
    shares = [fit[place :: len(servers)] for place in range(len(servers))]
    outcomes = await asyncio.gather(
        *(server.score([shown.row for _, shown in share]) for server, share in zip(servers, shares, strict=True))
    )
    sent = 0
    for (identity, shown), outcome in _pairs(shares, outcomes):
        rows.append(_scored(identity, shown, outcome))
        sent += 0 if rows[-1]["left"] else _tokens_sent(shown.row, outcome)
    return rows, sent


def _pairs(
    shares: list[list[tuple[str, _Shown]]], outcomes: list[list[Outcome]]
) -> Iterator[tuple[tuple[str, _Shown], Outcome]]:
    for share, found in zip(shares, outcomes, strict=True):
        yield from zip(share, found, strict=True)


def _tokens_sent(row: Row, outcome: Outcome) -> int:
    """Prompt tokens of the requests that brought this outcome; windows overlap, and no server takes that from a cache.

    Tries that failed are not counted: servers bill no request that they refuse.
    """
    parts = windows(row, outcome.tokens) if isinstance(outcome, Windowed) else [row]
    return sum(len(part.ids) for part in parts)


def _scored(identity: str, shown: _Shown, outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, NoLogprobs):
        if not outcome.lasting:
            return _row(identity, left=outcome.reason)
        return _row(identity, detail=f"{_NOT}{outcome.reason}")
    if isinstance(outcome, Windowed):
        return _row(identity, shown, outcome.values, f"{RESCORED} {outcome.said}")
    return _row(identity, shown, outcome, RESCORED)


def _row(
    identity: str,
    shown: _Shown | None = None,
    values: np.ndarray | None = None,
    detail: str | None = None,
    left: str | None = None,
) -> dict[str, Any]:
    return {
        "response_id": identity,
        "token_ids": shown.row.completion_ids if shown else [],
        "token_end": shown.ends if shown else None,
        "logprob": [] if values is None else values,
        "nonfinite_count": 0,
        "align_detail": detail,
        "left": left,
    }


def _shown(wire: ThinkTagCompletions, table: dict[int, bytes], reply: dict[str, Any]) -> _Shown:
    """The reply as the teacher wrote it, proved by its text and by the endpoint's count of prompt tokens."""
    messages = messages_of(wire.generation, reply["messages"])
    reasoning, answer = reply["reasoning"] or None, reply["answer"]
    try:
        prompt = wire.prompt_ids(messages, Prefix(None, None))
        whole = wire.prompt_ids(messages, Prefix(reasoning, answer))
    except FatalReply as error:
        raise _Unfit(str(error)) from None
    counted = reply["prompt_tokens"]
    if counted is not None and counted != len(prompt):
        raise _Unfit(f"the chat template gives a prompt of {len(prompt)} tokens where the endpoint counted {counted}")
    end = str(wire.tokenizer.decode(prompt[-8:])).rstrip()
    if end.endswith(THINK_OPEN) and reasoning is None:
        raise _Unfit("the chat template opens a think block, but the reply has no reasoning")
    if end.endswith(THINK_CLOSE) and reasoning is not None:
        raise _Unfit("the chat template closes the think block, but the reply has reasoning")
    row = Row(prompt, whole[len(prompt) :])
    unknown = next((index for index in row.completion_ids if index not in table), None)
    if unknown is not None:
        raise _Unfit(f"the bytes of token {unknown} are not known for this kind of tokenizer")
    try:
        return _Shown(row, align([table[index] for index in row.completion_ids], reasoning, answer))
    except AlignError as error:
        raise _Unfit(str(error)) from None
