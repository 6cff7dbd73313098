"""Reports on literal rows and against plain Python, on a plain DuckDB connection: the files run unchanged."""

import math
import random
import statistics
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from builder.rules import catalogue
from builder.staging import build_staging
from builder.store import Run

TABLES = ("stg_prompts", "stg_responses", "stg_rejections", "stg_selection", "stg_scores", "stg_sentences")
TABLES += ("stg_verdicts", "stg_rewrites", "survivors")
Row = dict[str, Any]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(tmp_path_factory.mktemp("run"))
    build_staging(run, {})
    return run.database


def report(empty: Path, name: str, given: dict[str, list[Row]], **params: Any) -> list[Row]:
    with duckdb.connect() as connection:
        connection.execute(f"attach '{empty}' as run (read_only)")
        for table in TABLES:
            connection.execute(f"create table {table} as from run.{table}")
            if given.get(table):
                connection.register("rows", pa.Table.from_pylist(given[table]))
                connection.execute(f"insert into {table} by name from rows")
        for key, value in params.items():
            connection.execute(f"set variable {key} = ?", [value])
        return connection.sql(catalogue("reports")[name].read_text("utf-8")).to_arrow_table().to_pylist()


@pytest.mark.parametrize("name", catalogue("reports"))
def test_an_empty_run_gives_no_row(name: str, empty: Path) -> None:
    assert report(empty, name, {}) == []


def test_funnel_counts_rewrites_in_the_place_of_replies_when_asked(empty: Path) -> None:
    plain = {"prompt_id": "p", "temperature": 0.6, "completion_tokens": 10}
    given = {
        "stg_responses": [
            {"response_id": "original", "role": "teacher", **plain},
            {"response_id": "good", "role": "rewrite", **plain},
            {"response_id": "bad", "role": "rewrite", **plain},
            {"response_id": "cut", "role": "rewrite", **plain},
        ],
        "stg_rewrites": [
            {"response_id": one, "prompt_id": "p", "original_id": "original", "outcome": outcome}
            for one, outcome in (("good", "unchanged"), ("bad", "rewritten"), ("cut", "cut"))
        ],
        "stg_rejections": [{"response_id": "bad", "rule_name": "first"}],
        "stg_selection": [{"stage": "low", "kind": "sft", "grain_id": "good"}],
    }
    rows = report(empty, "funnel", given, ranked_role="rewrite")
    counts = {row["rule_name"]: row["breaks"] for row in rows if row["domain"] is None}
    assert counts == {"(kept)": 1, "(not kept)": 1, "first": 1}


def test_funnel_counts_rules_by_domain_and_temperature_and_lengths_of_kept_and_dropped(empty: Path) -> None:
    reply = {"role": "teacher", "temperature": 0.6, "completion_tokens": 10}
    given = {
        "stg_prompts": [{"prompt_id": "p", "domain": "math"}, {"prompt_id": "q", "domain": None}],
        "stg_responses": [
            {"response_id": "a", "prompt_id": "p", **reply},
            {"response_id": "b", "prompt_id": "q", **reply, "completion_tokens": None},
            {"response_id": "c", "prompt_id": "q", **reply, "temperature": 1.0, "completion_tokens": 7},
            {"response_id": "d", "prompt_id": "p", **reply, "completion_tokens": 30},
            {"response_id": "e", "prompt_id": "p", **reply, "completion_tokens": 20},
            {"response_id": "s", "prompt_id": "p", **reply, "role": "student"},
        ],
        "stg_rejections": [
            {"response_id": "a", "rule_name": "first"},
            {"response_id": "b", "rule_name": "first"},
            {"response_id": "c", "rule_name": "first"},
            {"response_id": "c", "rule_name": "second"},
        ],
        "stg_selection": [
            {"stage": "low", "kind": "sft", "grain_id": "d"},
            {"stage": "mixed", "kind": "sft", "grain_id": "d"},
            {"stage": "rl", "kind": "grpo", "grain_id": "e"},
        ],
    }
    rows = report(empty, "funnel", given)
    assert [tuple(row.values()) for row in rows if row["domain"] is None] == [
        ("(kept)", None, None, 1, None, 30, 30.0, 30.0),
        ("(not kept)", None, None, 4, None, 37, 37 / 3, 10.0),
        ("(outranked)", None, None, 1, None, 20, 20.0, 20.0),
        ("first", None, None, 3, 2, 17, 8.5, 8.5),
        ("second", None, None, 1, 0, 7, 7.0, 7.0),
    ]
    assert [tuple(row.values())[:6] for row in rows if row["domain"] and row["rule_name"][0] != "("] == [
        ("first", "math", 0.6, 1, 1, 10),
        ("first", "unknown", 0.6, 1, 1, 0),
        ("first", "unknown", 1.0, 1, 0, 7),
        ("second", "unknown", 1.0, 1, 0, 7),
    ]


def test_spread_grades_a_prompt_at_each_temperature_and_at_its_best(empty: Path) -> None:
    # p: 3 and 2 at 0.6, one at 1.0. q: 2, 2 at 0.6. r: one. s: no survivor. t: 2 and no score
    replies = [("p", 0.6, 3), ("p", 0.6, 2), ("p", 1.0, 2), ("q", 0.6, 2), ("q", 0.6, 2), ("r", 0.6, 1)]
    replies += [("s", 0.6, 1), ("t", 0.6, 2), ("t", 0.6, None)]
    rows = [
        {"response_id": str(index), "prompt_id": prompt, "temperature": temperature, "count": count}
        for index, (prompt, temperature, count) in enumerate(replies)
    ]
    keys = ("response_id", "prompt_id", "temperature")
    given = {
        "survivors": [{key: row[key] for key in keys} for row in rows if row["prompt_id"] != "s"],
        "stg_responses": [{**{key: row[key] for key in keys}, "role": "teacher"} for row in rows],
        "stg_scores": [
            {"response_id": row["response_id"], "status": "ok", "teacher_counts": [9, row["count"]], "mean_delta": 0.1}
            for row in rows
            if row["count"] is not None
        ],
    }
    assert [tuple(row.values()) for row in report(empty, "spread", given)] == [
        ("teacher_sentence_count", None, 5, 1, 1, 1, 2),
        ("teacher_sentence_count", 0.6, 5, 1, 1, 1, 2),
        ("teacher_sentence_count", 1.0, 1, 0, 1, 0, 0),
    ]
    (overall, *_) = report(empty, "spread", given, ranked_by="mean_delta")
    assert (overall["tied"], overall["spread"]) == (2, 1)
    (overall, *_) = report(empty, "spread", given, ranked_by="mine")
    assert (overall["single"], overall["tied"], overall["spread"]) == (1, None, None)


def scored(name: str, sentences: list[tuple[float, float, int, int]], temperature: float = 0.6) -> tuple[Row, Row]:
    """A teacher reply and its sentences (p_teacher, p_student, tokens of both)."""
    columns = ("p_teacher", "p_student", "teacher_tokens", "student_tokens")
    lists = dict(zip(columns, map(list, zip(*sentences, strict=True)), strict=True))
    return {"response_id": name, "role": "teacher", "temperature": temperature}, {"response_id": name, **lists}


def random_replies(number: int, seed: int = 0, shift: float = 0.0, temperature: float = 0.6) -> list[tuple[Row, Row]]:
    chance = random.Random(seed)

    def probability(low: float = 0.0) -> float:
        return max(1, min(1000, round(1000 * chance.uniform(low, 0.6 + low)))) / 1000

    return [
        scored(
            f"{seed}-{index}",
            [
                (probability(shift), probability(), chance.randint(1, 9), chance.randint(1, 9))
                for _ in range(chance.randint(1, 40))
            ],
            temperature,
        )
        for index in range(number)
    ]


def tables(found: list[tuple[Row, Row]]) -> dict[str, list[Row]]:
    return {"stg_responses": [one for one, _ in found], "stg_sentences": [two for _, two in found]}


def test_response_probability_is_the_geometric_mean_over_all_tokens(empty: Path) -> None:
    # 2 tokens at 0.5 and 2 at 0.125, a short sentence of one token at 0.25: exp of the mean of five logprobs
    found = [scored("a", [(0.5, 0.1, 2, 9), (0.125, 0.1, 2, 9), (0.25, 0.1, 1, 1)])]
    (row,) = report(empty, "temperature", tables(found))
    assert row["median"] == pytest.approx(math.exp((2 * math.log(0.5) + 2 * math.log(0.125) + math.log(0.25)) / 5))
    assert row["median"] == pytest.approx(0.25)


def test_sentences_at_the_ends_of_the_scale_stay_on_it(empty: Path) -> None:
    found = [scored("sure", [(1.0, 0.5, 9, 9)]), scored("zero", [(0.0, 0.5, 9, 9)])]
    given = tables(found)
    given["stg_responses"].append({"response_id": "unscored", "role": "teacher", "temperature": 0.6})
    given["stg_selection"] = [{"grain_id": "sure", "kind": "sft", "stage": "low"}]
    (row,) = report(empty, "temperature", given)
    assert (row["replies"], row["without_value"]) == (2, 1)
    assert row["histogram"] == [1, *[0] * 18, 1]
    assert row["histogram_kept"] == [*[0] * 19, 1]


def test_two_temperatures_are_compared_by_the_overlap_of_their_histograms(empty: Path) -> None:
    near = random_replies(120, 1) + random_replies(150, 2, temperature=1.0)
    far = random_replies(120, 1, shift=0.4) + random_replies(150, 2, temperature=1.0)
    for found, words in ((near, "nearly coincides with 1.0"), (far, "differs from 1.0")):
        cold, hot = report(empty, "temperature", tables(found), min_replies=120)
        values: dict[float, list[float]] = {0.6: [], 1.0: []}
        for reply, lists in found:
            pairs = list(zip(lists["p_teacher"], lists["teacher_tokens"], strict=True))
            nats = sum(tokens * math.log(p) for p, tokens in pairs) / sum(tokens for _, tokens in pairs)
            values[reply["temperature"]].append(math.exp(nats))
        assert cold["median"] == pytest.approx(statistics.median(values[0.6]), rel=1e-6)
        assert hot["median"] == pytest.approx(statistics.median(values[1.0]), rel=1e-6)
        shares = [[sum(int(p * 20) == bin for p in one) / len(one) for bin in range(20)] for one in values.values()]
        assert cold["overlap"] == pytest.approx(sum(map(min, *shares)), abs=0.01)
        assert cold["reading"].startswith(words)
        assert (hot["next_temperature"], hot["overlap"], hot["reading"]) == (None, None, None)


def test_few_replies_are_not_compared_unless_asked_to(empty: Path) -> None:
    given = tables(random_replies(199, 1) + random_replies(200, 2, temperature=1.0))
    assert report(empty, "temperature", given)[0]["reading"].startswith(
        "too few replies to compare with 1.0: 199 where 200"
    )
    asked = report(empty, "temperature", given, min_replies=199, near_overlap=0.0)
    assert asked[0]["reading"].startswith("nearly coincides")


def test_position_by_hand(empty: Path) -> None:
    # deltas 0.25 teacher, exactly 0.125 common, −0.25 student; the short sentence holds its place
    long = [(0.75, 0.5, 3, 3), (0.625, 0.5, 3, 3), (0.9, 0.1, 2, 3), (0.5, 0.75, 3, 3)]
    given = tables([scored("a", long), scored("b", [(0.5, 0.5, 3, 3)])])
    given["stg_responses"].append({"response_id": "m", "role": "mixed", "temperature": 0.6})
    given["stg_sentences"].append({**scored("m", long)[1]})
    rows = report(empty, "position", given, teacher_margin=0.125)
    assert [tuple(row.values()) for row in rows] == [
        ("tenth", 1, None, None, 2, 2, 0.5, 0.5, 0.0),
        ("tenth", 3, None, None, 1, 1, 0.0, 1.0, 0.0),
        ("tenth", 8, None, None, 1, 1, 0.0, 0.0, 1.0),
        ("number", 1, 1, 1, 2, 2, 0.5, 0.5, 0.0),
        ("number", 2, 2, 3, 1, 1, 0.0, 1.0, 0.0),
        ("number", 3, 4, 7, 1, 1, 0.0, 0.0, 1.0),
    ]


def test_position_is_a_mean_over_replies_as_plain_python_takes_it(empty: Path) -> None:
    found = random_replies(60, 5)
    rows = {(row["scale"], row["bucket"]): row for row in report(empty, "position", tables(found))}
    shares: dict[tuple[str, int], list[float]] = {}
    for _, lists in found:
        cells: dict[tuple[str, int], list[bool]] = {}
        sentences = list(zip(*(lists[name] for name in list(lists)[1:]), strict=True))
        for index, (teacher, student, *tokens) in enumerate(sentences):
            if min(tokens) >= 3:
                for cell in (("tenth", index * 10 // len(sentences) + 1), ("number", (index + 1).bit_length())):
                    cells.setdefault(cell, []).append(teacher - student > 0.1)
        for cell, hits in cells.items():
            shares.setdefault(cell, []).append(sum(hits) / len(hits))
    assert rows.keys() == shares.keys()
    for cell, values in shares.items():
        assert rows[cell]["replies"] == len(values)
        assert rows[cell]["teacher_share"] == pytest.approx(statistics.mean(values), abs=0.01)
        whole = sum(rows[cell][name] for name in ("teacher_share", "common_share", "student_share"))
        assert whole == pytest.approx(1)


def test_position_refuses_a_margin_that_is_no_difference_of_probabilities(empty: Path) -> None:
    with pytest.raises(duckdb.Error, match="difference of probabilities"):
        report(empty, "position", tables(random_replies(1)), teacher_margin=-0.1)
