"""The compiled passes find what the Python definitions find, on any text."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from builder.features import text_features
from builder.repetition import compiled
from builder.scripts import SPACE, decimals, kinds
from builder.text import ABBREVIATIONS, quiet_spans, sentence_ends

loops = pytest.importorskip("builder.feature_loops", exc_type=RuntimeError)

PIECES = [
    "word", " ", "  ", "\n", "\n\n", "\t", "\r", "\f", "\u00a0", "\u3000", "\u2028", "\x1c", ".", "..", "!", "?!",
    "。", "！？", "”", "」", "）", "'", '"', ")", "]", "*", "_", "(", "[", "“", "e.g.", "etc.", "Mr.", "approx. ",
    "p. ", "xp. ", "1.", "\n 12. ", "\n123. ", "\n1234. ", "\n         1. ", "\n        1. ", "٣. ", "\n٣. ", "²",
    "α. ", "𝟙. ", "3.5", "$a. b$ ", "$x$", "$", "\\(a! b\\) ", "$$a\n\nb$$", "```\n", "\n```python\na. b\n```\n",
    "~~~", "Σ", "ΑΣ ", "İ", "语", "かな", "Ж", "same sentence of twenty characters. ",
    "\\begin{array}a\nb\\end{array}",
]  # fmt: skip
TEXT = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
    st.text("ab .!?。\n\"')$`~1", max_size=60),
    st.text(max_size=60),
)


def codes_of(text: str) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


@settings(max_examples=300, deadline=None)
@given(TEXT)
@example("")
@example(" \n ")
@example("\n1. First. Then e.g. this.” And\n\n\nmore")
def test_compiled_sentences_are_those_of_the_expressions(text: str) -> None:
    quiet = quiet_spans(text)
    ends = sentence_ends(text, quiet)
    assert loops.sentence_spans(codes_of(text), quiet).tolist() == [list(span) for span in zip([0, *ends], ends)]  # noqa: B905


@pytest.mark.parametrize("word", ABBREVIATIONS)
@pytest.mark.parametrize("before", ["", "x ", "(", "[", '"', "“", "\n", "x", ".", "\u00e9"])
def test_compiled_sentences_know_every_abbreviation(word: str, before: str) -> None:
    text = f"{before}{word}. And so on"
    ends = sentence_ends(text)
    assert loops.sentence_spans(codes_of(text), [])[:, 1].tolist() == ends


@pytest.mark.parametrize("text", ["." * 200_000, "\n" * 200_000, ". " * 100_000, "1" * 200_000 + ". ", "  " * 100_000])
def test_long_runs_of_marks_are_read_once(text: str) -> None:
    assert loops.sentence_spans(codes_of(text), [])[:, 1].tolist() == sentence_ends(text)


@settings(max_examples=300, deadline=None)
@given(TEXT, TEXT, st.integers(1, 4))
def test_features_are_the_same_compiled_or_not(reasoning: str, answer: str, times: int) -> None:
    assert compiled() is not None
    text = reasoning * times
    assert text_features(text, answer, fast=True) == text_features(text, answer)


def test_white_space_and_digits_are_those_of_python() -> None:
    every = [chr(code) for code in range(0x110000)]
    assert (kinds() == SPACE).tolist() == [character.isspace() for character in every]
    assert decimals().tolist() == [ord(character) for character in every if character.isdecimal()]
