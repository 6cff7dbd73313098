"""Near-duplicates against brute force, in any order, and through the rules that read them."""

import itertools
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import dedup
from builder.dedup import BANDS, FLOOR, MAX_IN_BAND, signature_bands, text_grams, update_duplicates
from builder.errors import SqlError, TableError
from builder.rules import catalogue, load_sql
from builder.shards import drop_rows
from builder.sqlrun import run_files
from builder.staging import build_staging
from builder.store import Run, columns_table

WORDS = [f"w{number}" for number in range(40)]
Found = dict[tuple[str, str], float]
PINNED_BANDS = [2350816570, 1208187230, 660985085, 3148294565]


def reply(response_id: str, text: str | None, prompt_id: str = "p", role: str = "teacher") -> dict[str, Any]:
    return {
        "response_id": response_id, "prompt_id": prompt_id, "role": role, "model": "m", "sample_index": 0,
        "temperature": 0.6, "reasoning": text, "answer": None, "reasoning_format": "none", "tool_calls": 0,
        "replaced_characters": 0, "prefix_chars": 0,
    }  # fmt: skip


def make_run(root: Path, *parts: list[dict[str, Any]]) -> Run:
    run = Run(root)
    for part in parts:
        run.append("responses", columns_table("responses", part))
    return run


def found(run: Run) -> Found:
    rows = run.read("duplicates").explode("earlier_ids", "jaccards").drop_nulls().iter_rows()
    return {(later, earlier): similarity for later, earlier, similarity in rows}


def brute_force(rows: list[dict[str, Any]]) -> Found:
    """Every pair from the floor up, by sets of tuples of words."""
    sets = {}
    for row in sorted(rows, key=lambda row: (row["prompt_id"], row["response_id"])):
        words = re.findall(r"\w+|[^\w\s]", row["reasoning"] or "")
        size = min(5, len(words))
        sets[row["response_id"]] = (
            {tuple(words[at : at + size]) for at in range(len(words) - size + 1)} if words else set()
        )
    pairs = {}
    for (earlier, one), (later, two) in itertools.combinations(sets.items(), 2):
        if one and two and len(one & two) / len(one | two) >= FLOOR:
            pairs[later, earlier] = len(one & two) / len(one | two)
    return pairs


def mutated(texts: int, copies: int, seed: int) -> list[dict[str, Any]]:
    """Texts of 60 words, and copies of them in which up to ten words are others."""
    draw = random.Random(seed)
    rows = []
    for text in range(texts):
        base = draw.choices(WORDS, k=60)
        for copy in range(copies):
            words = [*base]
            for _ in range(draw.randint(0, 10) if copy else 0):
                words[draw.randrange(60)] = draw.choice(WORDS)
            rows.append(reply(f"{text}-{copy}", " ".join(words), f"p{text % 7}"))
    return rows


def test_pairs_and_their_similarity_equal_brute_force(tmp_path: Path) -> None:
    rows = mutated(40, 5, 0)
    run = make_run(tmp_path, rows)
    assert update_duplicates(run) == 200
    expected = brute_force(rows)
    assert found(run) == expected
    assert 50 < len(expected) < 400
    assert min(expected.values()) < 0.75


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text("ab. ", max_size=30), max_size=8))
def test_whatever_is_found_is_a_pair_by_brute_force(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    rows = [reply(f"r{number}", text) for number, text in enumerate(texts)]
    run = make_run(tmp_path_factory.mktemp("run"), rows)
    assert update_duplicates(run) == len(rows)
    expected = brute_force(rows)
    assert {pair: expected.get(pair) for pair in found(run)} == found(run)


def test_a_pair_at_the_floor_is_missed_as_seldom_as_the_docstring_says() -> None:
    draw = np.random.default_rng(0)
    shared, own = 140, 30  # 140 / 200 = 0.7
    grams = []
    for _ in range(3000):
        values = draw.integers(0, 2**63, shared + 2 * own, dtype=np.uint64)
        grams += [values[: shared + own], np.concatenate((values[:shared], values[shared + own :]))]
    bands = signature_bands(grams)
    assert bands.shape == (6000, BANDS)
    missed = int((bands[0::2] != bands[1::2]).all(axis=1).sum())
    assert missed <= 4  # 0.45 expected; five or more would come once in 5,000 seeds
    unlike = int((bands[0:-2:2] == bands[2::2]).any(axis=1).sum())
    assert unlike == 0


def test_signatures_are_the_same_in_every_process_and_release() -> None:
    assert signature_bands([text_grams("Let x = 1, so 2 x = 2.")])[0, :4].tolist() == PINNED_BANDS


def test_the_result_depends_neither_on_parts_nor_on_when_replies_came(tmp_path: Path) -> None:
    rows = mutated(12, 4, 1)
    whole = make_run(tmp_path / "whole", rows)
    update_duplicates(whole)
    shuffled = random.Random(2).sample(rows, len(rows))
    run = make_run(tmp_path / "grown", shuffled[:20])
    assert update_duplicates(run) == 20
    run.append("responses", columns_table("responses", shuffled[20:21]))
    assert update_duplicates(run) == 1
    run.append("responses", columns_table("responses", shuffled[21:]))
    assert update_duplicates(run) == 27
    assert run.read("duplicates").equals(whole.read("duplicates"))


def test_nothing_new_reads_no_text_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, mutated(3, 3, 3))
    update_duplicates(run)
    before = run.parts("duplicates")[0].stat().st_mtime_ns
    monkeypatch.setattr(dedup, "text_grams", None)
    assert update_duplicates(run) == 0
    assert run.parts("duplicates")[0].stat().st_mtime_ns == before


def test_only_pairs_with_a_new_reply_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, [reply("a", "one two three four five six"), reply("b", "one two three four five six")])
    update_duplicates(run)
    run.append("responses", columns_table("responses", [reply("c", "quite another text than the others are")]))
    monkeypatch.setattr(dedup, "jaccard", None)
    assert update_duplicates(run) == 1
    assert found(run) == {("b", "a"): 1.0}


def test_a_reply_that_was_taken_out_leaves_no_pair(tmp_path: Path) -> None:
    run = make_run(tmp_path, [reply(name, "the same words in every one of them") for name in "abc"])
    update_duplicates(run)
    for table in ("responses", "signatures", "duplicates"):
        drop_rows(run, table, lambda rows: [one == "a" for one in rows["response_id"].to_pylist()])
    assert update_duplicates(run) == 0
    assert found(run) == {("c", "b"): 1.0}


def test_a_thousand_copies_cost_no_million_comparisons_and_each_but_the_first_is_found(tmp_path: Path) -> None:
    rows = [reply(f"r{number:04d}", "the very same answer again", f"p{number % 2}") for number in range(1000)]
    run = make_run(tmp_path, rows)
    update_duplicates(run)
    pairs = found(run)
    assert len(pairs) <= 1000 * 2 * MAX_IN_BAND
    same_prompt = {later for later, earlier in pairs if int(later[1:]) % 2 == int(earlier[1:]) % 2}
    assert len(same_prompt) == 998
    assert len({later for later, _ in pairs}) == 999


def test_odd_texts_are_compared_or_have_nothing_to_compare(tmp_path: Path) -> None:
    texts = {
        "null": None, "null too": None, "empty": "", "white": " \n", "one": "4", "one too": "4", "minus": "-4",
        "chinese": "我们需要计算这个数的平方根", "chinese too": "我们需要计算这个数的平方根。",
        "huge": "a " * 300_000, "huge too": "a " * 300_001, "unbroken": "x" * 600_000,
    }  # fmt: skip
    rows = [reply(name, text) for name, text in texts.items()]
    run = make_run(tmp_path, rows)
    assert update_duplicates(run) == len(rows)
    assert found(run) == {("one too", "one"): 1.0, ("chinese too", "chinese"): 0.9, ("huge too", "huge"): 1.0}


def test_replies_that_no_release_holds_are_not_compared(tmp_path: Path) -> None:
    rows = [reply(role, "the same words in every one of them", role=role) for role in ("teacher", "student", "eval")]
    run = make_run(tmp_path, rows)
    assert update_duplicates(run) == 1
    assert found(run) == {}


def test_a_run_without_replies_has_no_duplicates(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert update_duplicates(run) == 0
    assert run.parts("duplicates") == []


def test_a_disk_that_refuses_the_temporary_file_is_named_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, mutated(2, 3, 4))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dedup.tempfile, "TemporaryFile", full)
    with pytest.raises(TableError, match=r"pairs of replies needs a temporary file in .* No space left on device"):
        update_duplicates(run)
    monkeypatch.undo()
    assert update_duplicates(run) == 6


def broken(run: Run, name: str, **params: float | bool) -> dict[str, float]:
    build_staging(run, {})
    table = run_files(run.database, [load_sql("rules", catalogue("rules")[name])], params)[name]
    return {row["response_id"]: row["observed"] for row in table.to_pylist()}


def test_the_threshold_is_a_parameter_of_the_rule(tmp_path: Path) -> None:
    rows = mutated(6, 4, 5)
    run = make_run(tmp_path, rows)
    update_duplicates(run)
    for threshold in (0.7, 0.85, 1.0):
        expected = {later for (later, _), similarity in brute_force(rows).items() if similarity >= threshold}
        assert set(broken(run, "response_near_duplicate", min_jaccard=threshold, across_prompts=True)) == expected


def test_a_threshold_below_what_is_kept_and_a_run_not_compared_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, mutated(2, 2, 6))
    with pytest.raises(SqlError, match="no reply was compared yet"):
        broken(run, "response_near_duplicate")
    update_duplicates(run)
    with pytest.raises(SqlError, match=r"min_jaccard is 0.69, but similarities below 0.7 are not kept"):
        broken(run, "response_near_duplicate", min_jaccard=0.69)
