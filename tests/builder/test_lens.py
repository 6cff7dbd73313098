"""Sentences by provenance: every character once, counted as `divergence` counts."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_text import TEXTS

from builder.errors import TableError
from builder.lens import MAX_CHARS, MAX_SENTENCES, lens, prefix_and_rest, whose
from builder.text import canonical_text, completion_text, sentence_byte_ends

PARTS = st.one_of(st.none(), TEXTS.map(str.strip))


def row(text: str, **changes: Any) -> dict[str, Any]:
    """A row of `sentences` for this text: every second sentence is the teacher's."""
    ends = sentence_byte_ends(text)
    share = [0.9 if index % 2 else 0.5 for index in range(len(ends))]
    return {
        "response_id": "r", "byte_end": ends, "teacher_tokens": [5] * len(ends), "student_tokens": [4] * len(ends),
        "p_teacher": share, "p_student": [0.5] * len(ends), **changes,
    }  # fmt: skip


@given(PARTS, PARTS)
@example(
    "Let \\[ x = 1", "y = 2 \\] be. Done."
)  # a formula, and so a sentence, runs from the reasoning into the answer
@example("漢字。", None)
@example("", "a\x00b\r\n👩‍👩‍👧")
def test_pieces_are_the_canonical_text_and_its_parts(reasoning: str | None, answer: str | None) -> None:
    text = canonical_text(reasoning, answer)
    found = lens(reasoning, answer, row(text), 0.1)
    assert "".join(piece.text for piece in found.pieces) == text
    assert "".join(piece.text for piece in found.part("reasoning")) == (reasoning or "")
    assert "".join(piece.text for piece in found.part("answer")) == (answer or "")
    assert [text for _, text in found.shown()] == [
        text.encode()[start:end].decode() for start, end in pairwise([0, *sentence_byte_ends(text)])
    ]
    assert found.hidden_chars == 0


@pytest.mark.parametrize(
    ("p_teacher", "p_student", "tokens", "expected"),
    [
        (0.75, 0.5, (3, 3), "common"),  # exactly the margin
        (0.76, 0.5, (3, 3), "teacher"),
        (0.5, 0.75, (3, 3), "common"),
        (0.5, 0.76, (3, 3), "student"),
        (0.9, 0.1, (2, 9), "short"),
        (0.9, 0.1, (9, 2), "short"),
        (None, 0.1, (0, 9), "short"),
    ],
)
def test_margin_is_strict_and_short_sentences_are_nobodys(
    p_teacher: float | None, p_student: float, tokens: tuple[int, int], expected: str
) -> None:
    assert whose(p_teacher, p_student, *tokens, margin=0.25) == expected


def test_counts_cover_all_sentences_also_those_not_shown() -> None:
    text = "One two. " * (MAX_SENTENCES + 10)
    found = lens(None, text.strip(), row(text.strip()), 0.1)
    assert (found.count("teacher"), found.count("common")) == (405, 405)
    assert len(found.shown()) == MAX_SENTENCES
    assert found.hidden_chars == len(text.strip()) - MAX_SENTENCES * len("One two. ") + 1  # the blank opens the next


def test_a_line_of_a_megabyte_is_cut_and_says_how_much_is_missing() -> None:
    found = lens(None, "x" * 1_000_000, row("x" * 1_000_000), 0.1)
    assert [len(piece.text) for piece in found.pieces] == [MAX_CHARS]
    assert found.hidden_chars == 1_000_000 - MAX_CHARS


def test_nan_is_no_probability() -> None:
    (sentence,) = lens(None, "Yes it is.", row("Yes it is.", p_student=[float("nan")]), 0.1).sentences
    assert (sentence.whose, sentence.p_student, sentence.delta) == ("short", None, None)


@pytest.mark.parametrize("ends", [[], [3], [4, 4, 9], [9, 4]])
def test_sentences_of_another_text_are_refused(ends: list[int]) -> None:
    with pytest.raises(TableError, match="builder score"):
        lens(None, "été oui", row("", byte_end=ends), 0.1)


def test_a_sentence_that_ends_within_a_character_is_refused() -> None:
    with pytest.raises(TableError, match="within a character"):
        lens(None, "été", row("été. ", byte_end=[1, 2, 5], **dict.fromkeys(TOKENS, [3] * 3)), 0.1)


TOKENS = ("teacher_tokens", "student_tokens", "p_teacher", "p_student")


@given(st.one_of(st.none(), TEXTS), st.one_of(st.none(), TEXTS), st.integers(0, 200))
def test_prefix_and_rest_are_the_reply_cut_where_the_completion_is(
    reasoning: str | None, answer: str | None, prefix_chars: int
) -> None:
    pieces = prefix_and_rest(reasoning, answer, prefix_chars)
    for part, text in (("reasoning", reasoning), ("answer", answer)):
        assert "".join(piece[2] for piece in pieces if piece[1] == part) == (text or "")
    authors = [piece[0] for piece in pieces]
    assert authors == sorted(authors, key=["student", "teacher"].index)
    prefix = completion_text(reasoning, answer)[:prefix_chars]
    begun = "".join(piece[2] for piece in pieces if piece[0] == "student" and piece[1] == "reasoning")
    assert not begun or prefix.startswith(f"<think>\n{begun}")
