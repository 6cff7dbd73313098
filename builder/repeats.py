"""Repeated sentences and paragraphs, and loops at the end of a text."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

MIN_SENTENCE_CHARS: Final = 20
MIN_PARAGRAPH_CHARS: Final = 80
LOOP_REPEATS: Final = 4
"""A block counts as a loop when it stands at least this many times in a row."""
MAX_LOOP_CHARS: Final = 8192
"""Longest repeated block that is looked for, characters."""

_PARAGRAPH_BREAK: Final = re.compile(r"\n[ \t\r]*\n\s*")
Span = tuple[int, int]
Counts = npt.NDArray[np.int64]


def paragraph_spans(text: str) -> list[Span]:
    """Start and end of every paragraph: what blank lines set apart, white space alone left out."""
    breaks = [match.span() for match in _PARAGRAPH_BREAK.finditer(text)]
    starts = [0, *(end for _, end in breaks)]
    ends = [*(start for start, _ in breaks), len(text)]
    return [(first, last) for first, last in zip(starts, ends, strict=True) if text[first:last].strip()]


def longest(spans: Sequence[Span], exempt: Counts | None) -> int:
    """Characters of the longest span less those that `exempt` counts."""
    return int(_lengths(spans, exempt).max(initial=0))


def most_repeated(text: str, spans: Sequence[Span], exempt: Counts | None, least: int) -> int:
    """Occurrences of the most repeated span of `least` characters or more, white space collapsed; 0 without one.

    `exempt[i]` counts the characters before offset i that stand in formulas or code: they make no span longer, but are
    compared like all others. None: there are none.
    """
    seen: Counter[str] = Counter()
    lengths = _lengths(spans, exempt)
    for index in np.flatnonzero(lengths >= least).tolist():
        start, end = spans[index]
        found = _collapsed(text[start:end])
        if len(found) - (end - start - lengths[index]) >= least:
            seen[found] += 1
    return max(seen.values(), default=0)


def _lengths(spans: Sequence[Span], exempt: Counts | None) -> Counts:
    starts, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    lengths: Counts = ends - starts if exempt is None else ends - starts - (exempt[ends] - exempt[starts])
    return lengths


def _collapsed(text: str) -> str:
    text = text.strip()
    # All white space but the plain space is unprintable: most sentences need no splitting.
    return text if text.isprintable() and "  " not in text else " ".join(text.split())


def tail_loop_chars(text: str) -> int:
    """Characters at the end of `text` that one block covers, repeated at least 4 times in a row; 0 without a loop.

    Blocks of up to 8,192 characters; the last repetition may be cut. A loop of block length p covers what has period p.
    Once a loop of length p covers c characters, no length between p and c − p can cover more: such a length would be a
    multiple of p (Fine and Wilf 1965), so those lengths are left out, and what is left costs little more than reading.
    """
    text = text.rstrip()
    size = len(text)
    longest = min(MAX_LOOP_CHARS, size // LOOP_REPEATS)
    best, period = 0, 1
    while period <= longest:
        # The last characters stand one period earlier as well: a loop of one character covers three more.
        at = text.rfind(text[-3:], size - longest - 3, size - period)
        if at < 0:
            break
        period = size - 3 - at
        least = LOOP_REPEATS * period
        if text[size - least : size - period] != text[size - least + period :]:
            period += 1
            continue
        covered = _covered(text, period)
        best = max(best, covered)
        period = max(period + 1, covered - period + 1)
    return best


def _covered(text: str, period: int) -> int:
    """Length of the longest end of `text` with this period, which covers four of its lengths at least."""
    size = len(text)
    low, high = LOOP_REPEATS * period, size
    while low < high:
        middle = min((low + high + 1) // 2, 2 * low)  # doubling first: loops are short against the text
        if text[size - middle : size - period] == text[size - middle + period :]:
            low = middle
        else:
            high = middle - 1
    return low
