"""How much each endpoint is asked at a time: a window that grows and halves, pauses, ejection and return.

`Flow` is the state of one endpoint and takes the time as a value; `Gate` hands its places to those that wait.
Windows grow with replies (one a round trip, doubling at first) and also with time: a long chain of thought takes
minutes and a refusal milliseconds, so a full window that nobody objects to may grow before its first reply.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

FIRST = 16
"""Requests in flight at an endpoint that nothing is known of."""
DOUBLE_AFTER_S = 0.1
"""A full window doubles this often until the first refusal: 16 become 512 in half a second."""
STEP_AFTER_S = 1.0
"""After it, a full window grows by one this often."""
EJECT_AFTER = 8
"""Requests in a row, each counted once, that failed: then the endpoint is at fault. Fewer where it bears fewer at once;
of two prompts at least, because one that kills the server does so with all its samples."""
STALL_S = 600.0
"""When no endpoint has answered for so long, the run stops."""
LONGEST_PAUSE_S = 120.0
"""Nobody is waited for longer than this at a time, whatever Retry-After says."""


def backoff_s(attempt: int, retry_after_s: float | None) -> float:
    """Seconds before the next try: the endpoint's wish up to two minutes, else full jitter up to 2, 4, 8 … 60 s.

    A wish is met up to a second late, so that a thousand refused requests do not all come back at once.
    """
    if retry_after_s is not None and not math.isnan(retry_after_s):
        return min(max(retry_after_s, 0.0), LONGEST_PAUSE_S) + random.uniform(0, 1)
    return random.uniform(0, min(60.0, 2.0 ** min(attempt, 6)))


@dataclass(frozen=True)
class Ticket:
    """One place that was taken: when (seconds of the caller's clock), and whether it tries an ejected endpoint."""

    sent_at: float
    probe: bool


@dataclass
class Flow:
    """What one endpoint bears. `ceiling` is the most requests in flight that the recipe allows.

    `limit` is the window, at least 1. An ejected endpoint gets one request at a time, after growing pauses.
    """

    ceiling: int
    in_flight: int = 0
    successes: int = 0
    ejected: bool = False
    limit: float = field(init=False)
    _doubling: bool = True
    _probing: bool = False
    _paused_until: float = -math.inf
    _full_since: float = math.inf
    _cut_at: float = -math.inf
    _rounds: int = 0
    _failing: dict[str, str] = field(default_factory=dict)
    _troubled_since: float | None = None

    def __post_init__(self) -> None:
        self.limit = float(min(self.ceiling, FIRST))

    @property
    def load(self) -> float:
        return self.in_flight / self.limit

    def ready_at(self, now: float) -> float:
        """When one more may be sent: `now`, later, or infinity while only an answer can change that."""
        if self.ejected:
            return math.inf if self._probing else max(now, self._paused_until)
        if now < self._paused_until:
            return self._paused_until
        if self.in_flight < int(self.limit):
            return now
        if self.in_flight > self.limit or self.limit >= self.ceiling:  # above it: requests from before a cut
            return math.inf
        return max(now, self._full_since + (DOUBLE_AFTER_S if self._doubling else STEP_AFTER_S))

    def take(self, now: float) -> Ticket:
        """Count one more request in flight; only where `ready_at` said now."""
        ticket = Ticket(now, probe=self.ejected)
        if self.ejected:
            self._probing = True
        elif self.in_flight >= int(self.limit):  # full for long enough, and nobody objects
            self._widen(self.limit if self._doubling else 1.0)
        self.in_flight += 1
        if self.in_flight == int(self.limit):
            self._full_since = now
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The request is no longer in flight."""
        self.in_flight -= 1
        if ticket.probe:
            self._probing = False

    def answered(self) -> None:
        """The endpoint answered as it should: what troubled it is over, and its window grows if it is used."""
        self.successes += 1
        self._failing.clear()
        self._rounds = 0
        self._troubled_since = None
        if self.ejected:
            self.ejected = False
            self.limit, self._doubling, self._paused_until = 1.0, True, -math.inf
        elif self.in_flight + 1 >= int(self.limit):
            self._widen(1.0 if self._doubling else 1.0 / self.limit)

    def busy(self, ticket: Ticket, now: float, retry_after_s: float | None) -> None:
        """The endpoint takes nothing now: halve, and send nothing for as long as it asks, else a growing while."""
        if self._troubled_since is None:
            self._troubled_since = now
        first = self._cut(ticket, now) or ticket.probe
        if first or retry_after_s is not None:
            self._pause(now, retry_after_s)

    def failed(self, ticket: Ticket, now: float, key: str, prompt: str, *, cut: bool) -> None:
        """Request `key` failed. `cut` where that speaks of too much load: timeouts, broken connections."""
        if self._troubled_since is None:
            self._troubled_since = now
        elif not self.ejected:  # the time that it was at work on this request is no stall
            self._troubled_since = min(now, self._troubled_since + now - ticket.sent_at)
        self._failing[key] = prompt
        first = cut and self._cut(ticket, now)
        many = len(self._failing) >= min(EJECT_AFTER, self.ceiling) and len(set(self._failing.values())) > 1
        if ticket.probe or (many and not self.ejected):
            self._rounds += not first
            self.eject(now)

    def eject(self, now: float) -> None:
        """Give this endpoint's share to the others until a request that tries it succeeds."""
        self.ejected = True
        if self._troubled_since is None:
            self._troubled_since = now
        self._pause(now, None)

    def stalled_at(self) -> float:
        """When this endpoint has been of no use for too long; infinity while it works.

        Refusals do not count while earlier requests are still being answered: a full server is no dead one.
        """
        useless = self.ejected or self.in_flight == 0
        return self._troubled_since + STALL_S if self._troubled_since is not None and useless else math.inf

    def _cut(self, ticket: Ticket, now: float) -> bool:
        """Halve, at most once a round trip: what was sent before the last cut says nothing new."""
        if ticket.sent_at < self._cut_at:
            return False
        self.limit = max(1.0, self.limit / 2)
        self._doubling = False
        self._cut_at = self._full_since = now
        self._rounds += 1
        return True

    def _pause(self, now: float, retry_after_s: float | None) -> None:
        self._paused_until = max(self._paused_until, now + backoff_s(self._rounds, retry_after_s))

    def _widen(self, step: float) -> None:
        self.limit = min(float(self.ceiling), self.limit + step)


class HasFlow(Protocol):
    """Whatever stands for an endpoint."""

    flow: Flow


Lane = TypeVar("Lane", bound=HasFlow)


@dataclass(frozen=True)
class Place(Generic[Lane]):
    """One place at an endpoint."""

    lane: Lane
    ticket: Ticket


@dataclass(eq=False)
class _Waiter(Generic[Lane]):
    future: "asyncio.Future[Place[Lane] | None]"
    only: Lane | None
    avoid: Lane | None


class Gate(Generic[Lane]):
    """Hands out places at the least loaded endpoint, first come, first served."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = lanes
        self.closed = False
        self.stalled = False
        self._waiting: deque[_Waiter[Lane]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def successes(self) -> int:
        return sum(lane.flow.successes for lane in self.lanes)

    async def take(self, *, only: Lane | None = None, avoid: Lane | None = None) -> Place[Lane] | None:
        """A place at `only`, else at the least loaded endpoint, at `avoid` if no other has one. None once closed."""
        if self.closed:
            return None
        waiter = _Waiter(asyncio.get_running_loop().create_future(), only, avoid)
        self._waiting.append(waiter)
        self.serve()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if not waiter.future.cancelled() and (place := waiter.future.result()) is not None:
                self.leave(place)
            raise

    def leave(self, place: Place[Lane]) -> None:
        """Give a place back. Say before what came of the request, so that its successor is not sent into a pause."""
        place.lane.flow.leave(place.ticket)
        self.serve()

    def serve(self) -> None:
        """Give out the places that there are now; after anything that changed a flow."""
        if not self._waiting:
            return
        now = asyncio.get_running_loop().time()
        if now >= self._stalled_at():
            self.stalled = True
            self.close()
        unserved: list[_Waiter[Lane]] = []
        while self._waiting:
            waiter = self._waiting.popleft()
            if waiter.future.done():  # who waited was cancelled
                continue
            lane = self._choose(waiter, now)
            if lane is not None:
                waiter.future.set_result(Place(lane, lane.flow.take(now)))
                continue
            unserved.append(waiter)
            if waiter.only is None:  # then there is nothing for those behind it either
                break
        self._waiting.extendleft(reversed(unserved))
        self._wake(now)

    def close(self) -> None:
        """Give out no place any more; all who wait get None."""
        self.closed = True
        for waiter in self._waiting:
            if not waiter.future.done():
                waiter.future.set_result(None)
        self._waiting.clear()
        self._wake(math.inf)

    def _choose(self, waiter: _Waiter[Lane], now: float) -> Lane | None:
        lanes = self.lanes if waiter.only is None else [waiter.only]
        ready = [lane for lane in lanes if lane.flow.ready_at(now) <= now]
        return min(ready, key=lambda lane: (lane is waiter.avoid, lane.flow.load), default=None)

    def _stalled_at(self) -> float:
        return max(lane.flow.stalled_at() for lane in self.lanes)

    def _wake(self, now: float) -> None:
        """Serve again when time alone opens a place, or the stall is to be noticed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            due = min(self._stalled_at(), *(lane.flow.ready_at(now) for lane in self.lanes))
            if due < math.inf:
                self._timer = asyncio.get_running_loop().call_at(due, self.serve)
