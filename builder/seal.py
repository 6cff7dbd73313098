"""Replies → parts of `responses` and `logprobs`. What a crash leaves unsealed comes back from the journal."""

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from builder import journal as journals
from builder.config import Recipe, Teacher
from builder.errors import EndpointError, FatalReply
from builder.identity import response_id
from builder.journal import Stored
from builder.journal_writer import Journal, ShardBusy
from builder.prefix import parse
from builder.reply import Reply
from builder.store import Run, columns_table
from builder.tokens import AlignError, align

PAID_ROLES = ("teacher", "mixed", "eval")
_SEAL_REPLIES = 4096
_SEAL_TOKENS = 4_000_000
# A part is written when this many replies or tokens wait: bounds memory, keeps parts large.


@dataclass
class Sealer:
    """Collects replies of one shard and writes them as parts."""

    run: Run
    recipe: Recipe
    shard: int
    _responses: list[dict[str, Any]] = field(default_factory=list)
    _logprobs: list[dict[str, Any]] = field(default_factory=list)
    _tokens: int = 0
    _sealed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._sealed = self.run.ids("responses")

    def add(self, stored: Stored, reply: Reply) -> float | None:
        """Queue one reply; write a part when enough wait. Returns its price in USD, None where none is declared."""
        response, logprobs = reply_rows(self.recipe.require_teacher(), stored, reply)
        cost: float | None = response["cost_usd"]
        if response["response_id"] in self._sealed:
            return cost
        self._sealed.add(response["response_id"])
        self._responses.append(response)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        self._tokens += len(reply.pieces)
        if len(self._responses) >= _SEAL_REPLIES or self._tokens >= _SEAL_TOKENS:
            self.flush()
        return cost

    def flush(self) -> None:
        """Write what waits. `logprobs` first: a reply counts as sealed once it is in `responses`."""
        known = self.run.ids("logprobs") if self._logprobs else set()
        fresh = [row for row in self._logprobs if row["response_id"] not in known]
        self.run.append("logprobs", columns_table("logprobs", fresh), shard=self.shard)
        self.run.append("responses", columns_table("responses", self._responses), shard=self.shard)
        self._responses, self._logprobs, self._tokens = [], [], 0

    def catch_up(self, journal: Journal) -> None:
        """Parse bodies that a crash left unparsed, and seal replies of this shard's journal that no part holds.

        Bodies that an earlier version could not read are tried again: they are paid for.
        """
        for before in (None, journals.RETRYABLE, journals.FATAL):
            for stored in journals.bodies(journal.path, outcome=before):
                try:
                    outcome, detail = journals.REPLY, parse(stored.body, stored.attempt.prefix).finish_reason
                except EndpointError as error:
                    outcome = journals.FATAL if isinstance(error, FatalReply) else journals.RETRYABLE
                    detail = str(error)
                if before is None or outcome == journals.REPLY:
                    journal.conclude(stored.attempt_id, outcome, detail).result()
        for stored in journals.bodies(journal.path, outcome=journals.REPLY, skip=self._sealed):
            self.add(stored, parse(stored.body, stored.attempt.prefix))
        self.flush()


def seal_orphans(run: Run, recipe: Recipe, shard: tuple[int, int]) -> None:
    """Seal journals of shards that today's shard count lacks: what a crash left there must not hide from the tables.

    Each belongs to one of today's shards; one that a process still writes is that process's own.
    """
    index, count = shard
    for path in journals.journals(run.journal_dir):
        number = int(path.stem) if path.stem.isdecimal() else -1
        if number >= count and number % count == index:
            with suppress(ShardBusy), Journal(run.journal_dir, number) as journal:
                Sealer(run, recipe, number).catch_up(journal)


def reply_rows(teacher: Teacher, stored: Stored, reply: Reply) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """One reply as a row of `responses`, and as a row of `logprobs` where the endpoint gave any."""
    attempt = stored.attempt
    paid = attempt.role in PAID_ROLES  # prices and logprobs mode are the teacher's
    identity = response_id(attempt.request_key, finish_reason=reply.finish_reason, max_tokens=attempt.max_tokens)
    prices = teacher.prices
    cost = (
        (prices.input * (reply.prompt_tokens or 0) + prices.output * (reply.completion_tokens or 0)) / 1e6
        if paid and prices
        else None
    )
    response = {
        "response_id": identity,
        "prompt_id": attempt.prompt_id,
        "role": attempt.role,
        "model": attempt.model,
        "model_revision": attempt.revision,
        "sample_index": attempt.sample_index,
        "temperature": attempt.temperature,
        "seed": attempt.seed,
        "max_tokens": attempt.max_tokens,
        "reasoning": reply.reasoning,
        "answer": reply.answer,
        "reasoning_format": reply.reasoning_format,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "tool_calls": reply.tool_calls,
        "replaced_characters": reply.replaced_characters,
        "logprobs_mode": (teacher.logprobs_mode if paid else "unknown") if reply.logprobs else None,
        "prefix_response_id": attempt.prefix_response_id,
        "prefix_chars": len(attempt.prefix or ""),
        "latency_s": stored.latency_s,
        "cost_usd": cost,
        "received_at": datetime.fromtimestamp(stored.received_at, UTC),
    }
    if not reply.logprobs:
        return response, None
    ends: list[int] | None = None
    detail = None
    if attempt.prefix is not None:
        detail = "the tokens cover the continuation only; the text begins with another model's"
    else:
        try:
            ends = align(reply.pieces, reply.reasoning, reply.answer).tolist()
        except AlignError as error:
            detail = str(error)
    return response, {
        "response_id": identity,
        "token_ids": reply.token_ids,
        "token_end": ends,
        "logprob": reply.logprobs,
        "nonfinite_count": reply.nonfinite_count,
        "align_detail": detail,
    }
