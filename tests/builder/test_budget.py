"""Limits on money and tokens hold whatever replies take, and let through what fits."""

import asyncio
import os
import random
import tempfile
from collections.abc import Container
from pathlib import Path
from typing import Any

import pytest
from endpoint import endpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from score_toys import reply
from test_generate import crashed, questions, recipe

from builder import budget as budgets
from builder import claim_file
from builder.batch_config import batch_route
from builder.batch_journal import Sent, record
from builder.budget import Budget, BudgetSpent, open_budget
from builder.claim_file import Claim
from builder.config import Teacher
from builder.errors import BudgetError, UsageError
from builder.generate import generate
from builder.journal_writer import Journal
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


class Shards:
    """Shards of a run that start, spend, seal, end and die in any order; tokens only, one after the other."""

    def __init__(self, root: Path, limit: int, count: int) -> None:
        self.run, self.limit, self.count = Run(root), limit, count
        self.tabled = 0
        self.journals = [0] * count
        self.living: dict[int, tuple[Budget, Any, Claim]] = {}
        self.dead: list[tuple[Budget, Any, Claim]] = []

    def used(self, skip: Container[int]) -> tuple[int, float]:
        return self.tabled + sum(kept for index, kept in enumerate(self.journals) if index not in skip), 0.0

    @property
    def paid(self) -> int:
        return self.tabled + sum(self.journals)

    def start(self, index: int) -> None:
        budget, taken = Budget(None, self.limit, recount=self.used), list[Claim]()

        def hold(*given: Any) -> Claim:
            taken.append(claim_file.hold(*given))
            return taken[-1]

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(budgets, "hold", hold)
            spending = budget.spending(self.run, (index, self.count))
            spending.__enter__()
        self.living[index] = budget, spending, taken[0]

    def seal(self, index: int) -> None:
        self.tabled, self.journals[index] = self.tabled + self.journals[index], 0

    def spend(self, index: int, size: int, taken: int) -> bool:
        budget = self.living[index][0]
        if budget.over(0, size) is not None:
            return False
        budget.hold(0, size).settle(0, min(size, taken))
        self.journals[index] += min(size, taken)
        return True

    def end(self, index: int) -> None:
        self.seal(index)
        self.living.pop(index)[1].__exit__(None, None, None)

    def die(self, index: int) -> None:
        """As `kill -9` does: the lock goes, the record and the journal stay."""
        self.dead.append(self.living.pop(index))
        claim = self.dead[-1][2]
        claim._ended.set()
        claim._thread.join()
        os.close(claim._descriptor)
        claim._descriptor = os.open(os.devnull, os.O_RDONLY)  # for what Python closes after the test


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 4),
    st.integers(0, 400),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 60), st.integers(1, 60)), max_size=60),
)
def test_shards_that_start_end_and_die_in_any_order_keep_the_limit_of_the_run(
    count: int, limit: int, steps: list[tuple[int, int, int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(claim_file, "WATCH_S", 0.01)  # a killed one is of this process here, which lives
        patched.setattr(claim_file, "POLL_S", 0.005)
        shards = Shards(Path(folder), limit, count)
        for number, what, size, taken in steps:
            index = number % count
            if index not in shards.living:
                shards.start(index)
            elif what == 0:
                shards.end(index)
            elif what == 1:
                shards.die(index)
            elif what == 2:
                shards.seal(index)
            else:
                shards.spend(index, size, taken)
            assert shards.paid <= limit
        for index in list(shards.living):
            shards.end(index)
        shards.count = 1
        shards.journals = [sum(shards.journals)]
        shards.start(0)  # who comes last, alone, may spend to the last token
        assert shards.spend(0, limit - shards.paid, limit) or shards.paid == limit
        shards.end(0)
        assert shards.paid == limit


def test_shards_that_start_together_get_equal_shares_and_the_message_says_that_it_is_one(tmp_path: Path) -> None:
    shards = Shards(tmp_path, 900, 3)
    for index in range(3):
        shards.start(index)
        assert shards.spend(index, 300, 300)
        assert not shards.spend(index, 1, 1)
    with pytest.raises(
        BudgetSpent, match=r"--max-tokens-total 900 \(this shard's share .*a rerun takes what the other"
    ):
        asyncio.run(shards.living[0][0].reserve(ASKED, 100))
    for index in range(3):
        shards.end(index)


def test_what_only_a_living_shards_journal_holds_is_not_given_to_another(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(claim_file, "WATCH_S", 0.01)
        shards = Shards(tmp_path, 100, 2)
        shards.start(1)
        assert shards.spend(1, 40, 40)
        shards.die(1)
        shards.start(1)  # (100 - 40) / 2 more, and 40 that are in no table yet
        shards.start(0)
        assert [shards.spend(1, 31, 31), shards.spend(1, 30, 30), shards.spend(0, 31, 31)] == [False, True, False]
        assert shards.spend(0, 30, 30) and shards.paid == 100
        shards.end(0)
        shards.end(1)


def test_a_living_shard_without_the_same_limit_is_named(tmp_path: Path) -> None:
    shards = Shards(tmp_path, 900, 2)
    shards.start(0)
    costly = Budget(1.0, None, PRICES, recount=lambda skip: (0, 0.0))
    with pytest.raises(BudgetError, match=r"Shard 0 of 2 is at work .* without --max-cost"):
        costly.spending(Run(tmp_path), (1, 2)).__enter__()
    shards.end(0)


def test_replies_that_only_a_journal_holds_are_paid_for(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with endpoint() as server:
        calm = Run(tmp_path / "calm")
        generate(calm, recipe(server), questions(2))
        crashed(run, recipe(server), questions(2))
    assert run.rows("responses") == 0 < calm.rows("responses")
    spent, known = (open_budget(one, Teacher(model="t"), None, 10**6).tokens for one in (run, calm))
    assert spent == known > 0


def test_what_another_shards_open_batch_may_take_is_given_to_nobody(tmp_path: Path) -> None:
    run = Run(tmp_path)
    sent = Sent("b-1", batch_route("http://x/v1", 0.5), "m", None, True, 3, 100, 300, 0.0)
    with Journal(run.journal_dir, 1) as journal:
        record(journal, sent, []).result()
    for index, left in ((0, 600), (1, 1000)):  # the shard that sent it holds it itself, when it takes the batch up
        budget = Budget(None, 1000, PRICES, recount=lambda skip: (0, 0.0))
        with budget.spending(run, (index, 2)):
            assert budget.over(0, left // 2) is None
            assert budget.over(0, left // 2 + 1) is not None
