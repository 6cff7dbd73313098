"""Repetition of word n-grams. A hash stands for a word and for a run of words: 64 bits, the same in every process.

A *word* is a run of letters, digits and underscores; every other visible character is a word of its own, and so is
every Han, Kana or Hangul character, because those scripts write no spaces. A formula is one word, since algebra repeats
its symbols whoever writes it; code is left out.

Here numpy counts them; `builder.ngram_loop` does the same compiled.
"""

from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from builder.scripts import HAN, HANGUL, MARK, SPACE

NGRAM_WORDS: Final = 20
DIVERSITY_WORDS: Final = 4
PROSE, FORMULA, CODE = range(3)
"""What a character stands in: values of `quiet`."""

# Odd 64-bit constants: invertible modulo 2⁶⁴, which is what rolling sums need (golden ratio; a splitmix64 constant).
_BASE: Final = 0x9E3779B97F4A7C15
_STEP: Final = 0xBF58476D1CE4E5B9

Codes = npt.NDArray[np.uint32]
Marks = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]


def by_numpy(codes: Codes, quiet: Marks, table: Marks) -> tuple[int, int, int]:
    """What `ngram_loop.repetition_loop` returns, in some fifty numpy calls."""
    words = _word_hashes(codes, quiet, table)
    most = _run_lengths(_ngrams(words, NGRAM_WORDS)).max(initial=0)
    fours = _ngrams(words, DIVERSITY_WORDS)
    return int(most), _run_lengths(fours).size, fours.size


def _word_hashes(codes: Codes, quiet: Marks, table: Marks) -> Hashes:
    """One hash a word, in order."""
    if not codes.size:
        return np.zeros(0, dtype=np.uint64)
    found = table[codes]
    prose = quiet == PROSE
    lettered = prose & (found > MARK) & ((found < HAN) | (found > HANGUL))
    formula = quiet == FORMULA
    inside = (lettered[1:] & lettered[:-1]) | (formula[1:] & formula[:-1])
    starts = np.flatnonzero(np.concatenate(([True], ~inside)))
    ends = np.append(starts[1:], codes.size)
    visible = (formula | (prose & (found != SPACE)))[starts]
    starts, ends = starts[visible], ends[visible]
    prefix, inverse = _rolling(_mixed(codes), _BASE)
    hashes: Hashes = (prefix[ends] - prefix[starts]) * inverse[starts]
    return hashes


def _ngrams(words: Hashes, size: int) -> Hashes:
    """One hash per run of `size` words."""
    if words.size < size:
        return np.zeros(0, dtype=np.uint64)
    prefix, inverse = _rolling(_mixed(words), _STEP)
    grams: Hashes = (prefix[size:] - prefix[:-size]) * inverse[: words.size - size + 1]
    return grams


def _rolling(values: Hashes, base: int) -> tuple[Hashes, Hashes]:
    """Prefix sums of values[i]·base^i modulo 2⁶⁴, and base^−i: a slice's hash is one difference and one product."""
    powers, inverse = _powers(base, values.size.bit_length())
    prefix = np.concatenate((np.zeros(1, dtype=np.uint64), np.cumsum(values * powers[: values.size], dtype=np.uint64)))
    return prefix, inverse


@lru_cache(maxsize=64)
def _powers(base: int, bits: int) -> tuple[Hashes, Hashes]:
    """base^i and base^−i modulo 2⁶⁴ for i below 2^bits; sizes are rounded up so that texts share them."""
    tables = []
    for factor in (base, pow(base, -1, 2**64)):
        powers = np.full(2**bits, factor, dtype=np.uint64)
        powers[0] = 1
        tables.append(np.cumprod(powers, dtype=np.uint64))
    return tables[0], tables[1]


def _mixed(values: npt.NDArray[Any]) -> Hashes:
    """splitmix64: spreads small integers over 64 bits, so that sums of them do not collide by structure."""
    mixed = values.astype(np.uint64) + np.uint64(_BASE)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_STEP)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _run_lengths(values: Hashes) -> npt.NDArray[np.int64]:
    """How often each different value occurs."""
    if not values.size:
        return np.zeros(0, dtype=np.int64)
    ordered = np.sort(values)
    edges = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True])))
    return np.diff(edges)
