"""Long texts in windows, for a server that bears less than the model's context. Pure functions on token ids."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

SMALLEST: Final = 2_048
"""Tokens below which no window goes: with half of it as context, a logprob says little of the whole text."""


@dataclass(frozen=True)
class Row:
    """Token ids of one text: logprobs are wanted of `completion_ids`, each given all that stands before it."""

    prompt_ids: list[int]
    completion_ids: list[int]

    @property
    def ids(self) -> list[int]:
        """All of them, in order."""
        return self.prompt_ids + self.completion_ids

    @property
    def tokens(self) -> int:
        """What a request for this row takes: its ids and the one token that servers add."""
        return len(self.prompt_ids) + len(self.completion_ids) + 1


@dataclass(frozen=True)
class Windowed:
    """Logprobs (nats, float32, one a completion token) of a row that was sent in windows of `tokens`.

    An approximation: what lies behind the first window is conditioned on `tokens` / 2 or more tokens before it, not on
    the whole text.
    """

    values: np.ndarray
    tokens: int

    @property
    def said(self) -> str:
        """What a table says of it."""
        return f"in windows of {self.tokens:,} tokens: later tokens see the {self.tokens // 2:,} or more before them"


def sizes(row: Row) -> list[int]:
    """Windows to try, in tokens, largest first: the powers of two below the row's own size, down to `SMALLEST`.

    Powers of two, so that one limit of a server gives one size, whichever row meets it first.
    """
    largest = (row.tokens - 1).bit_length() - 1
    return [1 << power for power in range(largest, -1, -1) if SMALLEST <= 1 << power < row.tokens]


def windows(row: Row, size: int) -> Iterator[Row]:
    """The row cut into requests of at most `size` tokens, each with at least half of that as context.

    Completion ids of the parts join to those of the row. The first part begins where the row begins, if the prompt
    leaves room; the last is as full as the others.
    """
    ids, room = row.ids, size - 1
    start = len(row.prompt_ids)
    while start < len(ids):
        first = 0 if start < room else min(start - size // 2, len(ids) - room)
        stop = min(first + room, len(ids))
        yield Row(ids[first:start], ids[start:stop])
        start = stop
