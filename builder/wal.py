"""SQLite's write-ahead log, read without SQLite: is its end what a crash leaves, or is it damaged?

SQLite reads a log up to the first frame that does not check and forgets the rest in silence, because that is what a
crash leaves: one transaction, not yet synced. With synchronous FULL every earlier one was. So a transaction behind such
a frame that another one goes on from was acknowledged, and would be lost and paid again.
Format: https://sqlite.org/fileformat2.html#walformat
"""

import struct
from collections import Counter
from pathlib import Path

import numpy as np

_MAGIC = 0x377F0682
"""The lowest bit says whether checksums read words with the high byte first."""
_HEADER = 32
_FRAME = struct.Struct(">6I")
_State = tuple[int, int]


def damage(database: Path) -> str | None:
    """What is wrong with the log beside a database that nobody has open; None for no log, or one that a crash left."""
    path = database.with_name(f"{database.name}-wal")
    if not (path.exists() and database.exists()):
        return None
    raw = path.read_bytes()
    with database.open("rb") as file:
        page = int.from_bytes(file.read(18)[16:], "big")
    step = _FRAME.size + (65536 if page == 1 else page)
    starts = range(_HEADER, len(raw) - step + 1, step) if page else []
    frames = [_FRAME.unpack_from(raw, start) for start in starts]
    if not frames:
        return None

    def after(number: int, state: _State, order: str) -> _State:
        """The running checksum after a frame."""
        start = _HEADER + number * step
        covered = raw[start : start + 8] + raw[start + _FRAME.size : start + step]
        return _checksum(np.frombuffer(covered, order), state)

    magic, *_, salt, other_salt, first, second = struct.unpack(">8I", raw[:_HEADER])
    orders = [">u4" if magic & 1 else "<u4"]
    state = _checksum(np.frombuffer(raw[:24], orders[0]), (0, 0))
    salts, good = (salt, other_salt), 0
    if magic | 1 == _MAGIC | 1 and state == (first, second):
        for number, frame in enumerate(frames):
            state = after(number, state, orders[0])
            if frame[2:4] != salts or frame[4:] != state:
                break
            good += 1
    else:
        orders = ["<u4", ">u4"]
        ((salts, _),) = Counter(frame[2:4] for frame in frames).most_common(1)
    lost = sum(
        frames[number][1] != 0
        and frames[number][2:4] == frames[number + 1][2:4] == salts
        and any(after(number + 1, frames[number][4:], order) == frames[number + 1][4:] for order in orders)
        for number in range(good, len(frames) - 1)
    )
    return f"{path.name} is damaged at frame {good + 1}, and {lost} transactions stand behind it" if lost else None


def _checksum(words: np.ndarray, state: _State) -> _State:
    """The log's running checksum: a += x + b, b += y + a for each two words, modulo 2³². Linear: one product does."""
    pairs = words.astype(np.uint32).reshape(-1, 2)
    powers = _powers(len(pairs))
    last, each = powers[0], powers[1:]
    first, second = (
        int((each[:, row] * pairs).sum(dtype=np.uint32)) + int(last[row, 0]) * state[0] + int(last[row, 1]) * state[1]
        for row in (0, 1)
    )
    return first & 0xFFFFFFFF, second & 0xFFFFFFFF


_KNOWN: dict[int, np.ndarray] = {}


def _powers(number: int) -> np.ndarray:
    """What the state before (first) and each of so many pairs of words weigh in the end, as 2 × 2 matrices."""
    if number not in _KNOWN:
        rest = (1, 0, 0, 1)  # what the steps behind a pair make of what it adds
        weights: list[tuple[int, ...]] = []
        for _ in range(number):
            p, q, r, s = rest
            weights.append((p + q, q, r + s, s))  # a pair adds x to a, and x + y to b
            rest = ((p + q) % 2**32, (p + 2 * q) % 2**32, (r + s) % 2**32, (r + 2 * s) % 2**32)
        weights.append(rest)
        _KNOWN[number] = (np.array(weights[::-1], dtype=np.uint64) % 2**32).astype(np.uint32).reshape(-1, 2, 2)
    return _KNOWN[number]
