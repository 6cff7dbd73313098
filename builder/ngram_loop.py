"""The compiled pass of `builder.ngrams`, as `by_numpy` there. Loading it takes half a second."""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

from builder.ngrams import CODE, DIVERSITY_WORDS, FORMULA, NGRAM_WORDS, Codes, Hashes, Marks
from builder.scripts import HAN, HANGUL, MARK, SPACE

_FIRST: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = np.uint64(0xBF58476D1CE4E5B9)
_END: Final = np.uint64(0x94D049BB133111EB)
_HALF: Final = np.uint64(32)
_NOTHING, _WORD, _FORMULA = range(3)
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    machine_code: Any = njit(cache=True, nogil=True)(function)
    return cast("_Function", machine_code)


@_compiled
def repetition_loop(codes: Codes, quiet: Marks, table: Marks) -> tuple[int, int, int]:
    """Occurrences of the most repeated 20-gram, different 4-grams, all 4-grams; as `ngrams.by_numpy`."""
    words = np.empty(codes.size, np.uint64)
    count = _words(codes, quiet, table, words)
    size = 16
    while size < 2 * count:
        size *= 2
    keys = np.empty(size, np.uint64)
    seen = np.zeros(size, np.int32)
    most, _ = _count(words[:count], NGRAM_WORDS, keys, seen)
    seen[:] = 0
    _, different = _count(words[:count], DIVERSITY_WORDS, keys, seen)
    return most, different, max(0, count - DIVERSITY_WORDS + 1)


@_compiled
def _words(codes: Codes, quiet: Marks, table: Marks, words: Hashes) -> int:
    """Write one hash a word; returns how many."""
    count, state = 0, _NOTHING
    value = _FIRST
    for index in range(codes.size):
        code, place = codes[index], quiet[index]
        kind = table[code]
        if place == FORMULA:
            now = _FORMULA
        elif place == CODE or kind <= MARK or HAN <= kind <= HANGUL:
            now = _NOTHING
        else:
            now = _WORD
        if state not in (now, _NOTHING):
            words[count] = _spread(value)
            count += 1
        if now == _NOTHING:
            if place != CODE and kind != SPACE:
                words[count] = _spread((_FIRST ^ np.uint64(code)) * _MIX)
                count += 1
        else:
            if now != state:
                value = _FIRST
            value = (value ^ np.uint64(code)) * _MIX
        state = now
    if state != _NOTHING:
        words[count] = _spread(value)
        count += 1
    return count


@_compiled
def _spread(value: np.uint64) -> np.uint64:
    value = (value ^ (value >> np.uint64(30))) * _END
    return value ^ (value >> np.uint64(31))


@_compiled
def _count(words: Hashes, size: int, keys: Hashes, seen: npt.NDArray[np.int32]) -> tuple[int, int]:
    """Occurrences of the most frequent run of `size` words, and how many different runs there are.

    `keys` and `seen` are a table with open addressing, a power of two long; `seen` is zero.
    """
    mask = np.uint64(keys.size - 1)
    oldest = np.uint64(1)
    for _ in range(size):
        oldest *= _FIRST
    gram = np.uint64(0)
    most = different = 0
    for index in range(words.size):
        gram = gram * _FIRST + words[index]
        if index >= size:
            gram -= oldest * words[index - size]
        if index < size - 1:
            continue
        slot = (gram ^ (gram >> _HALF)) & mask
        while seen[slot] and keys[slot] != gram:
            slot = (slot + np.uint64(1)) & mask
        if not seen[slot]:
            keys[slot] = gram
            different += 1
        seen[slot] += 1
        most = max(most, seen[slot])
    return most, different
