"""Selectors on literal rows with winners worked by hand, on a plain DuckDB connection."""

import hashlib
from pathlib import Path
from typing import Any

import duckdb
import pytest

from builder.rules import catalogue
from builder.staging import build_staging
from builder.store import Run

# One prompt at 0.6 with five replies, one at 1.0 with one: counts at margins 0.05 and 0.10, mean delta, tokens.
REPLIES = [
    ("a", "p", 0.6, [9, 3], [0, 2], 0.10, 100),
    ("b", "p", 0.6, [5, 4], [0, 1], 0.10, 120),
    ("c", "p", 0.6, [6, 4], [0, 1], 0.20, 300),
    ("d", "p", 0.6, [1, 4], [0, 0], 0.10, 90),
    ("e", "p", 0.6, None, None, None, 110),
    ("f", "p", 1.0, [1, 1], [0, 0], 0.01, None),
]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(tmp_path_factory.mktemp("run"))
    build_staging(run, {})
    with duckdb.connect(str(run.database)) as connection:
        for name, prompt, temperature, teacher, student, delta, tokens in REPLIES:
            connection.execute("insert into survivors values (?, ?, ?)", [name, prompt, temperature])
            connection.execute(
                "insert into stg_responses (response_id, prompt_id, role, temperature, completion_tokens) "
                "values (?, ?, 'teacher', ?, ?)",
                [name, prompt, temperature, tokens],
            )
            if teacher is not None:
                pad = [0] * 8
                connection.execute(
                    "insert into stg_scores (response_id, status, teacher_counts, student_counts, mean_delta) "
                    "values (?, 'ok', ?, ?, ?)",
                    [name, teacher + pad, student + pad, delta],
                )
        # a refused score must not count, whatever it holds
        connection.execute("insert into stg_scores (response_id, status, mean_delta) values ('e', 'align_error', 0.99)")
    return run.database


def order(database: Path, selector: str, **params: Any) -> str:
    """Replies of the first group by rank, as one word; the second group has one reply, rank 1."""
    with duckdb.connect(str(database), read_only=True) as connection:
        for name, value in params.items():
            connection.execute(f"set variable {name} = ?", [value])
        text = catalogue("selectors")[selector].read_text(encoding="utf-8")
        rows = dict(connection.execute(text).fetchall())
    assert rows.pop("f") == 1
    assert sorted(rows.values()) == [1, 2, 3, 4, 5]
    return "".join(sorted(rows, key=rows.__getitem__))


def test_teacher_sentence_count_breaks_ties_by_delta_then_student_sentences(database: Path) -> None:
    # b, c, d tie at 4; c has the larger delta, then d fewer student sentences than b; e has no score
    assert order(database, "teacher_sentence_count") == "cdbae"


def test_teacher_sentence_count_reads_the_counts_of_its_margin(database: Path) -> None:
    assert order(database, "teacher_sentence_count", teacher_margin=0.05) == "acbde"


@pytest.mark.parametrize("selector", ["teacher_sentence_count", "length_matched"])
@pytest.mark.parametrize("margin", [0.12, 0, 0.55, -0.1])
def test_a_margin_without_counts_is_an_error_that_names_the_margins(
    database: Path, selector: str, margin: float
) -> None:
    with pytest.raises(duckdb.Error, match=r"margins are 0\.05, 0\.10"):
        order(database, selector, teacher_margin=margin)


def test_length_matched_puts_replies_of_unusual_length_last(database: Path) -> None:
    # median 110, band 22: c (300) is outside although it ranks first by count
    assert order(database, "length_matched") == "dbaec"
    assert order(database, "length_matched", length_band=10.0) == "cdbae"


def test_longest_ranks_by_completion_tokens(database: Path) -> None:
    assert order(database, "longest") == "cbead"


def test_mean_delta_ranks_by_delta_then_id(database: Path) -> None:
    assert order(database, "mean_delta") == "cabde"


def test_random_is_the_md5_order_of_id_and_seed(database: Path) -> None:
    for seed in (0, 1, 7):
        expected = sorted("abcde", key=lambda name: hashlib.md5(f"{name}:{seed}".encode()).hexdigest())
        assert order(database, "random", seed=seed) == "".join(expected)
