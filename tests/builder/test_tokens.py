"""Alignment by bytes, with tokenizers trained here, on random Unicode, against slow references."""

import json
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from builder.text import canonical_text, sentence_byte_ends
from builder.tokens import AlignError, align, sentence_of_spans, spans_of_ends, token_bytes

CORPUS = [
    "the sum of one and two is three, so the answer is three.\n\n\tx = 1; y = 2\r\n",
    "每个苹果三元，所以一共六元。日本語のテキスト。",
    "e\u0301te\u0301 naïve 👩‍👩‍👧 🇫🇷 שלום עולם مرحبا",
] * 8
MARKERS = ["<think>", "</think>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|im_end|>"]
WRAPS = {
    "tags": ("<think>\n{0}\n</think>\n\n{1}<|im_end|>", "{1}<|im_end|>"),
    "prefilled": ("{0}\n</think>\n\n{1}", "{1}"),
    "none": ("{0}\n\n{1}", "{1}"),
    "harmony": (
        "<|channel|>analysis<|message|>{0}<|end|><|start|>assistant<|channel|>final<|message|>{1}<|return|>",
        "<|channel|>final<|message|>{1}<|return|>",
    ),
    "wide": ("<think>\n\u3000\u3000{0}\u2028\x1c</think>\n\u3000{1}\u0085", "\u00a0{1}\n"),
}


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind == "byte-level":
        result = Tokenizer(models.BPE())
        result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        result.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    else:
        fallback = [f"<0x{byte:02X}>" for byte in range(256)]
        if kind == "unigram":
            result = Tokenizer(models.Unigram([(piece, -9.0) for piece in ["<unk>", *fallback]], 0, byte_fallback=True))
            result.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
            trainer = trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", show_progress=False)
            seed = Tokenizer(models.Unigram())
            seed.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
            seed.train_from_iterator(CORPUS, trainer)
            learned = sorted(piece for piece in seed.get_vocab() if piece != "<unk>" and not set(piece) & set("\r\n\t"))
            pieces = [("<unk>", 0.0), *((p, -9.0) for p in fallback), *((p, -4.0 - 1 / len(p)) for p in learned)]
            result.model = models.Unigram(pieces, 0, byte_fallback=True)
        else:  # merges over whole characters, bytes for unknown ones
            seed = Tokenizer(models.BPE(unk_token="<unk>"))
            seed.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
            trainer = trainers.BpeTrainer(
                vocab_size=250, special_tokens=["<unk>"], limit_alphabet=60, show_progress=False
            )
            seed.train_from_iterator(CORPUS, trainer)
            learned = json.loads(seed.to_str())["model"]
            vocabulary = learned["vocab"] | {piece: len(learned["vocab"]) + i for i, piece in enumerate(fallback)}
            merges = [tuple(merge) for merge in learned["merges"]]
            result = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=False))
            result.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        result.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
    if kind == "byte-level":
        result.train_from_iterator(CORPUS, trainer)
    result.add_special_tokens(MARKERS)
    return result


@cache
def table(kind: str) -> dict[int, bytes]:
    found = token_bytes(tokenizer(kind).to_str())
    assert found is not None
    return found


def tokenised(kind: str, text: str) -> list[bytes]:
    return [table(kind)[index] for index in tokenizer(kind).encode(text, add_special_tokens=False).ids]


CHARACTERS = st.one_of(
    st.sampled_from(list("aeinst .,!?\n\t0129=+")),
    st.sampled_from(["e\u0301", "👩‍👩‍👧", "🇫🇷", "每个", "שלום", "\r\n", "\u3000", "\u2028", "ﷺ", "the sum", "¾", "𝒳"]),
    st.characters(exclude_categories=["Cs", "Co", "Cn"], exclude_characters="▁"),
)
PARTS = st.lists(CHARACTERS, min_size=1, max_size=25).map(lambda parts: "".join(parts).strip() or "x")


def pairs() -> st.SearchStrategy[tuple[str | None, str | None]]:
    return st.one_of(
        st.tuples(PARTS, PARTS), st.tuples(st.none(), PARTS), st.tuples(PARTS, st.none()), st.just((None, None))
    )


def wrapped(wrap: str, reasoning: str | None, answer: str | None) -> str:
    both, alone = WRAPS[wrap]
    if reasoning and not answer:
        return both.partition("{1}")[0].format(reasoning)
    return (both if reasoning else alone).format(reasoning, answer or "")


@pytest.mark.parametrize("kind", ["byte-level", "unigram", "characters"])
@pytest.mark.parametrize("wrap", sorted(WRAPS))
@settings(max_examples=40, deadline=None)
@given(pairs())
@example(("a", "a"))
@example(("analysis", "final"))
@example(("assistant", "s"))
@example(("\u0301", "e"))
@example(("x\n\n\ny", "\ufeff1"))
def test_tokens_cover_the_canonical_text_exactly(kind: str, wrap: str, parts: tuple[str | None, str | None]) -> None:
    reasoning, answer = parts
    text = canonical_text(reasoning, answer).encode()
    stream = wrapped(wrap, reasoning, answer)
    pieces = tokenised(kind, stream)
    assume(
        b"".join(pieces).lstrip(b" ") == stream.encode().lstrip(b" ")
    )  # the pieces are the text, a dummy space apart
    ends = align(pieces, reasoning, answer)
    assert ends.dtype == np.int32
    assert ends.tolist() == sorted(ends.tolist())
    assert (ends[-1] if len(ends) else 0) == len(text)
    for piece, start, stop in zip(pieces, [0, *ends.tolist()], ends.tolist(), strict=False):
        if piece.decode(errors="replace") in MARKERS:
            assert start == stop, "structure covers nothing"
        covered = text[start:stop]
        assert covered == b"" or covered.strip(b"\n") in piece or covered in b"\n\n" + piece + b"\n\n"
    byte_end = sentence_byte_ends(text.decode())
    assert sentence_of_spans(spans_of_ends(ends), text, byte_end).tolist() == slow_sentences(
        ends.tolist(), text.decode(), byte_end
    )


def slow_sentences(ends: list[int], text: str, byte_end: list[int]) -> list[int]:
    """Byte by byte: which sentence each byte is of, which bytes are white; then the rule as it is worded."""
    white = [character.isspace() for character in text for _ in character.encode()]
    sentence_of_byte = [next(i for i, end in enumerate(byte_end) if place < end) for place in range(len(white))]
    found = []
    start = 0
    for stop in ends:
        solid = [place for place in range(start, stop) if not white[place]]
        before = [place for place in range(start) if not white[place]]
        if stop == start:
            found.append(-1)
        elif solid:
            found.append(sentence_of_byte[solid[0]])
        else:
            found.append(sentence_of_byte[before[-1]] if before else 0)
        start = stop
    return found


@settings(max_examples=150, deadline=None)
@given(PARTS, st.data())
def test_any_cut_of_the_bytes_aligns(text: str, data: st.DataObject) -> None:
    """Characters split over tokens: every cut of the byte stream is a tokenization."""
    stream = f"<think>\n{text}\n</think>\n\n{text}".encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    ends = align(pieces, text, text)
    canonical = canonical_text(text, text)
    byte_end = sentence_byte_ends(canonical)
    expected = slow_sentences(ends.tolist(), canonical, byte_end)
    assert sentence_of_spans(spans_of_ends(ends), canonical.encode(), byte_end).tolist() == expected
    assert ends[-1] == len(canonical.encode())


@settings(max_examples=100, deadline=None)
@given(PARTS, PARTS, st.data())
def test_an_altered_token_is_refused_with_its_place(reasoning: str, answer: str, data: st.DataObject) -> None:
    pieces = tokenised("byte-level", wrapped("tags", reasoning, answer))
    inner = [i for i, piece in enumerate(pieces) if piece.strip() and piece.decode(errors="replace") not in MARKERS]
    place = data.draw(st.sampled_from(inner))
    change = data.draw(st.sampled_from(["drop", "double", "other"]))
    altered = {"drop": [], "double": [pieces[place]] * 2, "other": [b"#~#"]}[change]
    stream = [*pieces[:place], *altered, *pieces[place + 1 :]]
    assume(b"".join(stream) != b"".join(pieces))
    with pytest.raises(AlignError, match=r"differ from the text at byte \d+|go on after the text"):
        align(stream, reasoning, answer)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([b"one", b" twx"], "differ from the text at byte 6: tokens 'x', text 'o'"),
        ([b"one", b" tw"], "differ from the text at byte 6: tokens end, text 'o'"),
        ([b"one", b" two", b" three"], "go on after the text: ' three'"),
        ([b"Sure: ", b"one two"], "differ from the text at byte 0: tokens 'Sure: one two', text 'one two'"),
        ([], "differ from the text at byte 0: tokens end, text 'one two'"),
        ([b"one", b"", b" two"], "token 1 has no bytes, at byte 3 inside the text"),
    ],
)
def test_refusals_say_where(pieces: list[bytes], message: str) -> None:
    with pytest.raises(AlignError, match=re.escape(message)):
        align(pieces, None, "one two")


def test_empty_tokens_are_structure_only_outside_the_text() -> None:
    """vLLM gives parts of a split character as empty and the last one whole: their logprobs would vanish in silence."""
    emoji = "🤔".encode()
    assert align([b"", b"a", b""], None, "a").tolist() == [0, 1, 1]
    assert align([b"<think>", b"", b"a", b"", b"</think>", b"", b"b", b""], "a", "b").tolist() == [
        0, 0, 1, 1, 1, 1, 4, 4,
    ]  # fmt: skip
    for pieces in ([b"a", b"", b"", emoji], [b"", emoji, b"a"]):
        with pytest.raises(AlignError, match="has no bytes"):
            align(pieces, None, b"".join(pieces).decode())


def test_the_separator_belongs_to_the_token_after_it() -> None:
    ends = align([b"<think>", b"\n", b"One", b".", b"\n", b"</think>", b"\n\n", b"Two"], "One.", "Two")
    assert ends.tolist() == [0, 0, 3, 4, 4, 4, 4, 9]
    assert sentence_of_spans(spans_of_ends(ends), b"One.\n\nTwo", [6, 9]).tolist() == [-1, -1, 0, 0, -1, -1, -1, 1]


def test_white_space_tokens_go_to_the_sentence_before() -> None:
    text = b"A.\n\n B"
    ends = np.array([2, 4, 5, 6], np.int32)
    assert sentence_of_spans(spans_of_ends(ends), text, [4, 6]).tolist() == [0, 0, 0, 1]
    assert sentence_of_spans(spans_of_ends(np.array([1, 2], np.int32)), b" a", [2]).tolist() == [0, 0]
    assert sentence_of_spans(spans_of_ends(np.zeros(2, np.int32)), b"", []).tolist() == [-1, -1]


@pytest.mark.parametrize("kind", ["byte-level", "unigram", "characters"])
@settings(max_examples=60, deadline=None)
@given(PARTS)
def test_token_bytes_agree_with_decode(kind: str, text: str) -> None:
    ids = tokenizer(kind).encode(text, add_special_tokens=False).ids
    joined = b"".join(table(kind)[index] for index in ids)
    decoded = tokenizer(kind).decode(ids, skip_special_tokens=False)
    assert joined.decode(errors="replace").removeprefix(" ") == decoded.removeprefix(" ")
    if kind == "byte-level":
        assert joined == text.encode()


def test_token_bytes_of_markers_fallback_bytes_and_unknown_kinds() -> None:
    ids = tokenizer("characters").get_vocab()
    assert table("characters")[ids["<think>"]] == b"<think>"
    assert table("characters")[ids["<0xF0>"]] == b"\xf0"
    assert set(table("byte-level")) == set(tokenizer("byte-level").get_vocab().values())
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert token_bytes(words.to_str()) is None


@pytest.mark.parametrize(
    ("pieces", "answer"),
    [
        ([b"<", b"/s>"] * 60_000 + [b"ab"], "s"),
        ([b"\n"] * 200_000 + [b"b"], "\n\nc"),
        ([b"a"] * 200_000, "b" * 200_000),
    ],
    ids=["markers", "line breaks", "other text"],
)
def test_a_long_foreign_stream_is_refused_in_time(pieces: list[bytes], answer: str) -> None:
    with pytest.raises(AlignError):
        align(pieces, None, answer)


def test_a_reply_of_200_000_characters_aligns() -> None:
    text = "Ünïcode is fine. " * 12_000
    text = text.strip()
    stream = f"<think>\n{text}\n</think>\n\n{text}".encode()
    pieces = [stream[start : start + 3] for start in range(0, len(stream), 3)]
    ends = align(pieces, text, text)
    canonical = canonical_text(text, text)
    sentence = sentence_of_spans(spans_of_ends(ends), canonical.encode(), sentence_byte_ends(canonical))
    assert sentence.max() == 23_999
