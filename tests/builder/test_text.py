"""Sentences, canonical text and released completions: literal cases, then properties over random Unicode."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from builder.text import (
    canonical_text,
    completion_text,
    sentence_byte_ends,
    sentence_ends,
    split_reasoning,
)

WHITE = "\t \r\n\x0b\x0c\x1c\x1f\x85\u00a0\u2028\u3000"
ALPHABET = st.one_of(
    st.sampled_from(list(".!?。！？$`~\\[]()\"'”’*_ 1ae\n" + WHITE)),
    st.sampled_from(["e.g. ", "```\n", "$$", "\\[", "\\]", "\\(", "\\)", "1. ", "👩‍👩‍👧", "é", "שלום", "漢字"]),
    st.characters(exclude_categories=["Cs"]),
)
TEXTS = st.lists(ALPHABET, max_size=60).map("".join)


def sentences(text: str) -> list[str]:
    ends = sentence_ends(text)
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    "expected",
    [
        ["One.", " Two!", " Three?", " Four"],
        ["First line\n", "second line\n", "third"],
        ["A.\n\n\n", "B.\n"],
        ["Pi is 3.14 and e is 2.718.", " Next."],
        ["Use a loop, e.g. a while loop.", " Done."],
        ["That is, i.e. four, cf. Eq. 3, vs. Fig. 2, etc. and so on.", " Then."],
        ["(e.g. this) or that."],
        ["So the answer is B.", " Then check it."],
        ["Really?!", " Yes..."],
        ["Wait...", " no."],
        ['He said "stop."', " Then he left."],
        ["(It is four.)", " So five."],
        ["**It is four.**", " _So five._", " Yes."],
        ["a.b.c and www.example.org/x.y?z=1!2 are one"],
        ["1. First step.", " More of it.\n", "2. Second step.\n", "  10. Tenth."],
        ["It was 42.", " Then 43."],
        ["We get          42.", " Then 43."],
        ["It costs $5.", " The other costs $6.", " Both $11.50."],
        ["We know $a. b$ and $x = 1.$ So.", " End."],
        ["Take $$x. \n\n y! z$$ here.", " End."],
        ["Take \\[x. \n y! z\\] here.", " And \\(a. b\\) there.", " End."],
        ["An open \\[ bracket.", " Goes on.", " \\[ x. y \\] too."],
        ["Code:\n", "```python\n", "a = 1. if b! else c\n", "x. y\n\n", "z\n", "```\n", "After.", " It."],
        ["~~~\n", "a. b\n", "~~~\n", "End."],
        ["```\n", "open. to the end\n", "of it. all"],
        ["```xy``` on one line.", " It ends."],
        ["他说：“好。”", "然后走了！", "真的吗？", "是"],
        ["「はい。」", "いいえ。"],
        ["一。", "two.", "\u3000three"],
        ["a.\r\n", "b.\r\n", "c"],
        ["Line\u2028separator\u0085and\x0bvertical\x0ctab\x1dgroup"],
        ["Only white space after.  \n \n"],
        ["\n \n Leading white space joins the first.", " Second."],
    ],
    ids=lambda expected: "|".join(expected)[:30],
)
def test_sentences(expected: list[str]) -> None:
    assert sentences("".join(expected)) == expected


def test_no_text_has_no_sentence_and_white_space_is_one() -> None:
    assert sentence_ends("") == []
    assert sentence_ends(" \n ") == [3]


@settings(max_examples=300, deadline=None)
@given(TEXTS)
@example("\u2028\u0085")
@example("a.\u2028b.\u0085c. d")
def test_sentences_cover_the_text_and_each_holds_something(text: str) -> None:
    ends = sentence_ends(text)
    assert ends == sorted(set(ends))
    assert (ends or [0])[-1] == len(text)
    if text.strip():
        assert all(sentence.strip() for sentence in sentences(text))
    assert sentence_byte_ends(text) == [len(text[:end].encode()) for end in ends]


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_a_sentence_ends_only_at_a_line_feed_or_a_mark(text: str) -> None:
    """Never at U+2028, U+0085 or a form feed, as splitlines() would."""
    for sentence in sentences(text)[:-1]:
        core = sentence.rstrip(WHITE)
        assert "\n" in sentence[len(core) :] or core.rstrip("\"'”’)]*_」』）")[-1] in ".!?。！？"


@pytest.mark.parametrize(
    "text",
    [
        "." * 200_000,
        "a" + "!?." * 70_000,
        "\n " * 100_000 + "x",
        "\\[ x " * 40_000,
        "\\( " * 60_000,
        "$$ a" * 50_000,
        "`" * 200_000,
        "." + '"' * 200_000,
        " " * 200_000 + "x",
        "e.g. " * 40_000,
        "\n```\n$$" * 25_000,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_degenerate_replies_of_200_000_characters_end_in_time(text: str) -> None:
    """Quadratic work on any of these is minutes; the suite's timeout would say so."""
    assert sentence_ends(text)[-1] == len(text)


def test_canonical_text_joins_what_there_is() -> None:
    assert canonical_text("think", "answer") == "think\n\nanswer"
    assert canonical_text("think", None) == "think"
    assert canonical_text(None, "answer") == canonical_text("", "answer") == "answer"
    assert canonical_text(None, None) == ""


def test_completion_has_a_think_block_only_with_reasoning() -> None:
    assert completion_text("a\nb", "c") == "<think>\na\nb\n</think>\n\nc"
    assert completion_text("a", None) == "<think>\na\n</think>\n\n"
    assert completion_text(None, "c") == completion_text("", "c") == "c"
    assert completion_text(None, None) == ""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<think>\nwhy\n</think>\n\nfour", ("why", "four", "tags")),
        (" \n<think>why</think>four", ("why", "four", "tags")),
        ("<think>\n\n</think>\n\nfour", (None, "four", "tags")),
        ("<think>why</think>", ("why", None, "tags")),
        ("why\n</think>\nfour", ("why", "four", "prefilled")),
        ("<think>\nwhy", ("why", None, "unclosed")),
        ("<think>", (None, None, "unclosed")),
        ("four", (None, "four", "none")),
        ("  ", (None, None, "none")),
        ("<think>a<think>b</think>c</think>d", ("a<think>b", "c</think>d", "tags")),
        ("Well, <think> is a tag", (None, "Well, <think> is a tag", "none")),
    ],
)
def test_split_reasoning(content: str, expected: tuple[str | None, str | None, str]) -> None:
    assert split_reasoning(content) == expected
    assert split_reasoning(completion_text("why", "four")) == ("why", "four", "tags")
