"""Features by literal examples, against plain-Python definitions, and on any text."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import features as module
from builder.errors import TableError
from builder.features import LONGEST_FORMULA, compute_features, text_features, update_features
from builder.refusals import refuses
from builder.repeats import tail_loop_chars
from builder.repetition import compiled
from builder.schema import FEATURES
from builder.store import Run, columns_table
from builder.text import quiet_spans

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
LOOPY = st.text("ab. \n", max_size=80)
PIECES = [
    "ab ",
    "c. ",
    "1",
    "_",
    "é",
    " ",
    "\n",
    "\n\n",
    "$x$",
    "$x+1$ ",
    "\\(y\\)",
    "```\n",
    "语",
    "か",
    ", ",
    "$",
    "$$a\n\nb$$",
]
MIXED = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)
SENTENCE = "This sentence has more than twenty characters."


def test_features_of_a_small_reply_worked_by_hand() -> None:
    features = text_features("So 2 + 2. Let me see.\n```python\nprint(2)\n```", "Das ist Größe 四.")
    assert features["reasoning_chars"] == 44
    assert features["answer_chars"] == 16
    assert features["paragraph_count"] == 2
    assert features["code_fences"] == 2
    assert features["han_chars"] == 1
    assert features["latin_chars"] == len("SoLetmesee") + len("DasistGröße")
    assert features["longest_paragraph_chars"] == len("So 2 + 2. Let me see.\n")
    assert features["refuses"] is False
    assert features["distinct_4gram_share"] == 1.0
    assert features["ngram_repeats"] == 0
    assert features["tail_loop_chars"] == 0


def test_an_empty_reply_has_zeros_and_no_share() -> None:
    features = text_features(None, "")
    assert features["distinct_4gram_share"] is None
    assert {value for name, value in features.items() if name not in ("distinct_4gram_share", "text_hash")} == {0}


def test_left_over_tags_and_markers_are_counted_in_both_parts() -> None:
    features = text_features("a <think> b <|channel|>", "c </think> </THINK> <|end|><|im_end|>")
    assert features["think_tags"] == 3
    assert features["channel_markers"] == 2


def repeats(text: str, what: str = "sentence_repeats") -> int:
    found = text_features(text, None)[what]
    assert isinstance(found, int)
    return found


def test_sentences_repeat_outside_code_and_latex_tables_only() -> None:
    line = "x = compute_something(1)\n"
    assert repeats(f"{SENTENCE} " * 3 + f"{SENTENCE}\n{SENTENCE}") == 5
    assert repeats("Short one. " * 50) == 0
    assert repeats("```\n" + line * 9 + "```\n") == 0
    assert repeats(line * 2 + "```\n" + line * 9 + "```\n" + line) == 3
    row = "1 & 2 & 3 & 4 & 5 & 6 & 7\n"
    assert repeats("\\begin{array}{ccc}\n" + row * 9 + "\\end{array}") == 0
    assert repeats(row * 9) == 9


def test_a_sentence_of_twenty_characters_counts_and_one_of_nineteen_does_not() -> None:
    assert repeats("Twenty characters ok.\n".replace(" ok", "") * 3) == 0
    assert repeats("Twenty characters so\n" * 3) == 3


def test_formulas_make_no_sentence_longer_but_tell_sentences_apart() -> None:
    assert repeats("Thus $x_1 = a + b + c$.\n" * 5) == 0
    assert repeats("Substituting the value $x = 1$ gives zero.\n" * 5) == 5
    assert repeats("".join(f"Substituting the value $x = {n}$ gives zero.\n" for n in range(5))) == 1


def test_code_that_never_closes_is_no_excuse_for_a_loop() -> None:
    line = "x = compute_something(1)\n"
    assert repeats("```\n" + line * 9) == 9
    assert repeats("```\n" + line * 9 + "```") == 0


def test_a_formula_is_one_word_of_an_ngram_unless_it_is_long() -> None:
    short, long = "$a + b = c$", "$" + "a + b = c + " * (LONGEST_FORMULA // 12 + 1) + "d$"
    assert len(short) <= LONGEST_FORMULA < len(long)
    assert repeats(f"{short} " * 19, "ngram_repeats") == 0
    assert repeats(f"{short} " * 39, "ngram_repeats") == 20
    assert repeats(f"{long} ", "ngram_repeats") > 10


def test_paragraphs_of_eighty_characters_repeat_whatever_their_white_space() -> None:
    paragraph = "word " * 15 + "endin"
    assert len(paragraph) == 80
    assert repeats(f"{paragraph}\n\n{paragraph} \n \n\n{paragraph}", "paragraph_repeats") == 3
    assert repeats(f"{paragraph}\n\n{paragraph.replace(' ', chr(9) + ' ')}", "paragraph_repeats") == 2
    assert repeats("\n\n".join([paragraph[:-1]] * 3), "paragraph_repeats") == 0


def test_longest_paragraph_leaves_formulas_and_code_out() -> None:
    assert repeats("ab\n\nabcd $x$ e\n\nabc", "longest_paragraph_chars") == len("abcd  e")
    assert repeats("ab\n```\nlong = 'code'\n```\nc", "longest_paragraph_chars") == len("ab\nc")


def test_scripts_are_counted_outside_formulas_and_code() -> None:
    text = "Latin Ёж سلام 漢字 かな ｶﾅ 한글 שלום नमस्ते αβγ 𝑥 12_ $Formel$ \\(俄\\)\n```\ncode = 'код'\n```\n"
    found = text_features(text, None)
    counts = {name.removesuffix("_chars"): found[name] for name in FEATURES.schema.names if name.endswith("_chars")}
    wanted = {"latin": 5, "cyrillic": 2, "arabic": 4, "han": 2, "kana": 4, "hangul": 2, "other": 4 + 4}
    assert {script: counts[script] for script in wanted} == wanted


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't assist with that request.",
        "I’m really sorry, but as an AI model, I cannot do that.",
        "**Sorry**, I won't help with this.",
        "As a large language model, I am unable to browse.",
        "I cannot provide instructions for that.",
        "I must respectfully decline.",
        "很抱歉，我无法回答这个问题。",
        "对不起，我不能提供这方面的帮助。",
        "作为一个人工智能语言模型，我无法提供医疗建议。",
    ],
)
def test_refusals_are_recognised_by_their_beginning(answer: str) -> None:
    assert refuses(answer)
    assert not refuses("The answer is 4. " + answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I'm sorry to hear about your loss. You cannot change it.",
        "I'm sorry, I need more information to write a review.",
        "We cannot factor this any further, so the answer is 7.",
        "I cannot believe that 1 + 1 = 3.",
        "The problem cannot be solved with the given information.",
        "As a model of the population, the logistic equation cannot exceed K.",
        "抱歉，前面算错了，重新计算得 5。",
        "我们不能把它分解，所以答案是 7。",
    ],
)
def test_what_only_sounds_like_a_refusal_is_none(answer: str) -> None:
    assert not refuses(answer)


def test_chinese_characters_are_words_of_their_own() -> None:
    features = text_features("我们需要计算这个数的平方根然后再加上一个常数" * 12, None)
    assert features["ngram_repeats"] == 12
    assert features["han_chars"] == 22 * 12


@pytest.mark.parametrize(
    ("text", "covered"),
    [
        ("The end:" + "wait, " * 4 + "wai", 27),
        ("wait, " * 3 + "wai", 0),
        ("Done." + "-" * 40 + "\n", 40),
        ("x" + "ab" * 4, 8),
        ("ababababa" * 4, 36),
        ("no loop at all", 0),
        ("", 0),
    ],
)
def test_tail_loop_covers_a_block_that_stands_four_times_or_more(text: str, covered: int) -> None:
    assert tail_loop_chars(text) == covered


def test_code_fences_are_those_of_the_thinking_or_of_an_answer_without_any() -> None:
    fenced = "```python\nprint(4)\n```"
    assert text_features("Compute.", fenced)["code_fences"] == 0
    assert text_features(fenced, "4")["code_fences"] == 2
    assert text_features(None, fenced)["code_fences"] == 2


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


def plain_words(text: str) -> list[str]:
    """Words by definition: formulas are one, code is none."""
    words, place, behind_formula = [], 0, False
    for start, end, is_code in [*quiet_spans(text), (len(text), len(text), True)]:
        unclosed = is_code and end == len(text) and not re.search(r"\n[ \t]*`{3,}\s*$", text[start:end])
        words += re.findall(r"[语か]|(?:(?![语か])\w)+|[^\w\s]", text[place : end if unclosed else start])
        if not is_code:
            # Formulas side by side are one.
            if start == place and behind_formula:
                words[-1] += text[start:end]
            else:
                words.append("formula " + text[start:end])
        place, behind_formula = end, not is_code
    return words


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        LOOPY,
        st.text("ab éß. \n,", max_size=120),
        MIXED,
        st.tuples(MIXED, st.integers(1, 30)).map(lambda x: x[0] * x[1]),
    )
)
def test_ngrams_equal_their_plain_definition_compiled_or_not(text: str) -> None:
    words = plain_words(text)
    fours = Counter(tuple(words[start : start + 4]) for start in range(len(words) - 3))
    twenties = Counter(tuple(words[start : start + 20]) for start in range(len(words) - 19))
    for fast in (False, True) if compiled() else (False,):
        features = text_features(text, None, fast=fast)
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
    for text in (
        "a" * 200_000,
        "\n" * 200_000,
        "$" * 200_000,
        "```\n" * 50_000,
        "\\begin{array}" * 15_000,
        ("a" * 4000 + "b") * 50,
        "b" + "a" * 50_000 + "ca" * 25_000,
    ):
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
    assert update_features(run) == 1
    table = run.read("features", ["response_id", "reasoning_chars"])
    assert sorted(table.iter_rows()) == [("a", 3), ("b", 5), ("c", 6)]
    assert [path.name for path in run.parts("features")] == ["part-000-00000.parquet", "part-000-00001.parquet"]
    run.append("responses", columns_table("responses", [response("d", "one")]))
    run.append("responses", columns_table("responses", [response("d", "one"), response("e", "one")]))
    assert update_features(run) == 2
    assert run.rows("features") == 5


def two_parts(folder: Path) -> Run:
    run = Run(folder)
    for part in range(2):
        rows = [response(f"{part}-{n}", f"Step {n}. " * n + f"{SENTENCE} " * (n % 5)) for n in range(60)]
        run.append("responses", columns_table("responses", rows))
    return run


def test_features_of_another_version_and_unreadable_ones_are_dropped_computed_again_and_said(tmp_path: Path) -> None:
    run = two_parts(tmp_path)
    update_features(run)
    whole = run.read("features")
    old, broken = run.parts("features")
    rows = pq.read_table(old)
    pq.write_table(rows.replace_schema_metadata({"version": "1"}), old)
    broken.write_bytes(b"no Parquet")
    assert update_features(run) == 120
    assert run.read("features").equals(whole)
    pq.write_table(rows.drop_columns(["latin_chars"]), run.parts("features")[0])
    assert update_features(run) == 60
    assert run.read("features").sort("response_id").equals(whole.sort("response_id"))
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["step"], event["parts_dropped"]) for event in events] == [("features", 2), ("features", 1)]
    assert update_features(run) == 0


def test_worker_processes_make_the_same_parts_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, shared = two_parts(tmp_path / "alone"), two_parts(tmp_path / "shared")
    update_features(alone)
    monkeypatch.setattr(module, "_SMALL_BYTES", 0)
    monkeypatch.setattr(module, "_BATCH_ROWS", 7)
    assert update_features(shared, workers=2) == 120
    for ours, theirs in zip(alone.parts("features"), shared.parts("features"), strict=True):
        assert pq.read_table(ours).equals(pq.read_table(theirs))


def test_a_worker_that_dies_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = two_parts(tmp_path)
    monkeypatch.setattr(module, "_SMALL_BYTES", 0)
    monkeypatch.setattr(module, "_WORKER_LIMIT_S", 0.0)
    assert update_features(run, workers=1) == 120
    assert run.rows("features") == 120


def test_workers_that_cannot_start_and_unreadable_replies_are_said_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = two_parts(tmp_path)
    monkeypatch.setattr(module, "_SMALL_BYTES", 0)
    with monkeypatch.context() as patch:
        patch.setattr("builder.supervised.START_LIMIT_S", 0.0)
        with pytest.raises(TableError, match=r"No process that computes features could be started .* Rerun"):
            update_features(run)
    run.parts("responses")[0].write_bytes(b"no Parquet")
    with pytest.raises(TableError, match=r"part-000-00000\.parquet cannot be read"):
        update_features(run)


def test_features_do_not_depend_on_the_hash_seed() -> None:
    text = f"{SENTENCE} " * 4 + "Лось $x$ 我们 " * 30
    script = f"from builder.features import text_features; print(text_features({text!r}, 'ok'))"
    found = set()
    for seed in ("0", "1"):
        said = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(said.stdout)
    assert found == {f"{text_features(text, 'ok')}\n"}
