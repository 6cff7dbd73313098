"""One request of `generate`: recorded before it is sent, its body before it is parsed, tried again where that helps."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from builder import journal as journals
from builder.client import Client, Lane, RefusedError, RetryableError, backoff_s
from builder.errors import EmptyReply, EndpointError, FatalReply
from builder.journal import Attempt, Stored
from builder.journal_writer import Journal
from builder.prefix import parse
from builder.reply import Reply
from builder.requests import Request
from builder.seal import Sealer
from builder.wire import Wire

MAX_TRIES = 6


@dataclass
class Tally:
    """What one call of `generate` did. Tokens and USD count replies received now, not those of earlier runs.

    `failed` requests had all their tries; `set_aside` ones were refused for good; after an interruption some requests
    are neither, and `stored_before` counts only as far as the run had come.
    """

    total: int = 0
    stored_before: int = 0
    replies: int = 0
    failed: int = 0
    set_aside: int = 0
    retried: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    without_logprobs: int = 0
    without_reasoning: int = 0
    cut: int = 0
    stopped: bool = False
    last_error: str | None = None

    @property
    def done(self) -> int:
        return self.stored_before + self.replies


Progress = Callable[[Tally], None]


@dataclass
class Asker:
    """Asks one request at a time and counts what came; `stop` ends the waiting between two tries."""

    wire: Wire
    journal: Journal
    sealer: Sealer
    progress: Progress
    client: Client
    tally: Tally
    stop: asyncio.Event

    async def ask(self, request: Request, lane: Lane | None = None) -> Reply | None:
        """One request with its retries; None when it kept failing, or an interruption came between two tries.

        Raises FatalReply and RefusedError.
        """
        empty = 0
        for attempt in range(1, MAX_TRIES + 1):
            try:
                return await self._try(request, lane)
            except (FatalReply, RefusedError):
                raise
            except EndpointError as error:
                self.tally.last_error = str(error)
                empty += isinstance(error, EmptyReply)
                wish = error.retry_after_s if isinstance(error, RetryableError) else None
            if attempt < MAX_TRIES:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.stop.wait(), backoff_s(attempt, wish))
                if self.stop.is_set():
                    return None
                self.tally.retried += 1
        if empty == MAX_TRIES:  # a model that ends at once under this seed will do so again
            raise FatalReply(f"{self.tally.last_error}, {MAX_TRIES} times in a row")
        self.tally.failed += 1
        self.progress(self.tally)
        return None

    def set_aside(self, error: FatalReply) -> None:
        """Count a request that would fail again."""
        self.tally.set_aside += 1
        self.tally.last_error = str(error)
        self.progress(self.tally)

    async def _try(self, request: Request, lane: Lane | None) -> Reply:
        """One attempt: recorded before it is sent, its body recorded before it is parsed."""
        with self.client.taken(lane) as taken:
            attempt = self._attempt(request, taken.endpoint.url)
            attempt_id = await asyncio.wrap_future(self.journal.begin(attempt))
            self.tally.in_flight += 1
            sent = time.perf_counter()
            try:
                payload = self.wire.payload(request, token_ids=taken.gives_token_ids)
                body = await self.client.post(self.wire.route, payload, taken)
            except EndpointError as error:
                outcome = journals.FATAL if isinstance(error, FatalReply | RefusedError) else journals.FAILED
                await _on_disk(self.journal.conclude(attempt_id, outcome, str(error)))
                raise
            finally:
                self.tally.in_flight -= 1
        latency_s = time.perf_counter() - sent
        await _on_disk(self.journal.store(attempt_id, body, latency_s))
        try:
            reply = parse(body, request.prefix)
        except EndpointError as error:
            outcome = journals.FATAL if isinstance(error, FatalReply) else journals.RETRYABLE
            await _on_disk(self.journal.conclude(attempt_id, outcome, str(error)))
            raise
        await _on_disk(self.journal.conclude(attempt_id, journals.REPLY, reply.finish_reason))
        stored = Stored(attempt, attempt_id, b"", datetime.now(UTC).timestamp(), latency_s)
        self._count(reply, self.sealer.add(stored, reply))
        return reply

    def _attempt(self, request: Request, url: str) -> Attempt:
        return Attempt(
            model=self.wire.asked.model,
            revision=self.wire.asked.revision,
            request_key=request.key,
            prompt_id=request.prompt_id,
            role=self.wire.role,
            temperature=request.temperature,
            sample_index=request.sample_index,
            seed=request.seed,
            max_tokens=request.max_tokens,
            endpoint=url,
            prefix_response_id=request.prefix_response_id,
            prefix=request.prefix,
        )

    def _count(self, reply: Reply, cost_usd: float | None) -> None:
        tally = self.tally
        tally.replies += 1
        tally.prompt_tokens += reply.prompt_tokens or 0
        tally.completion_tokens += reply.completion_tokens or 0
        tally.cost_usd += cost_usd or 0.0
        tally.without_logprobs += self.wire.generation.logprobs and not reply.logprobs
        tally.without_reasoning += reply.reasoning is None
        tally.cut += reply.finish_reason == "length"
        self.progress(tally)


async def _on_disk(recorded: "Future[None]") -> None:
    """Wait for a record that must be written even when the one who waits is cancelled."""
    await asyncio.shield(asyncio.wrap_future(recorded))
