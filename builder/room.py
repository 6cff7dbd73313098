"""Bytes of answers that are in memory at a time: what is not read yet waits in the network, where it costs nothing."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final

BYTES: Final = 128 * 2**20
"""Forty replies of 16,000 tokens with logprobs: enough to keep two cores at work; 512 of them would take 1.5 GB."""
PATIENCE_S: Final = 60.0
"""Longest wait: endpoints that stop in the middle of an answer hold their room for hours, and must not stop others."""


@dataclass
class Room:
    """Room for answers, given in the order of asking. An answer larger than all of it is read while it is alone."""

    limit: int = BYTES
    used: int = 0
    _waiting: deque[tuple[int, "asyncio.Future[None]"]] = field(default_factory=deque)

    async def take(self, size: int) -> None:
        """Wait for `size` bytes of room, at most PATIENCE_S; they are taken when this returns, and only then."""
        if not self._waiting and self._fits(size):
            self.used += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, turn)
        self._waiting.append(entry)
        try:
            await asyncio.wait([turn], timeout=PATIENCE_S)
        except asyncio.CancelledError:
            if turn.done():
                self.give_back(size)
            else:
                self._waiting.remove(entry)
            raise
        if not turn.done():
            self._waiting.remove(entry)
            self.used += size

    def give_back(self, size: int) -> None:
        """`size` bytes are free again."""
        self.used -= size
        while self._waiting and self._fits(self._waiting[0][0]):
            size, turn = self._waiting.popleft()
            self.used += size
            turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return not self.used or self.used + size <= self.limit


@dataclass
class Held:
    """What one answer holds of the room, from its first byte until it is parsed. Use as a context manager."""

    room: Room
    size: int = 0

    async def take(self, size: int) -> None:
        """More room for this answer."""
        await self.room.take(size)
        self.size += size

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.room.give_back(self.size)
        self.size = 0
