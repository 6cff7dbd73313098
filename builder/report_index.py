"""The replies of the page as columns: codes and rounded numbers in bytes, so that 100,000 of them stay small."""

import base64
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from markupsafe import Markup

from builder.report_replies import INDEXED, Replies

_LEAST_ID: Final = 8
"""Characters of an id at least: as much of it as tells all apart."""
_WORDS: Final = 500
_WORD_CHARS: Final = 100
"""Words of a code at most, the commonest, and characters of one: a source may give each prompt a domain of its own."""
# Nothing in the block may end it, and nothing invisible may stand in the page
_UNSAFE: Final = re.compile(
    "[<>&\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]"
)
# Column of the page: expression, units in 1
_NUMBERS: Final = {
    "tokens": ("completion_tokens", 1),
    "teacher": ("teacher_sentences", 1),
    "counted": ("counted_sentences", 1),
    "delta": ("mean_delta", 10_000),
    "probability": ("probability", 250),
    "distinct": ("distinct_4gram_share", 250),
}
_CODES: Final = {
    "domain": "domain", "temperature": "temperature", "role": "role", "verdict": "coalesce(verdict, 'no verdict')"
}  # fmt: skip


def index(replies: Replies, first: Sequence[str]) -> dict[str, Any]:
    """Columns of up to `INDEXED` replies: those of `first` (ids with their text in the page), then by md5 of the id.

    Numbers are `{type, scale, data}`: little-endian integers in base64, value × scale, the largest of an unsigned type
    and the least of a signed one for a missing value. Codes are such columns too, with the `words` they stand for;
    `rules` and `stages` are codes of sets of words.
    """
    columns = [f"{sql} as {name}" for name, sql in _CODES.items()]
    columns += [f"{sql}::double as {name}" for name, (sql, _) in _NUMBERS.items()]
    replies.ask(
        "create or replace temp table shown as "
        "select unnest($1::varchar[]) as id, generate_subscripts($1::varchar[], 1) as place",
        [list(first)],
    )
    rows = replies.ask(
        f"select response_id as id, rules, stages, {', '.join(columns)} from replies "
        "left join probabilities using (response_id) left join shown on shown.id = replies.response_id "
        "where is_indexed or shown.id is not null "
        f"order by place nulls last, md5(replies.response_id), response_id limit {INDEXED}"
    )
    found: dict[str, Any] = {"size": len(rows), "ids": _short([row["id"] for row in rows])}
    for name in _CODES:
        found[name] = _coded([row[name] for row in rows])
    for name in ("rules", "stages"):
        found[name] = _sets([row[name] for row in rows])
    for name, (_, scale) in _NUMBERS.items():
        found[name] = packed([row[name] for row in rows], scale)
    return found


def packed(values: Sequence[float | None], scale: int = 1) -> dict[str, Any]:
    """Rounded numbers in the smallest type that holds them and the sign of a missing one."""
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64) * scale
    known = np.isfinite(numbers)
    whole = np.round(numbers[known])
    low, high = (float(whole.min()), float(whole.max())) if whole.size else (0.0, 0.0)
    kinds = ("u1", "u2", "u4") if low >= 0 else ("i2", "i4")
    kind = next((one for one in kinds if _holds(one, low, high)), kinds[-1])
    limits = np.iinfo(kind)
    missing = limits.max if kind[0] == "u" else limits.min
    integers = np.full(len(numbers), missing, dtype=f"<{kind}")
    integers[known] = np.clip(whole, limits.min, limits.max).astype(kind)
    return {"type": kind, "scale": scale, "data": encoded(integers)}


def _holds(kind: str, low: float, high: float) -> bool:
    """Whether a type holds these numbers and one more, for what is missing."""
    limits = np.iinfo(kind)
    return high < limits.max if kind[0] == "u" else limits.min < low and high <= limits.max


def encoded(values: np.ndarray) -> str:
    """The bytes of an array, base64."""
    return base64.b64encode(values.tobytes()).decode("ascii")


def data_block(value: Any) -> Markup:
    """JSON for a script element of type application/json: no text in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(_UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text))


def _coded(values: Sequence[Any]) -> dict[str, Any]:
    counted = Counter(values)
    words = sorted(sorted(counted, key=lambda word: (-counted[word], word))[:_WORDS])
    place = {word: number for number, word in enumerate(words)}
    named = [f"{word:g}" if isinstance(word, float) else word[:_WORD_CHARS] for word in words]
    others = ["others"] if len(counted) > len(words) else []
    return {"words": [*named, *others], **packed([place.get(value, len(words)) for value in values])}


def _sets(values: Sequence[Sequence[str]]) -> dict[str, Any]:
    words = sorted({word for value in values for word in value})
    place = {word: number for number, word in enumerate(words)}
    sets = sorted({tuple(value) for value in values})
    number_of = {one: number for number, one in enumerate(sets)}
    return {
        "words": words,
        "sets": [[place[word] for word in one] for one in sets],
        **packed([number_of[tuple(value)] for value in values]),
    }


def _short(ids: Sequence[str]) -> list[str]:
    """As many characters of every id as tell all apart."""
    width = _LEAST_ID
    while len({one[:width] for one in ids}) < len(set(ids)):
        width += 1
    return [one[:width] for one in ids]
