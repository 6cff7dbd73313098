"""Which bytes of the canonical text each token covers. What does not add up is refused, never guessed."""

import json
import re
import unicodedata
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

import numpy as np

from builder.text import SEPARATOR, THINK_CLOSE

_WIDE_SPACE: Final = re.compile(
    b"|".join(re.escape(chr(code).encode()) for code in range(0x80, 0x3001) if chr(code).isspace())
)
_UNIT: Final = (
    rb"(?:[\s\x1c-\x1f]|</?think>|<\|[^|<>]{1,40}\|>|<\xef\xbd\x9c[^<>]{1,60}\xef\xbd\x9c>"
    rb"|(?<=<\|channel\|>)(?:analysis|commentary|final)|(?<=<\|start\|>)assistant|</s>|<eos>|<end_of_turn>|"
    + _WIDE_SPACE.pattern
    + rb")"
)
_STRUCTURE: Final = re.compile(_UNIT + rb"*")
_STRUCTURE_UNIT: Final = re.compile(_UNIT)
"""Think tags, ChatML, harmony and DeepSeek markers, end tokens, and the white space beside them."""


class AlignError(Exception):
    """The tokens do not reproduce or cover the text; the message says where."""


def align(pieces: Sequence[bytes], reasoning: str | None, answer: str | None) -> np.ndarray:
    """End of each token as a byte offset in the canonical text, int32, shape (tokens,).

    Structure tokens (tags, markers, the line breaks beside tags) repeat the offset before them, so a token covers the
    bytes from the previous offset to its own. Raises AlignError unless the tokens hold reasoning and answer byte for
    byte, with nothing but structure around them, and where a token inside the text has no bytes: some servers give the
    parts of a split character as empty, and such a token would silently count as structure.
    """
    stream = b"".join(pieces)
    parts = [part.encode() for part in (reasoning, answer) if part]
    places: list[tuple[int, int]] = []
    cursor = 0
    for part in parts:
        start = _find(stream, part, cursor)
        places.append((start, start + len(part)))
        cursor = start + len(part)
    if _STRUCTURE.fullmatch(stream, cursor) is None:
        raise AlignError(f"the tokens go on after the text: {_excerpt(stream, cursor)}")
    ends = np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))
    empty = np.diff(ends, prepend=0) == 0
    for start, stop in places:
        inside_text = (ends > start if stream[start] < 0x80 else ends >= start) & (ends < stop)
        if (lost := np.flatnonzero(empty & inside_text)).size:
            raise AlignError(f"token {lost[0]} has no bytes, at byte {ends[lost[0]]} inside the text")
    return _canonical(ends, places)


def _canonical(offsets: np.ndarray, places: Sequence[tuple[int, int]]) -> np.ndarray:
    """Byte offsets in the canonical text, int32, for those in a stream that holds its parts at `places`.

    Offsets in structure are those of the text before it; the separator belongs to what covers the part after it.
    """
    result = np.zeros(offsets.shape, np.int64)
    before = 0
    for index, (start, stop) in enumerate(places):
        base = before + (len(SEPARATOR) if index else 0)
        result = np.where(offsets > start, base + np.clip(offsets - start, 0, stop - start), result)
        before = base + stop - start
    return result.astype(np.int32)


def align_offsets(
    completion: str,
    offsets: Sequence[tuple[int, int]],
    reasoning: str | None,
    answer: str | None,
    blank: Sequence[bool] = (),
) -> np.ndarray:
    """Bytes of the canonical text that each token covers, int32, shape (tokens, 2), by its tokenizer's offsets.

    For tokens that do not spell the text, because their tokenizer lower-cases, composes or does not know it. `offsets`
    are in characters of `completion`: `text.completion_text`, or what a template left of it to write. The tokens of one
    character all have its offsets. `blank` tells which tokens spell white space alone, where that is known: those that
    share a character of another kind were put in by the tokenizer, as a prefix is, and count as structure.

    Raises AlignError where offsets do not ascend, or leave a character of reasoning or answer out that is no white
    space and no mark of the one before; and where tokens share more than one character, as those of a run of unknown
    ones do: which of them covers which is not to be known.
    """
    start, stop = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2).T
    if ((start < 0) | (stop < start) | (stop > len(completion))).any():
        raise AlignError(f"there are offsets outside of its {len(completion)} characters")
    before = np.maximum.accumulate(np.concatenate(([0], stop)))[:-1]
    places = _places(completion, reasoning, answer)
    gap = np.flatnonzero(start > before)
    gaps = [*zip(before[gap].tolist(), start[gap].tolist(), strict=True), (stop.max(initial=0), len(completion))]
    _prove_blank(completion, gaps, places)
    start = np.where(start == stop, np.minimum(start, before), start)  # white space that is trimmed off its offsets
    back = np.flatnonzero((np.diff(start, prepend=0) < 0) | (stop < before))
    if back.size:
        raise AlignError(f"token {back[0]} goes back to character {start[back[0]]}, behind the token before it")
    shared = np.flatnonzero(before - start > 1)
    if shared.size:
        run = completion[start[shared[0]] : before[shared[0]]].encode()
        raise AlignError(f"token {shared[0]} and the one before it have the same offsets for {_excerpt(run, 0)}")
    for first, last in places:
        lost = np.flatnonzero((start == stop) & (start > first) & (stop < last))
        if lost.size:
            raise AlignError(f"token {lost[0]} covers nothing, at character {start[lost[0]]} inside the text")
    codes = np.frombuffer(completion.encode("utf-32-le"), np.uint32)
    byte_at = np.concatenate(([0], np.cumsum(1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000))))
    first_byte, last_byte = byte_at[start], byte_at[stop]
    if len(blank):
        solid = np.concatenate(([0], np.cumsum(~_white_space(completion.encode()))))
        shares = (before > start) | (np.append(start[1:], len(completion)) < stop)
        put_in = np.asarray(blank) & shares & (solid[last_byte] > solid[first_byte])
        last_byte = np.where(put_in, first_byte, last_byte)
    return _canonical(np.stack((first_byte, last_byte), axis=1), [(byte_at[a], byte_at[b]) for a, b in places])


def _places(completion: str, reasoning: str | None, answer: str | None) -> list[tuple[int, int]]:
    """Where reasoning and answer stand in a completion, in characters."""
    stop = len(completion)
    places = [(stop - len(answer), stop)] if answer else []
    if reasoning:
        stop -= len(answer or "") + len(f"\n{THINK_CLOSE}\n\n")
        places.insert(0, (stop - len(reasoning), stop))
    held = [completion[max(first, 0) : last] for first, last in places]
    if held != [part for part in (reasoning, answer) if part]:
        raise AlignError("the completion does not hold the text: the chat template has written a part of it")
    return places


def _prove_blank(completion: str, gaps: Sequence[tuple[int, int]], places: Sequence[tuple[int, int]]) -> None:
    """Raise AlignError unless the gaps hold no character of the text that counts."""
    for gap_start, gap_stop in gaps:
        start = gap_start
        while 0 < start < gap_stop and _joins(completion[start]):
            start += 1
        if start < gap_stop and not completion[start:gap_stop].isspace():
            for place in range(start, gap_stop):
                if not completion[place].isspace() and any(first <= place < last for first, last in places):
                    raise AlignError(f"no token covers {completion[place]!r}, character {place} of {len(completion)}")


def _joins(character: str) -> bool:
    """Whether a character is written into the one before it: marks, and the later letters of a Hangul syllable."""
    return unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"


def _find(stream: bytes, part: bytes, cursor: int) -> int:
    """Where `part` begins after nothing but structure: after all of it, else (a part may begin with a tag) within."""
    skipped = _STRUCTURE.match(stream, cursor)
    start = skipped.end() if skipped else cursor
    if stream.startswith(part, start):  # first, because an answer `a` is also found in <|start|>assistant
        return start
    at = cursor
    while at < start:
        if stream.startswith(part, at):
            return at
        unit = _STRUCTURE_UNIT.match(stream, at)
        at = unit.end() if unit else start
    same = next((i for i, (a, b) in enumerate(zip(stream[start:], part, strict=False)) if a != b), None)
    at = same if same is not None else min(len(stream) - start, len(part))
    raise AlignError(
        f"the tokens differ from the text at byte {start + at}: tokens {_excerpt(stream, start + at)}, "
        f"text {_excerpt(part, at)}"
    )


def _excerpt(data: bytes, start: int) -> str:
    return repr(data[start : start + 24].decode(errors="replace")) if start < len(data) else "end"


def spans_of_ends(token_end: np.ndarray) -> np.ndarray:
    """Bytes that each token covers, shape (tokens, 2), where it begins at the end of the one before."""
    return np.stack((np.concatenate(([0], token_end[:-1])).astype(np.int32)[: len(token_end)], token_end), axis=1)


def sentence_of_spans(spans: np.ndarray, text: bytes, byte_end: Sequence[int]) -> np.ndarray:
    """Sentence index of each token, int32, shape (tokens,); −1 for structure tokens, which cover no byte.

    A token belongs to the sentence of its first byte that is not Unicode white space; a token of white space alone to
    the sentence before it. `spans` are bytes of `text`, shape (tokens, 2).
    """
    start, stop = spans.T
    solid = np.concatenate(([0], np.cumsum(~_white_space(text), dtype=np.int32)))  # such bytes before each place
    if not solid[-1]:
        return np.where(stop > start, np.int32(0), np.int32(-1))
    before = solid[start]
    anchor = np.maximum(np.where(solid[stop] > before, before, before - 1), 0)
    sentence = np.searchsorted(solid[np.asarray(byte_end)], anchor, side="right").astype(np.int32)
    return np.where(stop > start, sentence, np.int32(-1))


_WHITE: Final = np.isin(np.arange(256), list(b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"))


def _white_space(text: bytes) -> np.ndarray:
    """True for every byte of a Unicode white space character, shape (bytes,)."""
    data = np.frombuffer(text, dtype=np.uint8)
    mask = _WHITE[data]
    if not text.isascii():
        for match in _WIDE_SPACE.finditer(text):
            mask[match.start() : match.end()] = True
    return mask


def token_bytes(tokenizer_json: str) -> dict[int, bytes] | None:
    """Bytes of every token id of a fast tokenizer, from its serialised form; None where its kind is not known.

    Known: byte-level BPE (GPT-2's table of characters), and ▁-prefixed vocabularies with byte fallback.
    """
    spec = json.loads(tokenizer_json)
    model = spec["model"]
    vocabulary = model["vocab"]
    kinds = _kinds(spec.get("decoder")) | _kinds(spec.get("pre_tokenizer"))
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((row[0], i) for i, row in enumerate(vocabulary))
    if "ByteLevel" in kinds:
        table = _byte_level_table()
        result = {index: bytes(table[c] for c in token) for token, index in pairs if all(c in table for c in token)}
    elif "Metaspace" in kinds or "ByteFallback" in kinds or model.get("byte_fallback"):
        result = {index: _fallback_bytes(token) for token, index in pairs}
    else:
        return None
    for added in spec.get("added_tokens", []):
        result[added["id"]] = added["content"].encode()
    return result


def _kinds(part: Any) -> set[str]:
    """Types named anywhere inside a decoder or pre-tokenizer."""
    if part is None:
        return set()
    kinds = {part["type"]}
    for name in ("decoders", "pretokenizers"):
        for inner in part.get(name, []):
            kinds |= _kinds(inner)
    return kinds


_BYTE_TOKEN: Final = re.compile("<0x[0-9A-Fa-f]{2}>")


def _fallback_bytes(token: str) -> bytes:
    if _BYTE_TOKEN.fullmatch(token):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def _byte_level_table() -> dict[str, int]:
    """GPT-2's characters for bytes: printable Latin-1 stand for themselves, the rest for 256 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}
