"""Hard limits on what a run may spend: counted before a request is sent, with all that is in flight at its dearest."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from builder.config import Teacher
from builder.errors import BudgetError, UsageError
from builder.identity import Message
from builder.rescore import rescored_ids
from builder.schema import PAID_ROLES
from builder.section import Prices
from builder.store import Run

_TEMPLATE_TOKENS: Final = 256
"""Allowance for what a chat template adds to the messages, tokens."""


class BudgetSpent(Exception):
    """The next request could exceed a limit although nothing else is in flight; the message says which."""


@dataclass
class Budget:
    """What replies may cost in USD and in tokens (prompt and completion), those of earlier calls included.

    A request reserves its dearest outcome, `max_tokens` and a token a byte of its messages, until its reply says what
    it took: so a limit is never exceeded, and near it fewer requests are in flight. Attempts that brought no reply are
    free here; whether the endpoint billed them is not known (`maybe_billed` counts them).
    """

    max_cost: float | None = None
    max_tokens: int | None = None
    prices: Prices | None = None
    cost: float = 0.0
    tokens: int = 0
    _reserved_cost: float = 0.0
    _reserved_tokens: int = 0
    _in_flight: int = 0
    _waiting: list["asyncio.Future[None]"] = field(default_factory=list)

    async def reserve(self, messages: Sequence[Message], max_tokens: int, prefix: str = "") -> "Reservation":
        """Wait until the request fits. Raises BudgetSpent when it never will."""
        size = sum(len(message["content"].encode()) for message in messages) + len(prefix.encode()) + _TEMPLATE_TOKENS
        tokens, cost = size + max_tokens, self.price(size, max_tokens)
        while (over := self._over(tokens, cost)) is not None:
            if not self._in_flight:
                raise BudgetSpent(over)
            changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(changed)
            await changed
        self._reserved_tokens += tokens
        self._reserved_cost += cost
        self._in_flight += 1
        return Reservation(self, tokens, cost)

    def require(self, prompt_tokens: int, what: str) -> None:
        """Raise BudgetError where so many prompt tokens at once would go over a limit."""
        over = self._over(prompt_tokens, self.price(prompt_tokens, 0)) if prompt_tokens else None
        if over is not None:
            raise BudgetError(f"{what} stopped before its first request at {over}. Rerun with a larger limit.")

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """USD by the declared prices; 0 where none are."""
        if self.prices is None:
            return 0.0
        return (self.prices.input * prompt_tokens + self.prices.output * completion_tokens) / 1e6

    def _over(self, tokens: int, cost: float) -> str | None:
        whole_cost, whole_tokens = self.cost + self._reserved_cost + cost, self.tokens + self._reserved_tokens + tokens
        if self.max_cost is not None and whole_cost > self.max_cost:
            return f"--max-cost {self.max_cost:g}: ${self.cost:.4f} are spent, one more request may cost ${cost:.4f}"
        if self.max_tokens is not None and whole_tokens > self.max_tokens:
            return f"--max-tokens-total {self.max_tokens:,}: {self.tokens:,} are used, one more may take {tokens:,}"
        return None

    def settle(self, reservation: "Reservation", prompt_tokens: int, completion_tokens: int) -> None:
        """Count what a request really took, and let those look again that wait for room."""
        self._reserved_tokens -= reservation.tokens
        self._reserved_cost -= reservation.cost
        self._in_flight -= 1
        self.tokens += prompt_tokens + completion_tokens
        self.cost += self.price(prompt_tokens, completion_tokens)
        waiting, self._waiting = self._waiting, []
        for changed in waiting:
            if not changed.done():
                changed.set_result(None)


@dataclass
class Reservation:
    """The dearest outcome of one request; `settle` it exactly once, with zeros where no reply came."""

    budget: Budget
    tokens: int
    cost: float

    def settle(self, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Give it back for what was really used."""
        self.budget.settle(self, prompt_tokens, completion_tokens)


def open_budget(
    run: Run,
    teacher: Teacher,
    max_cost: float | None,
    max_tokens: int | None,
    *,
    others: Mapping[str, Prices | None] | None = None,
) -> Budget:
    """A budget with what this run's replies took so far; those of a role in `others` at its own prices.

    Raises UsageError for a limit on money without prices of the teacher.
    """
    if max_cost is not None and teacher.prices is None:
        raise UsageError(
            f"--max-cost {max_cost:g} needs prices to count with: set teacher.prices={{input: USD, output: USD}} (per "
            "million tokens), or limit tokens with --max-tokens-total."
        )
    budget = Budget(max_cost, max_tokens, teacher.prices)
    if max_cost is not None or max_tokens is not None:
        budget.tokens, budget.cost = _used(run, budget, others or {})
    return budget


def _used(run: Run, budget: Budget, others: Mapping[str, Prices | None]) -> tuple[int, float]:
    """Tokens and USD of the replies that are paid by the recipe's prices, those read again by the teacher twice."""
    rescored = rescored_ids(run)
    prompt = completion = again = tokens_of_others = 0
    cost_of_others = 0.0
    for _, rows in run.by_part("responses", ["response_id", "role", "prompt_tokens", "completion_tokens"]):
        for identity, role, sent, written in zip(*(column.to_pylist() for column in rows.itercolumns()), strict=True):
            if role in others:
                tokens_of_others += (sent or 0) + (written or 0)
                cost_of_others += Budget(prices=others[role]).price(sent or 0, written or 0)
            elif role in PAID_ROLES:
                prompt += sent or 0
                completion += written or 0
                again += ((sent or 0) + (written or 0)) * (identity in rescored)
    tokens = prompt + completion + again + tokens_of_others
    return tokens, budget.price(prompt + again, completion) + cost_of_others
