"""Which of two replies is better: every vote is asked in both orders, and counts only where both name the same reply.

Pure functions on requests and votes: who sends them, and what becomes of the votes, is the caller's affair.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from builder.judge_ask import Judging, Said
from builder.judge_prompt import Asked
from builder.requests import Request
from builder.statistics import wilson_interval

PairVote = Literal["one", "two", "tie", "null"]
"""`tie`: the two orders name different replies; `null`: one of them, or both, could not be read."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one question. `gold` is the reference answer, None where there is none."""

    prompt_id: str
    question: str
    gold: str | None
    one: str
    two: str

    @property
    def parts(self) -> tuple[dict[str, str], dict[str, str]]:
        """Parts of the task, in both orders."""
        shared = {"QUESTION": self.question, **({} if self.gold is None else {"REFERENCE": self.gold})}
        return (
            {**shared, "FIRST REPLY": self.one, "SECOND REPLY": self.two},
            {**shared, "FIRST REPLY": self.two, "SECOND REPLY": self.one},
        )


@dataclass(frozen=True)
class PairVerdict:
    """One word a vote, and `gap`: votes for reply one less those for reply two, −k … k."""

    votes: tuple[PairVote, ...]
    gap: int
    first_places: int
    answers: int


@dataclass(frozen=True)
class PositionBias:
    """How much the order of two replies decides, over the answers that could be read: half of them should name the
    first place. `flipped` votes name another reply in the other order; intervals are Wilson's, 95%."""

    pairs: int
    answers: int
    first_places: int
    votes: int
    flipped: int

    @property
    def share(self) -> float | None:
        """Share of answers that name the first place; None without an answer."""
        return self.first_places / self.answers if self.answers else None

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.first_places, self.answers)


def pair_requests(judging: Judging, pair: Pair) -> Iterator[Request]:
    """2 × k requests, k of each order. `judging` is of task `judge_prompt.PAIR`."""
    for question in _orders(judging, pair):
        yield from judging.requests(pair.prompt_id, question)


def read_pair(judging: Judging, pair: Pair, said: Said) -> PairVerdict:
    """What the votes say; a vote that never came, or cannot be read, is `null`."""
    forth, back = (judging.votes(question, said) for question in _orders(judging, pair))
    votes = tuple(_vote(one_first, two_first) for one_first, two_first in zip(forth, back, strict=True))
    given = [vote for vote in (*forth, *back) if vote in judging.task.verdicts]
    return PairVerdict(votes, votes.count("one") - votes.count("two"), given.count("first"), len(given))


def position_bias(verdicts: Iterable[PairVerdict]) -> PositionBias:
    """The bias over many pairs."""
    found = list(verdicts)
    return PositionBias(
        pairs=len(found),
        answers=sum(one.answers for one in found),
        first_places=sum(one.first_places for one in found),
        votes=sum(vote != "null" for one in found for vote in one.votes),
        flipped=sum(one.votes.count("tie") for one in found),
    )


def _orders(judging: Judging, pair: Pair) -> tuple[Asked, Asked]:
    forth, back = pair.parts
    return judging.asked(forth), judging.asked(back)


def _vote(one_first: str, two_first: str) -> PairVote:
    if not {one_first, two_first} <= {"first", "second"}:
        return "null"
    if one_first == two_first:
        return "tie"
    return "one" if one_first == "first" else "two"
