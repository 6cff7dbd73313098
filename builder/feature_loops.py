"""Compiled passes over one text: sentences, repeated spans, letters, white space. Loading them takes half a second.

`builder.text`, `builder.repeats` and `builder.features` hold the definitions, in plain Python; here the same is found
five to ten times as fast. A text is its code points; spans are of shape (spans, 2), start and end.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

from builder.ngrams import PROSE, Codes, Hashes, Marks
from builder.scripts import DIGIT, OTHER, SPACE, decimals, kinds
from builder.text import ABBREVIATIONS

Spans = npt.NDArray[np.int64]
_FIRST: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = np.uint64(0xBF58476D1CE4E5B9)
_LAST: Final = np.uint64(0x94D049BB133111EB)
_HALF: Final = np.uint64(32)
_BREAK, _STOP, _WIDE, _CLOSER, _WIDE_CLOSER, _BLANK, _OPENER = (2**bit for bit in range(7))
_ROLES: Final = {
    _BREAK: "\n",
    _STOP: ".!?",
    _WIDE: "。！？",
    _CLOSER: "\"'”’)]*_",
    _WIDE_CLOSER: "”’」』）",
    _BLANK: " \t\r\f\v\u00a0\u3000",
    _OPENER: "([\"'“‘",
}
"""What characters do where a sentence may end, as the expressions of `builder.text` say."""
_ENDS: Final = _BREAK | _STOP | _WIDE
_LINE_FEED, _SPACE_BAR, _TAB, _DOT, _ZERO, _NINE = (ord(character) for character in "\n \t.09")
_MOST_INDENT: Final = 8
_MOST_DIGITS: Final = 3
_LONGEST: Final = 7
"""Characters of an abbreviation, at most; as many bytes fit into 64 bits."""
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    # Machine code on disk is as old as this file: what grows in other modules, tables and words, is an argument.
    machine_code: Any = njit(cache=True, nogil=True)(function)
    return cast("_Function", machine_code)


def sentence_spans(codes: Codes, quiet: Sequence[tuple[int, int, bool]]) -> Spans:
    """Sentences as `builder.text.sentence_ends` finds them; `quiet` are the `quiet_spans` of the text."""
    spans = np.array(quiet, dtype=np.int64).reshape(-1, 3)
    ends = np.empty(codes.size + 1, dtype=np.int64)
    count = _sentence_ends(codes, spans, kinds(), _roles(), _abbreviations(), decimals(), ends)
    found: Spans = np.stack((np.concatenate(([0], ends[: max(0, count - 1)]))[:count], ends[:count]), axis=1)
    return found


def span_repeats(codes: Codes, quiet: Marks, spans: Spans, least: int) -> tuple[int, int]:
    """Occurrences of the most repeated span, as `builder.repeats.most_repeated`; characters of prose of the longest."""
    most, longest = _span_repeats(codes, quiet, spans, kinds(), least)
    return int(most), int(longest)


def letters(codes: Codes, quiet: Marks) -> list[int]:
    """Characters of prose by kind."""
    found: list[int] = _letters(codes, quiet, kinds(), OTHER + 1).tolist()
    return found


def collapsed(codes: Codes) -> str:
    """The text with one space for every run of white space, and none around it."""
    found = np.empty(codes.size, dtype=np.uint32)
    return found[: _collapsed(codes, kinds(), found)].tobytes().decode("utf-32-le", "surrogatepass")


@cache
def _roles() -> Marks:
    """Flags of every code point below 2¹⁶."""
    flags = np.zeros(0x10000, dtype=np.uint8)
    for flag, characters in _ROLES.items():
        flags[[ord(character) for character in characters]] |= flag
    return flags


@cache
def _abbreviations() -> Hashes:
    """Abbreviations as big-endian numbers."""
    assert max(map(len, ABBREVIATIONS)) <= _LONGEST
    return np.array([int.from_bytes(word.encode("ascii"), "big") for word in ABBREVIATIONS], dtype=np.uint64)


@_compiled
def _sentence_ends(
    codes: Codes, quiet: Spans, table: Marks, roles: Marks, abbreviations: Hashes, digits: Codes, ends: Spans
) -> int:
    """Write where sentences end; returns how many there are."""
    count = start = span = at = 0
    visible = -1
    while at < codes.size:
        role = _role(roles, codes, at)
        end = _match_end(codes, roles, role, at) if role & _ENDS else at
        if end == at:
            if table[codes[at]] != SPACE:
                visible = at
            at += 1
            continue
        place, at = at, end
        if role != _BREAK:
            visible = end - 1
        while span < len(quiet) and quiet[span, 1] < end:
            span += 1
        inside = span < len(quiet) and quiet[span, 0] < place < quiet[span, 1]
        if inside and not (role == _BREAK and quiet[span, 2]):
            continue
        if codes[place] == _DOT and (
            _is_abbreviation(codes, table, roles, abbreviations, place) or _is_numbering(codes, table, digits, place)
        ):
            continue
        # White space alone joins the sentence before it.
        if visible >= start:
            count += 1
        if count:
            ends[count - 1] = start = end
    if codes.size:
        count += visible >= start or not count
        ends[count - 1] = codes.size
    return count


@_compiled
def _role(roles: Marks, codes: Codes, at: int) -> int:
    return roles[codes[at]] if at < codes.size and codes[at] < 0x10000 else 0


@_compiled
def _match_end(codes: Codes, roles: Marks, role: int, at: int) -> int:
    """Where the mark at `at`, with what belongs to it, ends; `at` if it is none."""
    if role == _BREAK:
        return _skip(codes, roles, _BREAK, at)
    if role & _WIDE:
        return _skip(codes, roles, _WIDE_CLOSER, _skip(codes, roles, _WIDE, at))
    # A run of marks is looked at from its first: from each, a reply that ends in 200,000 dots would cost their square.
    if role & _STOP and not (at and _role(roles, codes, at - 1) & _STOP):
        end = _skip(codes, roles, _CLOSER, _skip(codes, roles, _STOP, at))
        return end if _role(roles, codes, end) & _BLANK else at
    return at


@_compiled
def _skip(codes: Codes, roles: Marks, role: int, at: int) -> int:
    while _role(roles, codes, at) & role:
        at += 1
    return at


@_compiled
def _is_abbreviation(codes: Codes, table: Marks, roles: Marks, abbreviations: Hashes, dot: int) -> bool:
    value, place = np.uint64(0), dot - 1
    while place >= 0 and not (table[codes[place]] == SPACE or _role(roles, codes, place) & _OPENER):
        if dot - place > _LONGEST or codes[place] >= 128:
            return False
        value |= np.uint64(codes[place]) << np.uint64(8 * (dot - 1 - place))
        place -= 1
    for word in abbreviations:  # noqa: SIM110 (compiled code has no generators)
        if word == value:
            return True
    return False


@_compiled
def _is_numbering(codes: Codes, table: Marks, digits: Codes, dot: int) -> bool:
    first = dot
    while first and dot - first <= _MOST_DIGITS and _is_digit(codes[first - 1], table, digits):
        first -= 1
    line = first
    while line and first - line <= _MOST_INDENT and (codes[line - 1] == _SPACE_BAR or codes[line - 1] == _TAB):
        line -= 1
    short = 1 <= dot - first <= _MOST_DIGITS and first - line <= _MOST_INDENT
    return short and (line == 0 or codes[line - 1] == _LINE_FEED)


@_compiled
def _is_digit(code: int, table: Marks, digits: Codes) -> bool:
    if code < 128:
        return _ZERO <= code <= _NINE
    if table[code] != DIGIT:
        return False
    place = np.searchsorted(digits, np.uint32(code))
    return bool(place < digits.size and digits[place] == code)


@_compiled
def _span_repeats(codes: Codes, quiet: Marks, spans: Spans, table: Marks, least: int) -> tuple[int, int]:
    size = 16
    while size < 2 * len(spans):
        size *= 2
    keys, seen = np.empty(size, np.uint64), np.zeros(size, np.int32)
    mask = np.uint64(size - 1)
    most = longest = 0
    for span in range(len(spans)):
        value = before = _FIRST
        length = hidden = 0
        after_space = True
        # Without branches, as in `_collapsed`.
        for index in range(spans[span, 0], spans[span, 1]):
            hidden += quiet[index] != PROSE
            is_space = table[codes[index]] == SPACE
            is_kept = not (is_space and after_space)
            before = value if is_space and is_kept else before
            mixed = (value ^ np.uint64(_SPACE_BAR if is_space else codes[index])) * _MIX
            value = mixed if is_kept else value
            length += is_kept
            after_space = is_space
        if after_space and length:  # the space at the end is none of the span's
            value, length = before, length - 1
        longest = max(longest, spans[span, 1] - spans[span, 0] - hidden)
        if length - hidden < least:
            continue
        value = (value ^ (value >> _HALF)) * _LAST
        slot = (value ^ (value >> _HALF)) & mask
        while seen[slot] and keys[slot] != value:
            slot = (slot + np.uint64(1)) & mask
        keys[slot] = value
        seen[slot] += 1
        most = max(most, seen[slot])
    return most, longest


@_compiled
def _letters(codes: Codes, quiet: Marks, table: Marks, size: int) -> Spans:
    found = np.zeros(size, np.int64)
    for index in range(codes.size):
        if quiet[index] == PROSE:
            found[table[codes[index]]] += 1
    return found


@_compiled
def _collapsed(codes: Codes, table: Marks, found: Codes) -> int:
    """Write the text with one space for every run of white space; returns how long that is."""
    # Without branches: whether a character is white space is what a processor cannot predict.
    count, after_space = 0, True
    for code in codes:
        is_space = table[code] == SPACE
        found[count] = np.uint32(_SPACE_BAR) if is_space else code
        count += not (is_space and after_space)
        after_space = is_space
    return count - (after_space and count > 0)
