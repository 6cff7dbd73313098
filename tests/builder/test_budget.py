"""Limits on money and tokens hold whatever replies take, and let through what fits."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_toys import reply

from builder.budget import Budget, BudgetSpent, open_budget
from builder.config import Teacher
from builder.errors import UsageError
from builder.section import Prices
from builder.store import Run, columns_table

ASKED = [{"role": "user", "content": "x" * 100}]
PROMPT = 100 + 256
PRICES = Prices(input=1.0, output=10.0)


def spend(budget: Budget, limits: list[int], taken: list[float], workers: int) -> int:
    """Ask with these limits until the budget ends it; each reply takes a share of its limit. Returns replies."""
    waiting = list(zip(limits, taken, strict=True))
    done = 0

    async def work() -> None:
        nonlocal done
        while waiting:
            limit, share = waiting.pop()
            reservation = await budget.reserve(ASKED, limit)
            await asyncio.sleep(0)
            reservation.settle(random.Random(limit).randint(1, PROMPT), int(limit * share))
            done += 1

    async def run() -> None:
        ended = await asyncio.gather(*(work() for _ in range(workers)), return_exceptions=True)
        assert all(one is None or isinstance(one, BudgetSpent) for one in ended)

    asyncio.run(run())
    return done


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=40),
    st.floats(0, 1),
    st.integers(1, 9),
    st.integers(0, 60_000),
    st.floats(0, 0.5),
)
def test_no_limit_is_ever_exceeded(
    limits: list[int], share: float, workers: int, max_tokens: int, max_cost: float
) -> None:
    budget = Budget(max_cost, max_tokens, PRICES)
    spend(budget, limits, [share] * len(limits), workers)
    assert budget.tokens <= max_tokens
    assert budget.cost <= max_cost + 1e-9


def test_a_budget_that_holds_everything_stops_nothing() -> None:
    limits = [100] * 30
    assert spend(Budget(None, 30 * (PROMPT + 100), None), limits, [1.0] * 30, 8) == 30
    assert spend(Budget(), limits, [1.0] * 30, 8) == 30


def test_what_replies_do_not_take_is_there_for_others() -> None:
    """Ten replies at their dearest would not fit, ten as short as they are do: fewer are in flight near the limit."""
    assert spend(Budget(None, 3 * (PROMPT + 1000), None), [1000] * 10, [0.01] * 10, 10) == 10 - 0
    spent = Budget(None, 2 * (PROMPT + 1000), None)
    assert spend(spent, [1000] * 10, [1.0] * 10, 10) < 10


def test_the_message_says_what_is_spent_and_what_one_more_may_take() -> None:
    budget = Budget(0.01, None, PRICES)
    with pytest.raises(BudgetSpent, match=r"--max-cost 0.01: \$0.0000 are spent, one more request may cost \$0.0104"):
        asyncio.run(budget.reserve(ASKED, 1000))
    with pytest.raises(BudgetSpent, match="--max-tokens-total 1,000: 0 are used, one more may take 1,356"):
        asyncio.run(Budget(None, 1000).reserve(ASKED, 1000))


def test_earlier_replies_of_the_run_count_and_rollouts_do_not(tmp_path: Path) -> None:
    run = Run(tmp_path)
    rows: list[dict[str, Any]] = [
        reply("a", "p", prompt_tokens=1000, completion_tokens=2000),
        reply("b", "p", role="mixed", prompt_tokens=None, completion_tokens=500),
        reply("c", "p", role="student", prompt_tokens=9000, completion_tokens=9000),
    ]
    run.append("responses", columns_table("responses", rows))
    budget = open_budget(run, Teacher(model="t", prices=PRICES), 1.0, None)
    assert budget.tokens == 3500
    assert budget.cost == pytest.approx((1000 * 1.0 + 2500 * 10.0) / 1e6)


def test_a_limit_on_money_needs_prices(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--max-cost 5 needs prices"):
        open_budget(Run(tmp_path), Teacher(model="t"), 5.0, None)
