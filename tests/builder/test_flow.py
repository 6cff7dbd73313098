import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from endpoint import DROP, Ask, Endpoint, endpoint, wait_until
from test_generate import distinct, questions, recipe

from builder import ask as asking
from builder import client as clients
from builder import flow as flows
from builder import generate as generating
from builder import journal
from builder.errors import EndpointError
from builder.flow import EJECT_AFTER, FIRST, STALL_S, Flow, Gate, Ticket, backoff_s
from builder.generate import generate
from builder.store import Run

QUIET = 0.05
"""Seconds that everything waits here in place of two minutes."""


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (asking, flows):
        monkeypatch.setattr(module, "backoff_s", lambda attempt, wish: QUIET * (wish is None or min(wish, 1.0)))


def fill(flow: Flow, now: float) -> list[Ticket]:
    """Take whatever may be sent now."""
    tickets = []
    while flow.ready_at(now) <= now:
        tickets.append(flow.take(now))
    return tickets


def full(ceiling: int = 100) -> tuple[Flow, list[Ticket]]:
    """An endpoint whose window has grown to its ceiling and is full, at time 0 to 9."""
    flow = Flow(ceiling)
    tickets = [ticket for step in range(10) for ticket in fill(flow, float(step))]
    assert flow.in_flight == ceiling
    return flow, tickets


def refuse(flow: Flow, tickets: list[Ticket], now: float, wish: float | None = None) -> None:
    for ticket in tickets:
        flow.busy(ticket, now, wish)
        flow.leave(ticket)


@pytest.mark.parametrize(
    ("wish", "low", "high"),
    [
        (7.0, 7, 8),
        (-3.0, 0, 1),
        (86400.0, 120, 121),
        (float("inf"), 120, 121),
        (float("nan"), 0, 60),
        (None, 0, 60),
    ],
)
def test_back_off_honours_a_wish_within_reason(wish: float | None, low: float, high: float) -> None:
    for attempt in (1, 3, 5000):
        assert low <= backoff_s(attempt, wish) <= high


def test_back_off_is_jittered_fully_and_grows() -> None:
    tried = {attempt: [backoff_s(attempt, None) for _ in range(500)] for attempt in (1, 4, 9)}
    for attempt, most in ((1, 2), (4, 16), (9, 60)):
        assert min(tried[attempt]) < most / 10
        assert most / 2 < max(tried[attempt]) <= most


def test_a_window_starts_small_and_a_small_ceiling_is_the_start() -> None:
    assert len(fill(Flow(512), 0.0)) == FIRST
    assert len(fill(Flow(3), 0.0)) == 3


def test_a_full_window_doubles_while_nobody_objects_although_no_reply_came_yet() -> None:
    flow = Flow(512)
    sent = []
    for tenth in range(7):
        fill(flow, tenth * flows.DOUBLE_AFTER_S)
        sent.append(flow.in_flight)
    assert sent == [16, 32, 64, 128, 256, 512, 512]


def test_replies_double_a_window_each_round_trip() -> None:
    flow = Flow(512)
    for ticket in fill(flow, 0.0):
        flow.leave(ticket)
        flow.answered()
        fill(flow, 0.01)
    assert flow.in_flight == 2 * FIRST


def test_a_window_that_is_not_used_does_not_grow() -> None:
    flow = Flow(512)
    for now in range(50):
        ticket = flow.take(float(now))
        flow.leave(ticket)
        flow.answered()
    assert flow.limit == FIRST


def test_a_refusal_halves_once_a_round_trip_and_never_below_one() -> None:
    flow, tickets = full(100)
    refuse(flow, tickets, 20.0)
    assert flow.limit == 50
    for now in range(100, 2000, 100):
        refuse(flow, fill(flow, float(now)), now + 1.0)
    assert flow.limit == 1
    assert len(fill(flow, 2100.0)) == 1


def test_after_a_refusal_a_window_grows_by_one_a_round_trip_up_to_the_ceiling() -> None:
    flow, tickets = full(100)
    refuse(flow, tickets, 20.0, wish=0.0)
    now, sizes = 30.0, []
    out = fill(flow, now)
    for _ in range(60):
        sizes.append(len(out))
        now += 0.5
        going, out = out, []
        for ticket in going:
            flow.leave(ticket)
            flow.answered()
            out += fill(flow, now)
    assert sizes[0] == 50
    assert all(0 <= after - before <= 2 for before, after in pairwise(sizes))
    assert sizes[-1] == 100


def test_a_full_window_grows_by_one_a_second_while_long_replies_are_made() -> None:
    flow, tickets = full(100)
    refuse(flow, tickets, 20.0, wish=0.0)
    for second in range(30, 60):
        fill(flow, float(second))
    assert 75 <= flow.in_flight <= 81


def test_nothing_is_sent_before_retry_after_has_passed() -> None:
    flow, tickets = full(10)
    refuse(flow, tickets[:1], 20.0, wish=30.0)
    assert 50 <= flow.ready_at(21.0) <= 51
    refuse(flow, tickets[1:2], 21.0, wish=60.0)  # a longer wish counts although it came of the same round trip
    assert 81 <= flow.ready_at(22.0) <= 82
    refuse(flow, tickets[2:3], 22.0, wish=0.0)
    assert flow.ready_at(23.0) > 80


def test_failures_in_a_row_eject_and_one_success_brings_back() -> None:
    flow, tickets = full(100)
    for index, ticket in enumerate(tickets[:EJECT_AFTER]):
        assert not flow.ejected
        flow.failed(ticket, 20.0, f"request {index}", f"prompt {index // 4}", cut=True)
        flow.leave(ticket)
    assert flow.ejected
    (probe,) = fill(flow, 200.0)
    assert probe.probe
    assert fill(flow, 1000.0) == []  # one at a time
    flow.answered()
    flow.leave(probe)
    assert not flow.ejected


def test_pauses_between_probes_grow_up_to_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.random, "uniform", lambda low, high: high)
    flow = Flow(10)
    flow.eject(0.0)
    now, pauses = 0.0, []
    for _ in range(8):
        due = flow.ready_at(now)
        pauses.append(due - now)
        now = due
        (probe,) = fill(flow, now)
        flow.failed(probe, now, "request", "prompt", cut=False)
        flow.leave(probe)
    assert pauses == sorted(pauses)
    assert pauses[-1] == 60


@pytest.mark.parametrize("cut", [True, False])
def test_one_prompt_never_ejects(cut: bool) -> None:
    flow, tickets = full(100)
    for index, ticket in enumerate(tickets[:50]):
        flow.failed(ticket, 20.0, f"sample {index}", "poison", cut=cut)
        flow.leave(ticket)
    assert not flow.ejected
    assert flow.limit == (50 if cut else 100)


def test_one_request_that_is_tried_again_and_again_never_ejects() -> None:
    flow, tickets = full(100)
    for ticket in tickets[:50]:
        flow.failed(ticket, 20.0, "other", "other", cut=False)
        flow.failed(ticket, 20.0, "poison", "poison", cut=False)
        flow.leave(ticket)
    assert not flow.ejected


def test_successes_between_failures_keep_an_endpoint() -> None:
    flow, tickets = full(100)
    for index, ticket in enumerate(tickets):
        flow.failed(ticket, 20.0, f"request {index}", f"prompt {index}", cut=False)
        flow.leave(ticket)
        if index % 5 == 0:
            flow.answered()
    assert not flow.ejected


def test_an_endpoint_stalls_after_trouble_without_any_answer_but_not_while_it_works() -> None:
    flow, tickets = full(10)
    refuse(flow, tickets[1:], 20.0)
    assert flow.stalled_at() == float("inf")  # one request is still being answered
    flow.leave(tickets[0])
    assert flow.stalled_at() == 20.0 + STALL_S
    flow.answered()
    assert flow.stalled_at() == float("inf")


def test_time_spent_on_a_long_request_is_no_stall() -> None:
    flow = Flow(1)
    refuse(flow, fill(flow, 0.0), 0.0, wish=0.0)
    (ticket,) = fill(flow, 2.0)
    flow.failed(ticket, 5000.0, "request", "prompt", cut=True)
    flow.leave(ticket)
    assert flow.stalled_at() > 5000.0


@dataclass(eq=False)
class Lane:
    name: str
    ceiling: int = 4
    flow: Flow = field(init=False)

    def __post_init__(self) -> None:
        self.flow = Flow(self.ceiling)


def run(work: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work(), 20))


def test_places_go_to_the_least_loaded_endpoint_by_its_window() -> None:
    async def work() -> None:
        small, large = Lane("small", 1), Lane("large", 3)
        gate = Gate([small, large])
        places = [await gate.take() for _ in range(4)]
        assert Counter(place.lane.name for place in places if place) == {"large": 3, "small": 1}
        for place in places:
            assert place is not None
            gate.leave(place)
        assert (small.flow.in_flight, large.flow.in_flight) == (0, 0)

    run(work)


def test_a_request_goes_elsewhere_where_there_is_an_elsewhere() -> None:
    async def work() -> None:
        one, other = Lane("one"), Lane("other", 1)
        gate = Gate([one, other])
        for expected in ("other", "one"):
            place = await gate.take(avoid=one)
            assert place is not None
            assert place.lane.name == expected

    run(work)


def test_who_waits_longest_is_served_first_and_the_cancelled_lose_no_place() -> None:
    async def work() -> None:
        gate = Gate([Lane("one", 1)])
        first = await gate.take()
        order: list[int] = []

        async def wait(number: int) -> None:
            place = await gate.take()
            assert place is not None
            order.append(number)
            gate.leave(place)

        tasks = [asyncio.create_task(wait(number)) for number in range(4)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        assert first is not None
        gate.leave(first)
        tasks[1].cancel()  # it holds a place already, and has not heard
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [2, 3]
        assert gate.lanes[0].flow.in_flight == 0

    run(work)


def test_a_closed_gate_turns_away_those_who_wait_and_those_who_come() -> None:
    async def work() -> None:
        gate = Gate([Lane("one", 1)])
        await gate.take()
        waiting = asyncio.create_task(gate.take())
        await asyncio.sleep(0)
        gate.close()
        assert await waiting is None
        assert await gate.take() is None

    run(work)


def test_a_healthy_endpoint_is_filled_to_its_ceiling(tmp_path: Path) -> None:
    with endpoint(delay_s=0.5) as server:
        tally = generate(Run(tmp_path), recipe(server, size=100), questions(60))
        assert server.most_in_flight == 100
    assert (tally.replies, tally.retried) == (240, 0)


def limited(most: int, headers: dict[str, str]) -> Callable[[Endpoint], Callable[[Ask], Any]]:
    """A server that refuses more than `most` requests at a time."""

    def of(server: Endpoint) -> Callable[[Ask], Any]:
        return lambda ask: web.Response(status=429, headers=headers) if server.in_flight > most else None

    return of


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0.2"}, {"retry-after-ms": "100"}])
def test_a_server_that_bears_few_gets_few_and_every_request_is_answered(
    headers: dict[str, str], tmp_path: Path, short_waits: None
) -> None:
    with endpoint(delay_s=0.02) as server:
        server.script = limited(4, headers)(server)
        tally = generate(Run(tmp_path), recipe(server, size=64), questions(40))
    assert (tally.replies, tally.failed, tally.set_aside) == (160, 0, 0)
    assert tally.retried < 160


@pytest.mark.parametrize("wish", [None, "1", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_storm_of_429_costs_no_request_its_tries(wish: str | None, tmp_path: Path, short_waits: None) -> None:
    headers = {} if wish is None else {"Retry-After": wish}
    ends = time.monotonic() + 2.0

    def script(ask: Ask) -> Any:
        return web.Response(status=429, headers=headers) if ask.number > 4 and time.monotonic() < ends else None

    with endpoint(script=script) as server:
        tally = generate(Run(tmp_path), recipe(server, size=16), questions(10))
        refused = len(server.asks) - 40
    assert (tally.replies, tally.failed, tally.set_aside) == (40, 0, 0)
    assert refused > asking.MAX_TRIES  # more than one request's tries, by few requests
    assert journal.counts(tmp_path / "journal") == {"reply": 40, "failed": refused}


def test_a_server_that_refuses_even_its_list_of_models_is_waited_for(tmp_path: Path, short_waits: None) -> None:
    with endpoint(script=lambda ask: 429 if ask.number < 9 else None, models_status=429) as server:
        assert generate(Run(tmp_path), recipe(server), questions(5)).replies == 20


def test_a_request_that_alone_is_refused_for_ever_is_given_up(
    tmp_path: Path, short_waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "MAX_REFUSALS", 5)
    monkeypatch.setattr(flows, "backoff_s", lambda attempt, wish: 0.0)
    with endpoint(delay_s=0.002) as server:
        server.script = lambda ask: 429 if ask.question == "What is 1 + 1?" else None
        tally = generate(Run(tmp_path), recipe(server, samples=1, temperatures=1.0), questions(100))
    assert (tally.replies, tally.failed) == (99, 1)


def test_an_endpoint_that_dies_and_returns_loses_nothing(tmp_path: Path, short_waits: None) -> None:
    dead = threading.Event()

    def script(ask: Ask) -> Any:
        if ask.number == 20:
            dead.set()
            threading.Timer(1.5, dead.clear).start()
        return DROP if dead.is_set() else None

    run = Run(tmp_path)
    with endpoint(script=script, delay_s=0.01) as server:
        tally = generate(run, recipe(server, size=16), questions(30))
        assert not dead.is_set()
    assert (tally.replies, tally.failed, tally.set_aside) == (120, 0, 0)
    assert distinct(run) == 120


def test_of_two_endpoints_the_dead_one_is_left_out_and_the_other_does_its_share(
    tmp_path: Path, short_waits: None
) -> None:
    with endpoint(delay_s=0.01) as good, endpoint(delay_s=0.01) as bad:
        bad.script = lambda ask: 500 if ask.number else None
        tally = generate(Run(tmp_path), recipe(good, bad), questions(40))
        assert (tally.replies, tally.failed, tally.set_aside) == (160, 0, 0)
        assert len(good.asks) == 159
        assert len(bad.asks) < 60


def test_an_ejected_endpoint_returns_and_takes_its_share_again(tmp_path: Path, short_waits: None) -> None:
    ends = time.monotonic() + 1.0
    with endpoint(delay_s=0.05) as good, endpoint(delay_s=0.05) as bad:
        bad.script = lambda ask: DROP if ask.number and time.monotonic() < ends else None
        tally = generate(Run(tmp_path), recipe(good, bad), questions(80))
        assert tally.replies == 320
        assert bad.answered > 40


def test_a_refused_request_goes_to_the_other_endpoint_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "backoff_s", lambda attempt, wish: 60.0)
    with endpoint() as good, endpoint() as busy:
        busy.script = lambda ask: web.Response(status=429, headers={"Retry-After": "100"}) if ask.number else None
        started = time.monotonic()
        tally = generate(Run(tmp_path), recipe(good, busy), questions(10))
    assert (tally.replies, tally.failed) == (40, 0)
    assert time.monotonic() - started < 30


def test_an_endpoint_that_is_down_at_the_start_joins_when_it_is_up(
    tmp_path: Path, short_waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with endpoint(delay_s=0.02) as good, endpoint(delay_s=0.02) as late:
        check = generating._Generation._check_model

        async def fails_for_the_late_one(self: Any, client: Any, lane: clients.Lane) -> None:
            if lane.endpoint.url == late.url:
                raise clients.AbsentError("nobody there")
            await check(self, client, lane)

        monkeypatch.setattr(generating._Generation, "_check_model", fails_for_the_late_one)
        tally = generate(Run(tmp_path), recipe(good, late), questions(30))
        assert tally.replies == 120
        assert len(late.asks) > 20
        assert late.asks[0].number == 0


def test_an_endpoint_that_joins_late_is_believed_only_once_it_gave_a_reply(
    tmp_path: Path, short_waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = "http://127.0.0.1:9/v1"
    with endpoint(delay_s=0.01) as good, endpoint(script=lambda ask: 400) as wrong:
        check = generating._Generation._check_model

        async def fails_for_the_wrong_one(self: Any, client: Any, lane: clients.Lane) -> None:
            if lane.endpoint.url == wrong.url:
                raise clients.AbsentError("nobody there")
            await check(self, client, lane)

        monkeypatch.setattr(generating._Generation, "_check_model", fails_for_the_wrong_one)
        tally = generate(Run(tmp_path), recipe(good, wrong, down), questions(20))
    assert (tally.replies, tally.set_aside, tally.failed) == (80, 0, 0)


@pytest.mark.parametrize("said", [500, 429, DROP])
def test_when_all_endpoints_stay_down_the_run_stops_and_says_what_is_stored(
    said: Any, tmp_path: Path, short_waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "STALL_S", 1.0)
    script = lambda ask: said if ask.number > 20 else None  # noqa: E731
    with (
        endpoint(script=script) as one,
        endpoint(script=script) as other,
        pytest.raises(EndpointError, match=r"No endpoint has answered .* of 400 replies are stored\. Rerun"),
    ):
        generate(Run(tmp_path), recipe(one, other), questions(100))
    assert distinct(Run(tmp_path)) == 42
    assert "maybe_billed" not in journal.counts(tmp_path / "journal")
    with endpoint() as server:
        tally = generate(Run(tmp_path), recipe(server), questions(100))
        assert (tally.done, len(server.asks)) == (400, 400 - tally.stored_before)


@pytest.mark.parametrize("said", [DROP, 500, 502])
def test_a_poison_prompt_among_fifty_is_set_aside_and_hurts_nobody(
    said: Any, tmp_path: Path, short_waits: None
) -> None:
    bad = "What is 25 + 25?"
    with endpoint(script=lambda ask: said if ask.question == bad else None, delay_s=0.02) as server:
        given = recipe(server, samples=1, temperatures=1.0, size=4)
        tally = generate(Run(tmp_path), given, questions(51))
        assert sum(ask.question == bad for ask in server.asks) == asking.MAX_TRIES
        assert len(server.asks) == 50 + asking.MAX_TRIES
    assert (tally.replies, tally.set_aside, tally.failed) == (50, 1, 0)
    assert "the request is at fault and not the endpoint" in (tally.last_error or "")


def test_a_body_without_end_sets_one_request_aside(
    tmp_path: Path, short_waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "MAX_BODY_BYTES", 2**20)
    huge = b'{"choices": "' + bytes(2**21)
    with endpoint(script=lambda ask: huge if ask.number == 9 else None) as server:
        tally = generate(Run(tmp_path), recipe(server), questions(10))
    assert (tally.replies, tally.set_aside) == (39, 1)
    assert "more than 1,048,576 bytes" in (tally.last_error or "")


def test_a_stalled_reply_is_asked_again(tmp_path: Path, short_waits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_TIMEOUT", clients.Timeout(None, connect=5, read=0.5, write=5, pool=None))

    class Stall:
        async def __aiter__(self) -> Any:
            yield b'{"choices'
            await asyncio.sleep(5)

    with endpoint(script=lambda ask: web.Response(body=Stall()) if ask.number == 9 else None) as server:
        tally = generate(Run(tmp_path), recipe(server), questions(5))
    assert (tally.replies, tally.retried) == (20, 1)


def test_nothing_counts_as_maybe_billed_that_was_never_sent(tmp_path: Path) -> None:
    """Interrupted for good between the record of an attempt and its sending."""
    from builder.journal_writer import Journal

    held, go_on = threading.Event(), threading.Event()
    with endpoint() as server, Journal(tmp_path) as kept:

        async def work() -> None:
            asker = asking.Asker(None, kept, None, None, None, None, None, None)  # type: ignore[arg-type]
            task = asyncio.create_task(asker._recorded(attempt))
            await asyncio.to_thread(held.wait)
            task.cancel()
            await asyncio.sleep(0.05)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task

        attempt = asking.Attempt("toy", None, "00" * 32, "p", "teacher", 1.0, 0, 0, 9, server.url)
        kept._submit(lambda connection: (held.set(), go_on.wait(10)))  # a slow disk
        run(work)
    assert "maybe_billed" not in journal.counts(tmp_path)
    assert server.asks == []


def test_waits_end_with_an_interruption(tmp_path: Path) -> None:
    started = time.monotonic()
    stops: list[generating._Generation] = []
    make = generating._Generation.run

    async def remember(self: Any, *given: Any) -> None:
        stops.append(self)
        asyncio.get_running_loop().call_later(0.5, self.stop.set)
        await make(self, *given)

    script = lambda ask: web.Response(status=429, headers={"Retry-After": "100"}) if ask.number else None  # noqa: E731
    with endpoint(script=script) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(generating._Generation, "run", remember)
        tally = generate(Run(tmp_path), recipe(server), questions(10))
        wait_until(lambda: server.in_flight == 0)
    assert (tally.stopped, tally.failed) == (True, 0)
    assert time.monotonic() - started < 20
