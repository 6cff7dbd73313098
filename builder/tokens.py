"""Which bytes of the canonical text each token covers. What does not add up is refused, never guessed."""

import json
import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from builder.text import SEPARATOR

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
    """The tokens do not reproduce the text; the message says where."""


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
    offsets = np.zeros(len(pieces), np.int64)
    empty = np.diff(ends, prepend=0) == 0
    before = 0
    for index, (start, stop) in enumerate(places):
        inside_text = (ends > start if stream[start] < 0x80 else ends >= start) & (ends < stop)
        if (lost := np.flatnonzero(empty & inside_text)).size:
            raise AlignError(f"token {lost[0]} has no bytes, at byte {ends[lost[0]]} inside the text")
        base = before + (len(SEPARATOR) if index else 0)
        inside = np.clip(ends - start, 0, stop - start)
        offsets = np.where(ends > start, base + inside, offsets)
        before = base + stop - start
    return offsets.astype(np.int32)


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


def sentence_of_tokens(token_end: np.ndarray, text: bytes, byte_end: Sequence[int]) -> np.ndarray:
    """Sentence index of each token, int32, shape (tokens,); −1 for structure tokens, which cover no byte.

    A token belongs to the sentence of its first byte that is not Unicode white space; a token of white space alone to
    the sentence before it.
    """
    total = len(text)
    start = np.concatenate(([0], token_end[:-1])).astype(np.int64)
    stop = token_end.astype(np.int64)
    solid = ~_white_space(text)
    positions = np.where(solid, np.arange(total), total)
    following = np.concatenate((np.minimum.accumulate(positions[::-1])[::-1], [total]))
    positions = np.where(solid, np.arange(total), -1)
    preceding = np.concatenate(([-1], np.maximum.accumulate(positions)))
    first = following[np.minimum(start, total)]
    anchor = np.where(first < stop, first, np.maximum(preceding[np.minimum(start, total)], 0))
    sentence = np.searchsorted(np.asarray(byte_end, dtype=np.int64), anchor, side="right").astype(np.int32)
    return np.where(stop > start, sentence, np.int32(-1))


def _white_space(text: bytes) -> np.ndarray:
    """True for every byte of a Unicode white space character, shape (bytes,)."""
    data = np.frombuffer(text, dtype=np.uint8)
    mask = np.isin(data, np.frombuffer(b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f", dtype=np.uint8))
    if data.size and data.max() >= 0x80:
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
