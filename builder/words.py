"""Words of a text as comparisons of texts see them, and hashes of runs of words: the same in every process.

The text is folded first: Unicode NFKC, then case. A *word* is a run of letters, combining marks and digits. A letter of
a script that writes no spaces (Han, Kana, Hangul: wide characters) is a word of its own. Thai, Lao, Khmer and Burmese
write no spaces either, but their letters are narrow: a run up to the next space or sign is one word there, so that only
long copies have equal words.

A *sign* is any other visible character. Where signs count, each is a word of its own: 12 and −12 differ. Where they do
not, they separate, so that LaTeX spacing, brackets and punctuation hide no copy.
"""

import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]

_SLICE: Final = 1 << 18
"""Characters that are split at once, which bounds memory; a word across the border of two slices counts as two."""
_NONE, _PART, _WHOLE, _SIGN = range(4)
# Odd 64-bit constants: golden ratio for characters, a splitmix64 constant for words.
_BASE: Final = 0x9E3779B97F4A7C15
_STEP: Final = np.uint64(0xBF58476D1CE4E5B9)
_END: Final = np.uint64(0x94D049BB133111EB)


class Words(NamedTuple):
    """The folded text, where each word starts and ends in it (characters), and a 64-bit hash of each word."""

    text: str
    starts: Offsets
    ends: Offsets
    hashes: Hashes

    def span(self, first: int, last: int) -> str:
        """The folded words `first` to `last`, both included, with one space between."""
        return " ".join(self.text[self.starts[at] : self.ends[at]] for at in range(first, last + 1))


def split_words(text: str, *, signs: bool) -> Words:
    """The words of a text, in order. `signs` says whether each sign is a word, or a separator."""
    folded = _folded(text)
    pieces = [_split(folded[start : start + _SLICE], start, signs) for start in range(0, len(folded), _SLICE)]
    if not pieces:
        nothing = np.zeros(0, dtype=np.int64)
        return Words(folded, nothing, nothing, nothing.astype(np.uint64))
    starts, ends, hashes = (np.concatenate(column) for column in zip(*pieces, strict=True))
    return Words(folded, starts, ends, hashes)


def batch_hashes(texts: Iterable[str], *, signs: bool) -> tuple[Hashes, Offsets]:
    """Word hashes of texts, one text after the other, and the place where each text ends. As `split_words`, faster."""
    pieces = [np.zeros(0, dtype=np.uint64)]
    counts: list[int] = []
    held: list[str] = []
    size = 0
    for text in [*map(_folded, texts), None]:
        if held and (text is None or size + len(text) >= _SLICE):
            begins = np.cumsum([0, *(len(one) + 1 for one in held)])
            starts, _, hashes = _split("\n".join(held), 0, signs)
            counts += np.diff(np.searchsorted(starts, begins)).tolist()
            pieces.append(hashes)
            held, size = [], 0
        if text is not None and len(text) >= _SLICE:
            long = split_words(text, signs=signs).hashes
            counts.append(long.size)
            pieces.append(long)
        elif text is not None:
            held.append(text)
            size += len(text) + 1
    return np.concatenate(pieces), np.cumsum(np.array(counts, dtype=np.int64))


def ngram_hashes(words: Hashes, size: int) -> Hashes:
    """One hash per run of `size` words, shape (words − size + 1,); empty under `size` words."""
    count = words.size - size + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    grams = words[:count].copy()
    for step in range(1, size):
        grams *= _STEP
        grams += words[step : step + count]
    return _spread(grams)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _split(text: str, offset: int, signs: bool) -> tuple[Offsets, Offsets, Hashes]:
    """Starts and ends plus `offset`, and hashes, of the words of a slice."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds, weights = _tables()
    found = kinds[codes]
    goes_on = (found[1:] == _PART) & (found[:-1] == _PART)
    inside = (found != _NONE) if signs else ((found == _PART) | (found == _WHOLE))
    starts = np.flatnonzero(inside & np.concatenate(([True], ~goes_on)))
    ends = np.flatnonzero(inside & np.concatenate((~goes_on, [True]))) + 1
    if not starts.size:
        return starts, ends, np.zeros(0, dtype=np.uint64)
    place = np.arange(codes.size)
    place[starts[0] :] -= np.repeat(starts, np.diff(starts, append=codes.size))
    # Separators weigh nothing, so a sum may run on to the start of the next word.
    hashes = np.add.reduceat(weights[codes] * _powers()[place] * inside, starts)
    return starts + offset, ends + offset, _spread(hashes)


@cache
def _tables() -> tuple[npt.NDArray[np.uint8], Hashes]:
    """Kind of every code point, and a number that stands for it (splitmix64)."""
    kinds = np.zeros(0x110000, dtype=np.uint8)
    for code in range(0x110000):
        category = unicodedata.category(chr(code))
        if category[0] in "LMN":
            wide = category[0] == "L" and unicodedata.east_asian_width(chr(code)) == "W"
            kinds[code] = _WHOLE if wide else _PART
        elif category[0] in "PS":
            kinds[code] = _SIGN
    return kinds, _spread(np.arange(1, 0x110001, dtype=np.uint64) * np.uint64(_BASE))


@cache
def _powers() -> Hashes:
    """_BASE to the power of a character's place in its word, modulo 2⁶⁴."""
    powers = np.full(_SLICE, _BASE, dtype=np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _spread(values: Hashes) -> Hashes:
    """The end of splitmix64: spreads differences over all 64 bits."""
    values = (values ^ (values >> np.uint64(30))) * _STEP
    values = (values ^ (values >> np.uint64(27))) * _END
    return values ^ (values >> np.uint64(31))
