"""Features by literal examples, against plain-Python definitions, and on any text."""

import re
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.features import (
    compute_features,
    paragraph_repeats,
    sentence_repeats,
    tail_loop_chars,
    text_features,
    update_features,
)
from builder.schema import FEATURES
from builder.store import Run, columns_table

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
LOOPY = st.text("ab. \n", max_size=80)
SENTENCE = "This sentence has more than twenty characters."


def test_features_of_a_small_reply_worked_by_hand() -> None:
    features = text_features("So 2 + 2. Let me see.\n```python\nprint(2)\n```", "Das ist Größe 四.")
    assert features["reasoning_chars"] == 44
    assert features["answer_chars"] == 16
    assert features["paragraph_count"] == 2
    assert features["code_fences"] == 2
    assert features["cjk_chars"] == 1
    assert features["latin_chars"] == len("SoLetmeseepythonprint") + len("DasistGröße")
    assert features["distinct_4gram_share"] == 1.0
    assert features["ngram_repeats"] == 1
    assert features["tail_loop_chars"] == 0


def test_an_empty_reply_has_zeros_and_no_share() -> None:
    features = text_features(None, "")
    assert features["distinct_4gram_share"] is None
    assert {value for name, value in features.items() if name not in ("distinct_4gram_share", "text_hash")} == {0}


def test_left_over_tags_and_markers_are_counted_in_both_parts() -> None:
    features = text_features("a <think> b <|channel|>", "c </think> </THINK> <|end|><|im_end|>")
    assert features["think_tags"] == 3
    assert features["channel_markers"] == 2


def test_sentences_repeat_outside_code_and_latex_tables_only() -> None:
    line = "x = compute_something(1)\n"
    assert sentence_repeats(f"{SENTENCE} " * 3 + f"{SENTENCE}\n{SENTENCE}") == 5
    assert sentence_repeats("Short one. " * 50) == 0
    assert sentence_repeats("```\n" + line * 9 + "```\n") == 0
    assert sentence_repeats(line * 2 + "```\n" + line * 9 + "```\n" + line) == 3
    assert sentence_repeats("```\n" + line * 9) == 0
    row = "1 & 2 & 3 & 4 & 5 & 6 & 7\n"
    assert sentence_repeats("\\begin{array}{ccc}\n" + row * 9 + "\\end{array}") == 0
    assert sentence_repeats(row * 9) == 9


def test_paragraphs_of_eighty_characters_repeat_whatever_their_white_space() -> None:
    paragraph = "word " * 15 + "endin"
    assert len(paragraph) == 80
    assert paragraph_repeats(f"{paragraph}\n\n{paragraph} \n \n\n{paragraph}") == 3
    assert paragraph_repeats("\n\n".join([paragraph[:-1]] * 3)) == 0


def test_chinese_characters_are_words_of_their_own() -> None:
    features = text_features("我们需要计算这个数的平方根然后再加上一个常数" * 12, None)
    assert features["ngram_repeats"] == 12
    assert features["cjk_chars"] == 22 * 12


@pytest.mark.parametrize(
    ("text", "covered"),
    [
        ("The end:" + "wait, " * 4 + "wai", 27),
        ("wait, " * 3 + "wai", 0),
        ("Done." + "-" * 40 + "\n", 40),
        ("x" + "ab" * 4, 8),
        ("no loop at all", 0),
        ("", 0),
    ],
)
def test_tail_loop_covers_a_block_that_stands_four_times_or_more(text: str, covered: int) -> None:
    assert tail_loop_chars(text) == covered


def test_a_loop_at_the_end_of_the_thinking_counts_although_an_answer_follows() -> None:
    assert text_features("Hmm:" + "But wait. " * 50, "The answer is 4.")["tail_loop_chars"] == 499


@settings(max_examples=150, deadline=None)
@given(LOOPY)
def test_tail_loop_equals_its_plain_definition(text: str) -> None:
    stripped = text.rstrip()
    best = 0
    for period in range(1, len(stripped) // 4 + 1):
        covered = period
        while covered < len(stripped) and stripped[-1 - covered] == stripped[-1 - covered + period]:
            covered += 1
        if covered >= 4 * period:
            best = max(best, covered)
    assert tail_loop_chars(text) == best


@settings(max_examples=150, deadline=None)
@given(st.one_of(LOOPY, st.text("ab éß. \n,", max_size=120)))
def test_ngrams_equal_their_plain_definition(text: str) -> None:
    words = re.findall(r"\w+|[^\w\s]", text)
    fours = Counter(tuple(words[start : start + 4]) for start in range(len(words) - 3))
    twenties = Counter(tuple(words[start : start + 20]) for start in range(len(words) - 19))
    features = text_features(text, None)
    assert features["ngram_repeats"] == max(twenties.values(), default=0)
    assert features["distinct_4gram_share"] == (len(fours) / fours.total() if fours else None)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.none(), TEXT), st.one_of(st.none(), TEXT))
def test_any_text_has_features_that_fit_the_schema(reasoning: str | None, answer: str | None) -> None:
    frame = pl.DataFrame(
        {"response_id": ["r"], "reasoning": [reasoning], "answer": [answer]},
        schema={"response_id": pl.String, "reasoning": pl.String, "answer": pl.String},
    )
    table = compute_features(frame)
    assert table.schema == FEATURES.schema
    (row,) = table.to_pylist()
    assert all(value >= 0 for name, value in row.items() if isinstance(value, int | float))
    assert row["tail_loop_chars"] <= len(reasoning or "") + len(answer or "")
    assert row["ngram_repeats"] <= len((reasoning or "") + (answer or "")) + 1


def test_a_pathological_text_takes_no_longer_than_its_length() -> None:
    for text in ("a" * 200_000, "\n" * 200_000, "$" * 200_000, "```\n" * 50_000, "\\begin{array}" * 15_000):
        assert text_features(text, text)["reasoning_chars"] == len(text.strip())


def response(response_id: str, reasoning: str) -> dict[str, object]:
    return {
        "response_id": response_id,
        "prompt_id": "p",
        "role": "teacher",
        "model": "m",
        "sample_index": 0,
        "temperature": 0.6,
        "reasoning": reasoning,
        "answer": "4",
        "reasoning_format": "field",
        "tool_calls": 0,
        "replaced_characters": 0,
        "prefix_chars": 0,
    }


def test_update_computes_only_what_is_missing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert update_features(run) == 0
    run.append("responses", columns_table("responses", [response("a", "one"), response("b", "three")]))
    assert update_features(run) == 2
    assert update_features(run) == 0
    run.append("responses", columns_table("responses", [response("c", "eleven"), response("a", "one")]))
    assert update_features(run, shard=1) == 1
    table = run.read("features", ["response_id", "reasoning_chars"])
    assert sorted(table.iter_rows()) == [("a", 3), ("b", 5), ("c", 6)]
    assert [path.name for path in run.parts("features")] == ["part-000-00000.parquet", "part-001-00000.parquet"]
