"""Shared runs against a plain definition, evidence, what is compared again, and the rule that reads it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from builder import decontaminate
from builder.config import Benchmark, Recipe
from builder.decontaminate import (
    BenchmarkText,
    Index,
    build_index,
    find_matches,
    may_match,
    update_contaminations,
    whole_key,
)
from builder.errors import SourceError, SqlError, UsageError
from builder.evidence import check_evidence, reads_evidence, update_evidence
from builder.rules import catalogue, load_sql
from builder.sqlrun import query, run_files
from builder.staging import build_staging
from builder.store import Run, columns_table
from builder.words import split_words

QUESTION = "Every morning Aya goes for a nine-kilometer-long walk and stops at a coffee shop afterwards."


def index_of(*texts: str) -> Index:
    return build_index(
        (BenchmarkText("b", "r", row, "prompt", split_words(text, signs=False).hashes.size),
         split_words(text, signs=False), whole_key(text))
        for row, text in enumerate(texts, start=1)
    )  # fmt: skip


def prompt(prompt_id: str, text: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": QUESTION}, {"role": "user", "content": text}]
    return {"prompt_id": prompt_id, "messages": messages, "sources": [], "gold_conflicts": 0}


def make_run(root: Path, *prompts: dict[str, Any]) -> Run:
    run = Run(root)
    run.append("prompts", columns_table("prompts", prompts))
    replies = [
        {
            "response_id": f"reply to {row['prompt_id']}", "prompt_id": row["prompt_id"], "role": "teacher",
            "model": "m", "sample_index": 0, "temperature": 0.6, "reasoning_format": "none", "tool_calls": 0,
            "replaced_characters": 0, "prefix_chars": 0,
        }
        for row in prompts
    ]  # fmt: skip
    run.append("responses", columns_table("responses", replies))
    return run


def benchmark(path: Path, *rows: dict[str, Any], **keys: Any) -> Benchmark:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Benchmark(source=str(path), **keys)


def recipe(**benchmarks: Benchmark) -> Recipe:
    named = {name: source.model_dump(exclude_unset=True) for name, source in benchmarks.items()}
    return Recipe.model_validate({"name": "r", "decontamination": {"benchmarks": named}})


def matches(run: Run) -> dict[str, list[dict[str, Any]]]:
    return dict(run.read("contaminations", ["prompt_id", "matches"]).iter_rows())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("ab"), max_size=40), st.lists(st.sampled_from("ab"), max_size=40))
def test_the_longest_shared_run_equals_its_plain_definition(prompt_words: list[str], row_words: list[str]) -> None:
    longest = max(
        (
            length
            for start in range(len(prompt_words))
            for length in range(1, len(prompt_words) - start + 1)
            if f" {' '.join(prompt_words[start : start + length])} " in f" {' '.join(row_words)} "
        ),
        default=0,
    )
    index = index_of(" ".join(row_words))
    found = find_matches(index, " ".join(prompt_words))
    assert not found or 1 in may_match(index, ["a b", " ".join(prompt_words), "b"])
    if longest >= 8:
        (match,) = found
        assert match["shared_words"] == longest
        assert f" {match['shared_text']} " in f" {' '.join(prompt_words)} "
        assert f" {match['shared_text']} " in f" {' '.join(row_words)} "
        assert match["row_share"] == longest / len(row_words)
    else:
        assert [match["is_whole"] for match in found] == ([True] if prompt_words == row_words != [] else [])


def test_a_row_of_one_word_again_and_again_is_still_far_over_every_preset() -> None:
    (match,) = find_matches(index_of("0 " * 5000), "0 " * 3000)
    assert match["shared_words"] >= 71


def test_two_runs_that_only_touch_are_not_one() -> None:
    row = "a b c d e f g h and then b c d e f g h i"
    (match,) = find_matches(index_of(row), "a b c d e f g h i")
    assert (match["shared_words"], match["shared_text"]) == (8, "a b c d e f g h")


def test_the_same_question_comes_before_one_of_the_same_words() -> None:
    plus, minus = (sign.join("12345678") + " = ?" for sign in "+-")
    (match,) = find_matches(index_of(plus, minus), minus)
    assert (match["benchmark_row"], match["is_whole"]) == (2, True)


def test_spacing_case_and_signs_hide_no_copy() -> None:
    row = r"Let $x+y=7$. Find all pairs $(x,\,y)$ with $\frac{x}{y}>2$."
    (match,) = find_matches(index_of(row), r"Please: let x + y = 7; find ALL pairs ( x , y ) with \frac x y > 2")
    assert match["shared_text"] == "let x y 7 find all pairs x y with frac x y 2"
    assert match["row_share"] == 1.0 and not match["is_whole"]


def test_chinese_is_compared_character_by_character() -> None:
    index = index_of("求所有满足条件的正整数的和")
    (match,) = find_matches(index, "例：求所有满足条件的正数之和")
    assert match["shared_text"] == " ".join("求所有满足条件的正")
    assert find_matches(index, "求所有满足条件") == []


@pytest.mark.parametrize(
    ("text", "same"),
    [("what is 2+2", True), (" What is 2 + 2 ?\n", True), ("What is 2-2?", False), ("So what is 2+2?", False)],
)
def test_a_short_question_matches_when_it_is_the_same_sign_by_sign(text: str, same: bool) -> None:
    found = find_matches(index_of("What is 2+2?"), text)
    assert [match["is_whole"] for match in found] == [True] * same


def test_texts_without_words_match_nothing() -> None:
    assert find_matches(index_of("", "???", "a b"), "") == []
    assert find_matches(index_of("", "???", "a b"), "?") == []


def test_a_shorter_run_that_covers_more_of_its_row_is_kept_beside_the_longest() -> None:
    phrase = "express your answer as a decimal to the nearest tenth of one percent"
    long_row, short_row = f"{phrase} {'and so on ' * 20}", "how many primes are there below one hundred and ten"
    rows = (long_row, short_row, "how many primes are there below one hundred of these twenty")
    found = find_matches(index_of(*rows), f"how many primes are there below one hundred and ten {phrase}")
    assert [(match["benchmark_row"], match["shared_words"], match["row_share"]) for match in found] == [
        (1, 13, 13 / 73),
        (2, 10, 1.0),
    ]


def test_evidence_names_benchmark_revision_row_column_and_words(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompt("p", f"Now: {QUESTION}"), prompt("q", "Something else entirely"))
    rows = [{"problem": "Another one", "solution": None}, {"problem": "Short", "solution": f"Note. {QUESTION}"}]
    source = benchmark(tmp_path / "b.jsonl", *rows, prompt="problem", gold="solution")
    assert update_contaminations(run, {"aime": source}) == 2
    found = matches(run)
    assert found["q"] == []
    (match,) = found["p"]
    assert len(match.pop("revision")) == 64
    assert match == {
        "benchmark": "aime", "benchmark_row": 2, "benchmark_column": "solution", "shared_words": 17,
        "row_share": 17 / 18, "is_whole": False,
        "shared_text": "every morning aya goes for a nine kilometer long walk and stops at a coffee shop afterwards",
    }  # fmt: skip


def test_only_new_prompts_are_compared_until_a_benchmark_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", prompt("p", QUESTION), prompt("q", "What is 2+2?"))
    path = tmp_path / "b.jsonl"
    source = benchmark(path, {"prompt": QUESTION})
    assert update_contaminations(run, {"one": source}) == 2
    assert update_contaminations(run, {"one": source}) == 0
    run.replace("prompts", columns_table("prompts", [prompt("q", "What is 2+2?"), prompt("s", QUESTION)]))
    seen: list[str] = []
    plain = find_matches
    monkeypatch.setattr(decontaminate, "find_matches", lambda index, text: seen.append(text) or plain(index, text))
    assert update_contaminations(run, {"one": source}) == 1
    assert seen == [QUESTION]
    assert {name: len(rows) for name, rows in matches(run).items()} == {"q": 0, "s": 1}
    assert update_contaminations(run, {"one": benchmark(path, {"prompt": QUESTION}, {"prompt": "what is 2+2"})}) == 2
    assert {name: len(rows) for name, rows in matches(run).items()} == {"q": 1, "s": 1}
    assert update_contaminations(run, {"other name": source}) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}, {"question": "b"}], r"Benchmark b .* row 2 has no column 'prompt'"),
        ([{"prompt": 7}], r"row 1: column 'prompt' holds int, neither text nor messages"),
        ([{"prompt": None}], r"row 1: column 'prompt' holds NoneType"),
        ([], r"holds no rows, so it would pass every prompt"),
    ],
)
def test_a_benchmark_that_cannot_be_compared_is_an_error_that_names_the_row(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    run = make_run(tmp_path / "run", prompt("p", QUESTION))
    with pytest.raises(SourceError, match=message):
        update_contaminations(run, {"b": benchmark(tmp_path / "b.jsonl", *rows)})
    assert run.parts("contaminations") == []


def test_a_benchmark_that_is_not_there_is_named_with_its_key(tmp_path: Path) -> None:
    run = make_run(tmp_path, prompt("p", QUESTION))
    with pytest.raises(SourceError, match=r"decontamination\.benchmarks\.aime\): .*gone\.jsonl does not exist"):
        update_contaminations(run, {"aime": Benchmark(source="gone.jsonl")})


def test_a_recipe_written_with_all_defaults_reads_as_the_same_recipe(tmp_path: Path) -> None:
    given = recipe(b=benchmark(tmp_path / "b.jsonl", {"prompt": "a"}, prompt="prompt"))
    assert Recipe.model_validate(given.resolved()).hash() == given.hash()


def test_messages_are_compared_by_what_the_user_says(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompt("p", QUESTION))
    said = [{"role": "system", "content": "Think."}, {"role": "user", "content": QUESTION}]
    answered = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": QUESTION}]
    update_contaminations(run, {"b": benchmark(tmp_path / "b.jsonl", {"messages": answered}, {"messages": said})})
    (match,) = matches(run)["p"]
    assert (match["benchmark_row"], match["is_whole"]) == (2, True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source": "hf://datasets/org/name"}, "has no `revision`"),
        ({"source": "a.jsonl", "gold": {"column": "answer"}}, "name the column alone"),
        ({"source": "a.jsonl", "domain": "math", "license": "mit"}, "domain, license means nothing"),
    ],
)
def test_a_benchmark_section_that_would_be_half_read_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Benchmark.model_validate(keys)


def test_the_rule_without_benchmarks_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    run = make_run(tmp_path, prompt("p", QUESTION))
    rule = load_sql("rules", catalogue("rules")["benchmark_contaminated"])
    for refuse in (
        lambda: check_evidence(Recipe(name="r"), [rule]),
        lambda: update_evidence(run, Recipe(name="r"), [rule]),
    ):
        with pytest.raises(UsageError, match=r"has no decontamination\.benchmarks"):
            refuse()
    with pytest.raises(ValidationError, match="benchmarks"):
        Recipe.model_validate({"name": "r", "decontamination": {"benchmarks": {}}})


def test_the_path_of_a_benchmark_does_not_decide_the_recipe_hash(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "b.jsonl" for folder in ("here", "there")]
    for path in paths:
        path.parent.mkdir()
    hashes = {recipe(b=benchmark(path, {"prompt": "a"})).hash() for path in paths}
    assert len(hashes) == 1


def test_evidence_is_computed_only_for_rules_that_read_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompt("p", QUESTION))
    given = recipe(b=benchmark(tmp_path / "b.jsonl", {"prompt": QUESTION}))
    files = {name: load_sql("rules", path) for name, path in catalogue("rules").items()}
    copies = {"benchmark_contaminated": "contaminations", "response_near_duplicate": "duplicates"}
    update_evidence(run, given, [file for name, file in files.items() if name not in copies])
    assert not any(run.parts(table) for table in copies.values())
    assert {name for name, file in files.items() if reads_evidence(file)} == set(copies)
    for name, table in copies.items():
        update_evidence(run, given, [files[name]])
        assert run.rows(table) == 1


def test_the_length_of_the_run_is_a_parameter_of_the_rule(tmp_path: Path) -> None:
    words = "every morning aya goes for a nine kilometer long walk and stops at"
    prompts = {size: prompt(f"p{size}", f"{' '.join(words.split()[:size])} but then") for size in (8, 10, 13)}
    run = make_run(tmp_path / "run", *prompts.values(), prompt("short", "What is 2+2?"))
    rule = load_sql("rules", catalogue("rules")["benchmark_contaminated"])
    build_staging(run, {})
    with pytest.raises(SqlError, match="no prompt was compared with a benchmark yet"):
        run_files(run.database, [rule], {})
    source = benchmark(tmp_path / "b.jsonl", {"prompt": QUESTION}, {"prompt": "what is 2+2"})
    update_contaminations(run, {"b": source})
    build_staging(run, {})
    for size in (8, 10, 13):
        rows = run_files(run.database, [rule], {"ngram_words": size})[rule.name].to_pylist()
        expected = {f"reply to p{other}": other for other in (8, 10, 13) if other >= size} | {"reply to short": 4}
        assert {row["response_id"]: row["observed"] for row in rows} == expected
    with pytest.raises(SqlError, match="ngram_words is 7, but shared runs below 8 words are not kept"):
        run_files(run.database, [rule], {"ngram_words": 7})
    evidence = query(run.database, "select shared_text from stg_contaminations where prompt_id = 'p8'").to_pylist()
    assert evidence == [{"shared_text": "every morning aya goes for a nine kilometer"}]
