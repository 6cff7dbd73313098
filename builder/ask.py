"""One request of `generate`: recorded before it is sent, its body before it is parsed, tried again where that helps."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from builder import flow
from builder import journal as journals
from builder.budget import Budget
from builder.client import BusyError, Client, Lane, RefusedError, RejectedError, RetryableError
from builder.errors import EmptyReply, EndpointError, FatalReply
from builder.flow import Gate, Place, backoff_s
from builder.journal import Attempt, Stored
from builder.journal_writer import Journal
from builder.prefix import parse
from builder.reply import Reply
from builder.requests import Request
from builder.room import Held
from builder.seal import Sealer
from builder.tally import MAX_TRIES, Progress, Tally
from builder.wire import Wire

MAX_REFUSALS = 100
"""Refusals (429) of one request while others are answered; so many mean that the endpoint will never take this one."""


class _Tries:
    """What one request went through."""

    def __init__(self, gate: Gate[Lane]) -> None:
        self._gate = gate
        self._since_second = self._heard = gate.successes
        self.failed = 0
        self.empty = 0
        self.refused = 0
        self.used = (0, 0)  # tokens of prompt and completion that the reply took
        self.last_error = ""

    @property
    def exhausted(self) -> bool:
        return self.failed >= MAX_TRIES or self.refused >= MAX_REFUSALS

    @property
    def others(self) -> int:
        """Requests that were answered after this one had failed twice: a server that dies answers none."""
        return self._gate.successes - self._since_second

    def refuse(self) -> None:
        """The endpoint was busy: its own affair, unless others were answered since the last time."""
        self.refused += self._gate.successes > self._heard
        self._heard = self._gate.successes

    def fail(self, error: EndpointError) -> float:
        """The request failed; seconds to wait before the next try."""
        self.failed += 1
        if self.failed == 2:
            self._since_second = self._gate.successes
        self.empty += isinstance(error, EmptyReply)
        self.last_error = str(error)
        wish = error.retry_after_s if isinstance(error, RetryableError) else None
        return 0.0 if self.exhausted else backoff_s(self.failed, wish)


@dataclass
class Asker:
    """Asks one request at a time and counts what came; `stop` ends the waiting between two tries.

    `prove` sees the first reply of each endpoint and raises EndpointError when this run cannot use it.
    """

    wire: Wire
    journal: Journal
    sealer: Sealer
    progress: Progress
    client: Client
    tally: Tally
    stop: asyncio.Event
    prove: Callable[[Lane, Reply], None]
    budget: Budget = field(default_factory=Budget)

    async def ask(self, request: Request, lane: Lane | None = None) -> Reply | None:
        """One request with its retries, at `lane` or wherever there is room; None when it kept failing or `stop` came.

        An endpoint's own trouble (429, nobody there, ejected) is waited for and costs the request no try. Raises
        FatalReply, also for a request that fails while others succeed; BusyError where `lane`, one of several, takes
        nothing; BudgetSpent where it could exceed a limit; any other EndpointError ends the run.
        """
        reservation = await self.budget.reserve(request.messages, request.max_tokens, request.prefix or "")
        tries = _Tries(self.client.gate)
        try:
            return await self._ask(request, lane, tries)
        finally:
            reservation.settle(*tries.used)

    async def _ask(self, request: Request, lane: Lane | None, tries: "_Tries") -> Reply | None:
        gate = self.client.gate
        tried: Lane | None = None
        while not tries.exhausted:
            place = await gate.take(only=lane, avoid=tried)
            if place is None:
                self._raise_if_stalled()
                return None
            self.tally.retried += tried is not None
            tried = place.lane
            try:
                reply = await self._try(request, place, again=tries.failed > 0)
            except RefusedError:
                raise
            except BusyError:
                if lane is not None and len(self.client.lanes) > 1:
                    raise
                tries.refuse()
            except FatalReply as error:
                if lane is not None or tried.proven:
                    raise
                if isinstance(error, RejectedError):
                    tried.gives_token_ids = not tried.gives_token_ids  # which may be what it refuses
            except EndpointError as error:
                if not place.ticket.probe and await self._stopped_after(tries.fail(error)):
                    return None
            else:
                tries.used = (reply.prompt_tokens or 0, reply.completion_tokens or 0)
                if not tried.proven:
                    self.prove(tried, reply)
                return reply
        self._give_up(tries)
        return None

    def _give_up(self, tries: "_Tries") -> None:
        """Count a request that had all its tries. Raises FatalReply where the next call would fail in the same way."""
        if tries.empty == MAX_TRIES:  # a model that ends at once under this seed will do so again
            raise FatalReply(f"{self.tally.last_error}, {MAX_TRIES} times in a row")
        if tries.failed == MAX_TRIES and tries.others:
            raise FatalReply(
                f"{tries.last_error}; it failed {MAX_TRIES} times, and {tries.others:,} others were answered "
                "meanwhile: the request is at fault and not the endpoint"
            )
        self.tally.failed += 1
        self.progress(self.tally)

    def set_aside(self, error: FatalReply) -> None:
        """Count a request that would fail again."""
        self.tally.set_aside += 1
        self.tally.last_error = str(error)
        self.progress(self.tally)

    def _raise_if_stalled(self) -> None:
        """Raise EndpointError where the gate closed because no endpoint is of use, not by an interruption."""
        if self.client.gate.stalled:
            raise EndpointError(
                f"No endpoint has answered for {flow.STALL_S / 60:.0f} minutes; last: {self.tally.last_error}. "
                f"{self.tally.done:,} of {self.tally.total:,} replies are stored. Rerun the same command when an "
                "endpoint is back: only what is missing is sent."
            )

    async def _stopped_after(self, seconds: float) -> bool:
        """Wait, less where `stop` comes first; whether it has come."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)
        return self.stop.is_set()

    async def _try(self, request: Request, place: Place[Lane], *, again: bool) -> Reply:
        """One attempt: recorded before it is sent, its body recorded before it is parsed. `again` after a failure."""
        attempt = self.attempt(request, place.lane.endpoint.url)
        with Held(self.client.room) as held:
            attempt_id, body, latency_s = await self._answer(attempt, request, place, held, again=again)
            await on_disk(self.journal.store(attempt_id, body, latency_s))
            try:
                reply = parse(body, request.prefix, self.wire.role)
            except EndpointError as error:
                self._judge(request, place, error, again=again)
                outcome = journals.FATAL if isinstance(error, FatalReply) else journals.RETRYABLE
                await on_disk(self.journal.conclude(attempt_id, outcome, str(error)))
                raise
            del body
        self._judge(request, place, None, again=again)
        await on_disk(self.journal.conclude(attempt_id, journals.REPLY, reply.finish_reason))
        stored = Stored(attempt, attempt_id, b"", datetime.now(UTC).timestamp(), latency_s)
        self.count(reply, self.sealer.add(stored, reply))
        return reply

    async def _answer(
        self, attempt: Attempt, request: Request, place: Place[Lane], held: Held, *, again: bool
    ) -> tuple[int, bytes, float]:
        """Id of the attempt, body, and seconds from sending to the body's end; gives the place back."""
        try:
            attempt_id = await self._recorded(attempt)
            self.tally.in_flight += 1
            sent = time.perf_counter()
            try:
                payload = self.wire.payload(request, token_ids=place.lane.gives_token_ids)
                body = await self.client.post(self.wire.route, payload, place.lane, held)
            except EndpointError as error:
                if isinstance(error, RefusedError):  # before the place is free: nobody is to take it
                    self.stop.set()
                    self.client.gate.close()
                self._judge(request, place, error, again=again)
                outcome = journals.FATAL if isinstance(error, FatalReply | RefusedError) else journals.FAILED
                await on_disk(self.journal.conclude(attempt_id, outcome, str(error)))
                raise
            finally:
                self.tally.in_flight -= 1
        finally:
            self.client.gate.leave(place)
        return attempt_id, body, time.perf_counter() - sent

    async def _recorded(self, attempt: Attempt) -> int:
        """The attempt's id once it is on disk. Where that is cancelled, the record says that nothing was sent."""
        recorded = self.journal.begin(attempt)
        try:
            return await asyncio.wrap_future(recorded)
        except asyncio.CancelledError:
            if not recorded.cancelled():
                attempt_id = await asyncio.wrap_future(recorded)
                await on_disk(self.journal.conclude(attempt_id, journals.FAILED, "interrupted before it was sent"))
            raise

    def _judge(self, request: Request, place: Place[Lane], error: EndpointError | None, *, again: bool) -> None:
        """Tell the endpoint's flow what came. An answer that is fatal for one request is no fault of the endpoint.

        A request that failed before says nothing new about how much the endpoint bears.
        """
        lane, now = place.lane, asyncio.get_running_loop().time()
        if error is not None:
            self.tally.last_error = str(error)
            self.tally.errors[error.kind] = self.tally.errors.get(error.kind, 0) + 1
        if error is None or (lane.proven and isinstance(error, FatalReply | EmptyReply)):
            lane.flow.answered()
        elif isinstance(error, BusyError):
            lane.flow.busy(place.ticket, now, error.retry_after_s)
        elif not isinstance(error, RefusedError):
            overloaded = isinstance(error, RetryableError) and error.overloaded
            lane.flow.failed(place.ticket, now, request.key, request.prompt_id, cut=overloaded and not again)
        self.client.gate.serve()

    def attempt(self, request: Request, url: str) -> Attempt:
        """The request as the journal has it; `url` is what it calls the endpoint."""
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

    def count(self, reply: Reply, cost_usd: float | None) -> None:
        """Count a reply that is stored."""
        tally = self.tally
        tally.replies += 1
        tally.prompt_tokens += reply.prompt_tokens or 0
        tally.completion_tokens += reply.completion_tokens or 0
        tally.cost_usd += cost_usd or 0.0
        tally.without_logprobs += self.wire.generation.logprobs and not reply.logprobs
        tally.without_reasoning += reply.reasoning is None
        tally.cut += reply.finish_reason == "length"
        self.progress(tally)


async def on_disk(recorded: "Future[None]") -> None:
    """Wait for a record that must be written even when the one who waits is cancelled."""
    await asyncio.shield(asyncio.wrap_future(recorded))
