"""prompts → responses: ask what is missing, record before and after, resume from whatever is there."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from builder import journal as journals
from builder.client import Client, RefusedError, RetryableError, backoff_s
from builder.config import Recipe
from builder.errors import EndpointError, FatalReply
from builder.journal import Attempt, Journal, Stored
from builder.prompts import Prompts
from builder.reply import Reply, parse_reply
from builder.requests import Request, requests, sampling, satisfied
from builder.seal import Sealer
from builder.store import Run

MAX_TRIES = 6


@dataclass
class Tally:
    """What one call of `generate` did. Tokens and USD count replies received now, not those of earlier runs."""

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


def generate(
    run: Run,
    recipe: Recipe,
    prompts: Prompts,
    *,
    role: str = "teacher",
    shard: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Tally:
    """Send every request of the recipe that no stored reply answers, and seal all replies into tables.

    Raises EndpointError when the endpoint cannot serve this recipe, JournalError when a reply cannot be recorded.
    Requests that keep failing are counted in `Tally.failed`; a later call asks them again.
    """
    with Journal(run.journal_dir, shard[0]) as journal:
        sealer = Sealer(run, recipe, shard[0])
        sealer.catch_up(journal)
        stored = journals.stored_replies(run.journal_dir)
        work = _Generation(recipe, role, journal, sealer, progress or (lambda tally: None))
        missing = work.missing(requests(recipe, prompts, shard=shard), stored)
        asyncio.run(work.run(missing))
        sealer.flush()
    return work.tally


class _Generation:
    """State of one call of `generate`: many workers draw requests from one iterator."""

    def __init__(self, recipe: Recipe, role: str, journal: Journal, sealer: Sealer, progress: Progress) -> None:
        self.recipe = recipe
        self.teacher = recipe.require_teacher()
        self.role = role
        self.journal = journal
        self.sealer = sealer
        self.progress = progress
        self.tally = Tally()
        # Reporting flags change nothing of the reply; token ids are vLLM's extension, dropped where it is refused.
        self.reporting: dict[str, Any] = {"logprobs": True, "top_logprobs": 0} if recipe.generation.logprobs else {}
        self.reporting_body: dict[str, Any] = {"return_token_ids": True} if recipe.generation.logprobs else {}
        self.stop = asyncio.Event()

    def missing(self, wanted: Iterator[Request], stored: dict[bytes, int]) -> Iterator[Request]:
        """Requests without a stored answer; counts the others."""
        for request in wanted:
            self.tally.total += 1
            if satisfied(stored, request.key, self.recipe.generation.max_tokens):
                self.tally.stored_before += 1
            else:
                yield request

    async def run(self, missing: Iterator[Request]) -> None:
        first = next(missing, None)
        if first is None:
            return
        async with Client(self.teacher.resolved_endpoints()) as client:
            with _drain_on_interrupt(self.stop):
                await self._canary(client, first)
                workers = [asyncio.create_task(self._work(client, missing)) for _ in range(client.capacity)]
                try:
                    await asyncio.gather(*workers)
                except BaseException:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)
                    raise
        self.tally.stopped = self.stop.is_set()

    async def _canary(self, client: Client, request: Request) -> None:
        """The first request goes alone: an endpoint that cannot serve this recipe costs one reply, not a thousand."""
        lane = client.choose()
        with suppress(FatalReply, RefusedError):  # a server without a list of models may still answer
            try:
                names = await client.models(lane)
            except RetryableError as error:
                raise EndpointError(
                    f"{error}. Nothing was sent. Check that the server runs and that the address is its "
                    "OpenAI-compatible base, such as http://host:8000/v1."
                ) from None
            if names and self.teacher.model not in names:
                raise EndpointError(
                    f"{lane.endpoint.url} serves {', '.join(names[:5])}, not {self.teacher.model!r}. Nothing was sent. "
                    "Set teacher.model to the name that the server uses."
                )
        try:
            reply = await self._ask(client, request)
        except FatalReply as error:
            if not self.reporting_body or "return_token_ids" not in str(error):
                raise
            self.reporting_body = {}
            reply = await self._ask(client, request)
        if (
            reply is not None
            and self.recipe.generation.logprobs
            and not reply.logprobs
            and self.recipe.selection.needs_logprobs
        ):
            raise EndpointError(
                f"{lane.endpoint.url} gives no logprobs, and this recipe selects by divergence, which needs them. "
                "One reply was paid and is kept. Serve the model where logprobs are given (builder probe shows), or "
                "select without the student: selection.selector=random (or longest), no rule score_missing, and "
                "generation.logprobs=false."
            )

    async def _work(self, client: Client, missing: Iterator[Request]) -> None:
        for request in missing:
            try:
                await self._ask(client, request)
            except FatalReply as error:
                self.tally.set_aside += 1
                self.tally.last_error = str(error)
            if self.stop.is_set():
                return

    async def _ask(self, client: Client, request: Request) -> Reply | None:
        """One request with its retries; None when it kept failing. Raises FatalReply and RefusedError."""
        error: EndpointError | None = None
        for attempt in range(MAX_TRIES):
            if attempt:
                self.tally.retried += 1
                wish = error.retry_after_s if isinstance(error, RetryableError) else None
                await asyncio.sleep(backoff_s(attempt, wish))
                if self.stop.is_set():
                    break
            try:
                return await self._try(client, request)
            except (FatalReply, RefusedError):
                raise
            except EndpointError as failure:
                error = failure
                self.tally.last_error = str(failure)
        self.tally.failed += 1
        self.progress(self.tally)
        return None

    async def _try(self, client: Client, request: Request) -> Reply:
        """One attempt: recorded before it is sent, its body recorded before it is parsed."""
        lane = client.choose()
        attempt = self._attempt(request, lane.endpoint.url)
        attempt_id = await asyncio.wrap_future(self.journal.begin(attempt))
        self.tally.in_flight += 1
        try:
            body, latency_s = await client.chat(self._payload(request), lane)
        except EndpointError as error:
            outcome = journals.FATAL if isinstance(error, FatalReply | RefusedError) else journals.FAILED
            await asyncio.wrap_future(self.journal.conclude(attempt_id, outcome, str(error)))
            raise
        finally:
            self.tally.in_flight -= 1
        await asyncio.wrap_future(self.journal.store(attempt_id, body, latency_s))
        try:
            reply = parse_reply(body)
        except EndpointError as error:
            outcome = journals.FATAL if isinstance(error, FatalReply) else journals.RETRYABLE
            await asyncio.wrap_future(self.journal.conclude(attempt_id, outcome, str(error)))
            raise
        await asyncio.wrap_future(self.journal.conclude(attempt_id, journals.REPLY, reply.finish_reason))
        stored = Stored(attempt, attempt_id, b"", datetime.now(UTC).timestamp(), latency_s)
        self._count(reply, self.sealer.add(stored, reply))
        return reply

    def _attempt(self, request: Request, url: str) -> Attempt:
        return Attempt(
            model=self.teacher.model,
            revision=self.teacher.revision,
            request_key=request.key,
            prompt_id=request.prompt_id,
            role=self.role,
            temperature=request.temperature,
            sample_index=request.sample_index,
            seed=request.seed,
            max_tokens=self.recipe.generation.max_tokens,
            endpoint=url,
        )

    def _payload(self, request: Request) -> dict[str, Any]:
        generation = self.recipe.generation
        parameters = sampling(generation, request.temperature)
        body = {name: parameters.pop(name) for name in generation.extra_body} | self.reporting_body
        return {
            "model": self.teacher.model,
            "messages": request.messages,
            "max_tokens": generation.max_tokens,
            "seed": request.seed,
            **parameters,
            **self.reporting,
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


@contextmanager
def _drain_on_interrupt(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C lets requests in flight finish; the second ends at once. Only where signals can be set."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGINT, lambda: _interrupt(stop, loop))
    except (NotImplementedError, RuntimeError, ValueError):
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _interrupt(stop: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    if stop.is_set():
        loop.remove_signal_handler(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    stop.set()
