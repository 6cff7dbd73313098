"""Room for answers: never more than the limit but for one that is alone, first come first served, nothing leaks."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import room as rooms
from builder.room import Held, Room


def alone(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3), st.booleans()), max_size=30))
def test_the_limit_holds_and_all_room_comes_back(answers: list[tuple[int, int, bool]]) -> None:
    room, inside = Room(limit=20), dict[int, int]()

    async def read(number: int, size: int, turns: int) -> None:
        with Held(room) as held:
            await held.take(size)
            inside[number] = size
            assert len(inside) == 1 or sum(inside.values()) <= 20
            for _ in range(turns):
                await asyncio.sleep(0)
            del inside[number]

    async def main() -> None:
        tasks = [asyncio.create_task(read(i, size, turns)) for i, (size, turns, _) in enumerate(answers)]
        await asyncio.sleep(0)
        for task, (_, _, cancelled) in zip(tasks, answers, strict=True):
            if cancelled:
                task.cancel()
                await asyncio.sleep(0)
            inside.pop(tasks.index(task), None)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert room.used == 0
        assert not room._waiting

    alone(main())


def test_answers_come_in_the_order_of_asking() -> None:
    room, order = Room(limit=10), list[int]()

    async def read(number: int, size: int) -> None:
        with Held(room) as held:
            await held.take(size)
            order.append(number)
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(read(number, size) for number, size in enumerate([8, 9, 1, 40, 1])))

    alone(main())
    assert order == [0, 1, 2, 3, 4]


def test_an_endpoint_that_never_ends_its_answer_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "PATIENCE_S", 0.01)
    room = Room(limit=10)

    async def main() -> None:
        await room.take(10)
        await room.take(10)
        assert room.used == 20

    alone(main())


def test_who_is_cancelled_in_the_moment_of_his_turn_gives_it_back() -> None:
    room = Room(limit=10)

    async def main() -> None:
        await room.take(10)
        waiter = asyncio.create_task(room.take(10))
        await asyncio.sleep(0)
        room.give_back(10)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert room.used == 0

    alone(main())
