"""One request of `generate`: recorded before it is sent, its body before it is parsed, tried again where that helps."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from builder import journal as journals
from builder.client import Client, Lane, RefusedError, RetryableError, backoff_s
from builder.config import Recipe
from builder.errors import EmptyReply, EndpointError, FatalReply
from builder.journal import Attempt, Stored
from builder.journal_writer import Journal
from builder.reply import Reply, parse_reply
from builder.requests import Request, sampling
from builder.seal import Sealer

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

    recipe: Recipe
    role: str
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
            try:
                body, latency_s = await self.client.chat(self._payload(request, taken), taken)
            except EndpointError as error:
                outcome = journals.FATAL if isinstance(error, FatalReply | RefusedError) else journals.FAILED
                await _on_disk(self.journal.conclude(attempt_id, outcome, str(error)))
                raise
            finally:
                self.tally.in_flight -= 1
        await _on_disk(self.journal.store(attempt_id, body, latency_s))
        try:
            reply = parse_reply(body)
        except EndpointError as error:
            outcome = journals.FATAL if isinstance(error, FatalReply) else journals.RETRYABLE
            await _on_disk(self.journal.conclude(attempt_id, outcome, str(error)))
            raise
        await _on_disk(self.journal.conclude(attempt_id, journals.REPLY, reply.finish_reason))
        stored = Stored(attempt, attempt_id, b"", datetime.now(UTC).timestamp(), latency_s)
        self._count(reply, self.sealer.add(stored, reply))
        return reply

    def _attempt(self, request: Request, url: str) -> Attempt:
        teacher = self.recipe.require_teacher()
        return Attempt(
            model=teacher.model,
            revision=teacher.revision,
            request_key=request.key,
            prompt_id=request.prompt_id,
            role=self.role,
            temperature=request.temperature,
            sample_index=request.sample_index,
            seed=request.seed,
            max_tokens=self.recipe.generation.max_tokens,
            endpoint=url,
        )

    def _payload(self, request: Request, lane: Lane) -> dict[str, Any]:
        generation = self.recipe.generation
        parameters = sampling(generation, request.temperature)
        body = {name: parameters.pop(name) for name in generation.extra_body}
        # Reporting flags change nothing of the reply; token ids are vLLM's extension, dropped where it is refused.
        reporting: dict[str, Any] = {"logprobs": True, "top_logprobs": 0} if generation.logprobs else {}
        if generation.logprobs and lane.gives_token_ids:
            body["return_token_ids"] = True
        return {
            "model": self.recipe.require_teacher().model,
            "messages": request.messages,
            "max_tokens": generation.max_tokens,
            "seed": request.seed,
            **parameters,
            **reporting,
            **({"extra_body": body} if body else {}),
        }

    def _count(self, reply: Reply, cost_usd: float | None) -> None:
        tally = self.tally
        tally.replies += 1
        tally.prompt_tokens += reply.prompt_tokens or 0
        tally.completion_tokens += reply.completion_tokens or 0
        tally.cost_usd += cost_usd or 0.0
        tally.without_logprobs += self.recipe.generation.logprobs and not reply.logprobs
        tally.without_reasoning += reply.reasoning is None
        tally.cut += reply.finish_reason == "length"
        self.progress(tally)


async def _on_disk(recorded: "Future[None]") -> None:
    """Wait for a record that must be written even when the one who waits is cancelled."""
    await asyncio.shield(asyncio.wrap_future(recorded))
