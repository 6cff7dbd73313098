"""Features of replies: lengths, flags, repetition. What SQL should not recompute is measured once, here.

A *word* is a run of letters, digits and underscores; every other visible character is a word of its own, and so is
every Han, Hiragana, Katakana or Hangul character, because those scripts write no spaces.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.identity import sha256_hex
from builder.schema import FEATURES
from builder.store import Run
from builder.text import canonical_text, sentence_ends

MIN_SENTENCE_CHARS: Final = 20
MIN_PARAGRAPH_CHARS: Final = 80
NGRAM_WORDS: Final = 20
DIVERSITY_WORDS: Final = 4
LOOP_REPEATS: Final = 4
"""A block counts as a loop when it stands at least this many times in a row."""
MAX_LOOP_CHARS: Final = 8192
"""Longest repeated block that is looked for, characters."""
_BATCH_ROWS: Final = 2000

_THINK_TAG: Final = re.compile(r"</?think>", re.IGNORECASE)
_CHANNEL_MARKER: Final = re.compile(r"<\|(?:start|end|message|channel|constrain|return|call)\|>")
_FENCE_LINE: Final = re.compile(r"^[ \t]{0,16}(?:```|~~~)", re.MULTILINE)
_LATEX_TABLE: Final = re.compile(r"\\begin\{(array|tabular|[a-zA-Z]?matrix)\}.{0,4000}?\\end\{\1\}", re.DOTALL)
_PARAGRAPH_BREAK: Final = re.compile(r"\n[ \t\r]*\n\s*")

_SPACE, _WORD, _CJK, _MARK = range(4)
_CJK_RANGES: Final = (
    (0x1100, 0x11FF),  # Hangul Jamo
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3130, 0x318F),  # Hangul compatibility Jamo
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han extension A
    (0x4E00, 0x9FFF),  # Han
    (0xAC00, 0xD7AF),  # Hangul
    (0xF900, 0xFAFF),  # Han compatibility
    (0xFF66, 0xFF9F),  # half-width Katakana
    (0x20000, 0x323AF),  # Han extensions B to H
)
_CJK_MARKS: Final = (0x30FB, 0x30A0)  # middle dot and double hyphen stand inside the Katakana block
# Odd 64-bit constants: invertible modulo 2⁶⁴, which is what rolling sums need (golden ratio; a splitmix64 constant).
_BASE: Final = 0x9E3779B97F4A7C15
_STEP: Final = 0xBF58476D1CE4E5B9

Codes = npt.NDArray[np.uint32]
Hashes = npt.NDArray[np.uint64]


def compute_features(responses: pl.DataFrame) -> pa.Table:
    """Features of every row of `responses` (columns response_id, reasoning, answer), in table FEATURES' schema.

    Time is linear in the length of a text but for one sort of its words.
    """
    rows = [
        {"response_id": response_id, **text_features(reasoning, answer)}
        for response_id, reasoning, answer in responses.select("response_id", "reasoning", "answer").iter_rows()
    ]
    return pa.Table.from_pylist(rows, schema=FEATURES.schema)


def update_features(run: Run, *, shard: int = 0) -> int:
    """Compute what table `features` lacks for the replies of the run and append it; returns how many replies.

    Works part by part, so memory holds one part's texts at most in batches, and an interruption loses one part.
    """
    known = _ids(run.parts("features"))
    done = 0
    for part in run.parts("responses"):
        tables = [compute_features(batch) for batch in _missing(part, known)]
        if tables:
            table = pa.concat_tables(tables)
            run.append("features", table, shard=shard)
            known = pa.concat_arrays([known, table.column("response_id").combine_chunks()])
            done += table.num_rows
    return done


def _ids(parts: Iterable[Any]) -> "pa.Array[Any]":
    columns = [pq.read_table(part, columns=["response_id"]).column(0).combine_chunks() for part in parts]
    return pa.concat_arrays([pa.array([], pa.string()), *columns])


def _missing(part: Any, known: "pa.Array[Any]") -> Iterator[pl.DataFrame]:
    """Texts of a part's replies that have no features yet, in batches; the ids alone decide whether texts are read."""
    ids = pq.read_table(part, columns=["response_id"]).column(0)
    if pc.all(pc.is_in(ids, value_set=known), min_count=0).as_py():
        return
    with pq.ParquetFile(part) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=["response_id", "reasoning", "answer"]):
            rows = batch.filter(pc.invert(pc.is_in(batch.column(0), value_set=known)))
            if rows.num_rows:
                frame = pl.from_arrow(pa.Table.from_batches([rows]))
                assert isinstance(frame, pl.DataFrame)
                yield frame


def text_features(reasoning: str | None, answer: str | None) -> dict[str, int | float | str | None]:
    """All features of one reply but its id."""
    thinking, final = reasoning or "", answer or ""
    text = canonical_text(reasoning, answer)
    codes = _codes(text)
    kinds = _kinds()[codes]
    words = _word_hashes(codes, kinds)
    ends = sentence_ends(text)
    return {
        "reasoning_chars": len(thinking.strip()),
        "answer_chars": len(final.strip()),
        "paragraph_count": sum(1 for part in _PARAGRAPH_BREAK.split(text) if part.strip()),
        "sentence_count": len(ends),
        "think_tags": len(_THINK_TAG.findall(thinking)) + len(_THINK_TAG.findall(final)),
        "channel_markers": len(_CHANNEL_MARKER.findall(thinking)) + len(_CHANNEL_MARKER.findall(final)),
        "sentence_repeats": sentence_repeats(text, ends),
        "paragraph_repeats": paragraph_repeats(text),
        "ngram_repeats": ngram_repeats(words),
        "distinct_4gram_share": distinct_share(words),
        "tail_loop_chars": max(tail_loop_chars(thinking), tail_loop_chars(final)),
        "cjk_chars": int(np.count_nonzero(kinds == _CJK)),
        "latin_chars": int(np.count_nonzero(_latin(codes))),
        "code_fences": len(_FENCE_LINE.findall(thinking)),
        "text_hash": sha256_hex(" ".join(text.lower().split())),
    }


def sentence_repeats(text: str, ends: list[int] | None = None) -> int:
    """Occurrences of the most repeated sentence of 20 characters or more, outside code fences and LaTeX tables.

    `ends` are the sentence ends of `text` where they are known already.
    """
    prose = _LATEX_TABLE.sub(" ", _without_fences(text))
    sentences: Counter[str] = Counter()
    start = 0
    for end in ends if ends is not None and prose == text else sentence_ends(prose):
        sentence = " ".join(prose[start:end].split())
        start = end
        if len(sentence) >= MIN_SENTENCE_CHARS:
            sentences[sentence] += 1
    return max(sentences.values(), default=0)


def paragraph_repeats(text: str) -> int:
    """Occurrences of the most repeated paragraph of 80 characters or more."""
    paragraphs = Counter(" ".join(part.split()) for part in _PARAGRAPH_BREAK.split(text))
    return max((count for part, count in paragraphs.items() if len(part) >= MIN_PARAGRAPH_CHARS), default=0)


def ngram_repeats(words: Hashes) -> int:
    """Occurrences of the most repeated 20-gram of words, overlapping ones included; 0 under 20 words."""
    runs = _run_lengths(_ngrams(words, NGRAM_WORDS))
    return int(runs.max()) if runs.size else 0


def distinct_share(words: Hashes) -> float | None:
    """Distinct word 4-grams / all word 4-grams; None under 4 words."""
    grams = _ngrams(words, DIVERSITY_WORDS)
    return float(_run_lengths(grams).size / grams.size) if grams.size else None


def tail_loop_chars(text: str) -> int:
    """Characters at the end of `text` that one block covers, repeated at least 4 times in a row; 0 without a loop.

    The last repetition may be cut. For each block length p up to 8,192 the longest suffix of period p is found by
    bisection on rolling hashes, all lengths at once.
    """
    codes = _codes(text.rstrip())[::-1]
    size = codes.size
    periods = np.arange(1, min(MAX_LOOP_CHARS, size // LOOP_REPEATS) + 1)
    # The last character must stand one period earlier; texts that do not loop mostly end here.
    periods = periods[codes[periods] == codes[0]] if periods.size else periods
    if not periods.size:
        return 0
    prefix, inverse = _rolling(_mixed(codes), _BASE)
    low = np.zeros(periods.size, dtype=np.int64)  # known to match
    high = size - periods
    while True:
        open_ones = low < high
        if not open_ones.any():
            break
        middle = (low + high + 1) // 2
        ahead = (prefix[periods + middle] - prefix[periods]) * inverse[periods]
        match = ahead == prefix[middle]
        low = np.where(open_ones & match, middle, low)
        high = np.where(open_ones & ~match, middle - 1, high)
    covered = periods + low
    return int(covered[covered >= LOOP_REPEATS * periods].max(initial=0))


def _codes(text: str) -> Codes:
    """Code points. A lone surrogate, which no parsed reply holds, stays what it is."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """Kind of every code point: white space, part of a word, CJK, other. Built once, in a tenth of a second."""
    every = "".join(map(chr, range(0x110000)))
    kinds = np.full(0x110000, _MARK, dtype=np.uint8)
    for pattern, kind in ((r"\w+", _WORD), (r"\s+", _SPACE)):
        for match in re.finditer(pattern, every):
            kinds[match.start() : match.end()] = kind
    for first, last in _CJK_RANGES:
        kinds[first : last + 1] = _CJK
    kinds[list(_CJK_MARKS)] = _MARK
    return kinds


def is_cjk(character: str) -> bool:
    """Whether one character belongs to a script that writes no spaces between words."""
    return bool(_kinds()[ord(character)] == _CJK)


def _latin(codes: Codes) -> npt.NDArray[np.bool_]:
    lower = codes | 0x20
    ascii_letter: npt.NDArray[np.bool_] = (lower >= 0x61) & (lower <= 0x7A) & (codes < 0x80)
    accented: npt.NDArray[np.bool_] = (codes >= 0xC0) & (codes <= 0x24F) & (codes != 0xD7) & (codes != 0xF7)
    more: npt.NDArray[np.bool_] = (codes >= 0x1E00) & (codes <= 0x1EFF)
    return np.logical_or(np.logical_or(ascii_letter, accented), more)


def _word_hashes(codes: Codes, kinds: npt.NDArray[np.uint8]) -> Hashes:
    """One 64-bit hash a word, in order."""
    if not codes.size:
        return np.zeros(0, dtype=np.uint64)
    inside = (kinds[1:] == _WORD) & (kinds[:-1] == _WORD)
    starts = np.flatnonzero(np.concatenate(([True], ~inside)))
    ends = np.append(starts[1:], codes.size)
    visible = kinds[starts] != _SPACE
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


def _without_fences(text: str) -> str:
    """The text less its fenced code; a fence that never closes reaches to the end."""
    pieces, position, opened = [], 0, False
    for match in _FENCE_LINE.finditer(text):
        if not opened:
            pieces.append(text[position : match.start()])
        else:
            line_end = text.find("\n", match.end())
            position = len(text) if line_end < 0 else line_end
        opened = not opened
    return "\n".join([*pieces, "" if opened else text[position:]])
