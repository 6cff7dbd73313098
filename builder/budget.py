"""Hard limits on what a run may spend: counted before a request is sent, with all that is in flight at its dearest."""

import asyncio
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from builder import journal as journals
from builder.batch_config import price_factor_of
from builder.batch_journal import factors, unsettled
from builder.claim_file import hold, holders, lock_files, locked
from builder.claim_record import Record
from builder.config import Teacher
from builder.errors import BudgetError, EndpointError, UsageError
from builder.identity import Message, response_id
from builder.prefix import parse
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
    free here; whether the endpoint billed them is not known (`maybe_billed` counts them). `recount` gives tokens and
    USD of the run's replies, less what the journals of some shards hold that is not in the tables yet.
    """

    max_cost: float | None = None
    max_tokens: int | None = None
    prices: Prices | None = None
    cost: float = 0.0
    tokens: int = 0
    recount: Callable[[Container[int]], tuple[int, float]] | None = None
    is_share: bool = field(default=False, init=False)
    _most_cost: float | None = field(default=None, init=False)
    _most_tokens: float | None = field(default=None, init=False)
    _reserved_cost: float = field(default=0.0, init=False)
    _reserved_tokens: int = field(default=0, init=False)
    _in_flight: int = field(default=0, init=False)
    _waiting: list["asyncio.Future[None]"] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._most_cost, self._most_tokens = self.max_cost, self.max_tokens

    @contextmanager
    def spending(self, run: Run, shard: tuple[int, int]) -> Iterator[None]:
        """Spend no more than this shard's share while inside, so that N shards at once keep the run's limit.

        A share is what the run has not used and living shards have not been given, over the number of shards that have
        none: all of it for one shard alone. Raises as `builder.claim_file.hold`, and BudgetError where a living shard
        has no limit of the same kind.
        """
        if self.recount is None:
            yield
            return
        folder = run.root / "claims"
        path = folder / f"spend-{shard[0]:03d}.lock"
        with locked(folder / "spend.starting"):  # one after the other: none divides what another is being given
            claim = hold(path, "spend", shard)
            try:
                others = [one.record for one in holders(lock_files(folder, "spend")) if one.is_alive]
                others = [one for one in others if one.nonce != claim.record.nonce]
                living = {one.index for one in others}  # looked at before what they have sealed
                tabled = dict(zip(("tokens", "cost"), self.recount({shard[0], *living}), strict=True))
                self.tokens, self.cost = self.recount(living)
                held = self._held_by_batches(run, {shard[0], *living})
                self.tokens, self.cost = self.tokens + held["tokens"], self.cost + held["cost"]
                self.is_share = shard[1] > 1
                parts = max(1, shard[1] - len(others))
                self._most_tokens = _share(self.max_tokens, self.tokens, others, "tokens", parts)
                self._most_cost = _share(self.max_cost, self.cost, others, "cost", parts)
                most = {"tokens": self._most_tokens, "cost": self._most_cost}
                # with what only this shard's journal holds: others do not look there
                claim.allow({name: top - tabled[name] - held[name] for name, top in most.items() if top is not None})
            except BaseException:
                claim.release()
                raise
        try:
            yield
        finally:
            claim.release()

    def _held_by_batches(self, run: Run, skip: Container[int]) -> dict[str, Any]:
        """Tokens and USD that open offline batches may still take at their dearest, but for those of shards in `skip`:
        a shard that works on its own holds them itself."""
        tokens, cost = 0, 0.0
        for path in journals.journals(run.journal_dir):
            for sent in unsettled(path) if not (path.stem.isdecimal() and int(path.stem) in skip) else ():
                tokens += sent.prompt_tokens + sent.completion_tokens
                price = self.price(sent.prompt_tokens, sent.completion_tokens)
                cost += price_factor_of(sent.endpoint) * price
        return {"tokens": tokens, "cost": cost}

    async def reserve(self, messages: Sequence[Message], max_tokens: int, prefix: str = "") -> "Reservation":
        """Wait until the request fits. Raises BudgetSpent when it never will."""
        size = prompt_at_most(messages, prefix)
        while (over := self.over(size, max_tokens)) is not None:
            if not self._in_flight:
                raise BudgetSpent(over)
            changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(changed)
            await changed
        return self.hold(size, max_tokens)

    def over(self, prompt_tokens: int, completion_tokens: int) -> str | None:
        """The limit that so many tokens more could exceed, with all that is in flight at its dearest; None: none."""
        return self._over(prompt_tokens + completion_tokens, self.price(prompt_tokens, completion_tokens))

    def hold(self, prompt_tokens: int, completion_tokens: int) -> "Reservation":
        """Reserve so many tokens, whatever the limits say: for what is being paid already."""
        tokens, cost = prompt_tokens + completion_tokens, self.price(prompt_tokens, completion_tokens)
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
        if self._most_cost is not None and whole_cost > self._most_cost:
            limit = f"--max-cost {self.max_cost:g}{self._share_of(f'${self._most_cost:.4f}')}"
            return f"{limit}: ${self.cost:.4f} are spent, one more request may cost ${cost:.4f}"
        if self._most_tokens is not None and whole_tokens > self._most_tokens:
            limit = f"--max-tokens-total {self.max_tokens:,}{self._share_of(f'{self._most_tokens:,.0f} tokens')}"
            return f"{limit}: {self.tokens:,} are used, one more may take {tokens:,}"
        return None

    def _share_of(self, most: str) -> str:
        if not self.is_share:
            return ""
        return f" (this shard's share of it ends where the run has {most}; a rerun takes what the other shards left)"

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


def prompt_at_most(messages: Sequence[Message], prefix: str = "") -> int:
    """Tokens that messages take at most: one a byte, and what a chat template adds."""
    return sum(len(message["content"].encode()) for message in messages) + len(prefix.encode()) + _TEMPLATE_TOKENS


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
        prices = Budget(prices=teacher.prices)
        budget.recount = lambda skip: _used(run, prices, others or {}, skip)
        budget.tokens, budget.cost = budget.recount(())
    return budget


def _share(limit: float | None, used: float, others: Sequence[Record], name: str, parts: int) -> float | None:
    """How far one of so many shards may bring what is used; None without a limit."""
    if limit is None:
        return None
    for one in others:
        if name not in one.allowance:
            option = "--max-cost" if name == "cost" else "--max-tokens-total"
            raise BudgetError(
                f"Shard {one.index} of {one.count} is at work ({one}) without {option}, so nothing could keep both "
                "within it. Start all shards of a run with the same limits, or wait until that one has ended."
            )
    return used + max(0.0, limit - used - sum(one.allowance[name] for one in others)) / parts


def _used(
    run: Run, budget: Budget, others: Mapping[str, Prices | None], skip: Container[int] = ()
) -> tuple[int, float]:
    """Tokens and USD of the replies that are paid by the recipe's prices, those read again by the teacher twice.

    Replies that only a journal holds count, too, but for those of the shards in `skip`.
    """
    rescored, batched = rescored_ids(run), factors(run.journal_dir)
    prompt = completion = again = tokens_of_others = 0
    cost_of_others = 0.0
    for identity, role, sent, written in _paid(run, skip):
        if role in others:
            tokens_of_others += sent + written
            cost_of_others += Budget(prices=others[role]).price(sent, written)
        elif role in PAID_ROLES and identity in batched:
            tokens_of_others += sent + written
            cost_of_others += batched[identity] * budget.price(sent, written)
            again += (sent + written) * (identity in rescored)
        elif role in PAID_ROLES:
            prompt += sent
            completion += written
            again += (sent + written) * (identity in rescored)
    tokens = prompt + completion + again + tokens_of_others
    return tokens, budget.price(prompt + again, completion) + cost_of_others


def _paid(run: Run, skip: Container[int]) -> Iterator[tuple[str, str, int, int]]:
    """Response id, role, prompt tokens and completion tokens of every reply, those of a crash's journal included."""
    columns = ["response_id", "role", "prompt_tokens", "completion_tokens"]
    known, seen = set[str](), set[Path]()

    def tabled() -> Iterator[tuple[str, str, int, int]]:
        for part, rows in run.by_part("responses", columns):
            if part not in seen:
                seen.add(part)
                for identity, role, sent, written in zip(*(one.to_pylist() for one in rows.itercolumns()), strict=True):
                    if identity not in known:
                        known.add(identity)
                        yield identity, role, sent or 0, written or 0

    yield from tabled()
    for path in journals.journals(run.journal_dir):
        if not (path.stem.isdecimal() and int(path.stem) in skip):
            yield from _unsealed(path, known)
    yield from tabled()  # what was sealed, and left its journal, meanwhile


def _unsealed(path: Path, known: set[str]) -> Iterator[tuple[str, str, int, int]]:
    for outcome in (None, journals.REPLY):
        for stored in journals.bodies(path, outcome=outcome, skip=known):
            asked = stored.attempt
            try:
                reply = parse(stored.body, asked.prefix, asked.role)
            except EndpointError:
                continue  # no reply: free here, like every attempt without one
            identity = response_id(asked.request_key, finish_reason=reply.finish_reason, max_tokens=asked.max_tokens)
            if identity not in known:
                known.add(identity)
                yield identity, asked.role, reply.prompt_tokens or 0, reply.completion_tokens or 0
