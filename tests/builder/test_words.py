"""Words as comparisons of texts see them, by literal examples and against plain definitions."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.words import batch_hashes, ngram_hashes, split_words


def words(text: str, *, signs: bool = False) -> list[str]:
    split = split_words(text, signs=signs)
    return [split.span(at, at) for at in range(split.hashes.size)]


PINNED_WORDS = [
    "0xf8fe3c03e78f3f8",
    "0xce07a3f9be90b697",
    "0xb295af99c945c0c4",
    "0x3cf5ef70486245b4",
    "0x287da47f2b3562a9",
    "0x32cca639fc7b5152",
    "0x244b39657d7e7f91",
]
PINNED_GRAMS = ["0x1fbe6860fbda7ed9", "0x66282e9a4b66445c", "0x39578d8f0cced44"]


@pytest.mark.parametrize(
    ("text", "without", "with_signs"),
    [
        (r"$y=\frac{2}{x^2}$", "y frac 2 x 2", r"$ y = \ frac { 2 } { x ^ 2 } $"),
        ("Größe X_1: 2.5", "grösse x 1 2 5", "grösse x _ 1 : 2 . 5"),
        ("我们 算ab12", "我 们 算 ab12", "我 们 算 ab12"),
        ("한국 カタ", "한 국 カ タ", "한 국 カ タ"),
        ("हिन्दी भाषा", "हिन्दी भाषा", "हिन्दी भाषा"),
        ("ﬁne Ｘ２ x²", "fine x2 x2", "fine x2 x2"),
        ("!? \n", "", "! ?"),
        ("", "", ""),
    ],
)
def test_words_of_small_texts(text: str, without: str, with_signs: str) -> None:
    assert words(text) == without.split()
    assert words(text, signs=True) == with_signs.split()


@settings(max_examples=150, deadline=None)
@given(st.text("aB1 .-_é", max_size=60))
def test_words_equal_their_plain_definition(text: str) -> None:
    assert words(text) == re.findall(r"[^\W_]+", text.lower())
    assert words(text, signs=True) == re.findall(r"[^\W_]+|[^\w\s]|_", text.lower())


@settings(max_examples=150, deadline=None)
@given(st.text("ab ", max_size=40), st.text("ab ", max_size=40), st.integers(1, 4))
def test_two_runs_of_words_have_one_hash_exactly_when_they_are_the_same_words(one: str, two: str, size: int) -> None:
    grams = []
    for text in (one, two):
        plain = text.split()
        grams.append([tuple(plain[at : at + size]) for at in range(len(plain) - size + 1)])
    hashes = [ngram_hashes(split_words(text, signs=False).hashes, size) for text in (one, two)]
    assert [len(found) for found in hashes] == [len(plain_grams) for plain_grams in grams]
    shared = np.isin(hashes[0], hashes[1]).tolist()
    assert shared == [gram in grams[1] for gram in grams[0]]


def test_hashes_are_the_same_in_every_process_and_release() -> None:
    split = split_words("Let x = 1, 算.", signs=True)
    assert [hex(value) for value in split.hashes.tolist()] == PINNED_WORDS
    assert [hex(value) for value in ngram_hashes(split.hashes, 5).tolist()] == PINNED_GRAMS


def test_a_huge_text_without_spaces_is_split_into_words_of_bounded_length() -> None:
    split = split_words("a" * 3_000_000, signs=False)
    assert split.hashes.size == 12
    assert int((split.ends - split.starts).sum()) == 3_000_000


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("aß1 .-\ńé", max_size=30), max_size=6), st.booleans())
def test_a_batch_of_texts_has_the_words_of_each_text(texts: list[str], signs: bool) -> None:
    hashes, ends = batch_hashes(texts, signs=signs)
    alone = [split_words(text, signs=signs).hashes.tolist() for text in texts]
    assert [part.tolist() for part in np.split(hashes, ends)] == [*alone, []]


def test_a_batch_of_long_texts_has_the_words_of_each_text() -> None:
    texts = ["a b " * 50_000, "c " * 200_000, "", "x" * 300_000, "d e", "f " * 130_000]
    hashes, ends = batch_hashes(texts, signs=False)
    alone = [split_words(text, signs=False).hashes.tolist() for text in texts]
    assert [part.tolist() for part in np.split(hashes, ends)] == [*alone, []]
