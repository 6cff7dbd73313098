"""The stg_ tables of run.duckdb: what they hold, and when they are built again."""

from pathlib import Path
from typing import Any

import duckdb
import pytest

from builder.config import Recipe, Student
from builder.errors import TableError
from builder.models import student_id
from builder.sqlrun import query
from builder.staging import build_staging, is_staged, staging_variables
from builder.store import Run, columns_table

STUDENT = Student(model="org/student")


def prompt(prompt_id: str, gold: str | None = None) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "messages": [{"role": "user", "content": prompt_id}],
        "gold": gold,
        "sources": [],
        "gold_conflicts": 0,
    }


def reply(response_id: str, prompt_id: str, role: str = "teacher") -> dict[str, Any]:
    return {
        "response_id": response_id,
        "prompt_id": prompt_id,
        "role": role,
        "model": "m",
        "sample_index": 0,
        "temperature": 0.6,
        "reasoning_format": "none",
        "tool_calls": 0,
        "replaced_characters": 0,
        "prefix_chars": 0,
    }


RANKED = ["survivors", "stg_scores_of_survivors", "stg_sentences_of_survivors"]
"""Views that each read the one before."""
REPLIES = [reply("a", "p"), reply("f", "q"), reply("g", "p"), reply("s", "q", role="student")]


def make_run(root: Path) -> Run:
    """Prompts p and q with three teacher replies and one by the student; f has scores of two students."""
    run = Run(root)
    run.append("prompts", columns_table("prompts", [prompt("p", gold="4"), prompt("q")]))
    run.append("responses", columns_table("responses", REPLIES))
    scores = [
        {"response_id": name, "student_id": student, "status": "ok"}
        for name, student in (("a", student_id(STUDENT)), ("f", student_id(STUDENT)), ("f", "another student"))
    ]
    run.append("scores", columns_table("scores", scores))
    return run


def test_staged_tables_follow_the_parts(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    variables = staging_variables(Recipe(name="test", student=STUDENT))
    assert "stg_responses" in build_staging(run, variables)
    assert build_staging(run, variables) == []
    run.append("responses", columns_table("responses", [reply("i", "q")]))
    assert build_staging(run, variables) == [
        "stg_responses",
        "stg_verdicts",
        "stg_candidates",
        "stg_rated_prompts",
        "reply_numbers",
        *RANKED,
    ]
    run.replace("prompts", columns_table("prompts", [prompt("p"), prompt("q", gold="5")]))
    assert "stg_prompts" in build_staging(run, variables)
    found = query(run.database, "select count(*) as n, count(gold) as golds from stg_candidates").to_pylist()
    assert found == [{"n": 4, "golds": 2}]
    assert build_staging(run, {**variables, "student_id": "another student"}) == [
        "stg_scores",
        "stg_sentences",
        "stg_candidates",
        "stg_rated_prompts",
        "reply_numbers",
        *RANKED,
    ]
    assert query(run.database, "select response_id from stg_scores").to_pylist() == [{"response_id": "f"}]


def test_a_database_that_cannot_be_read_is_built_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.database.write_bytes(b"not a database" * 1000)
    build_staging(run, {})
    assert query(run.database, "select count(*) as n from stg_responses").to_pylist() == [{"n": len(REPLIES)}]


def test_a_reply_that_is_stored_twice_is_an_error_and_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    build_staging(run, {})
    run.append("responses", columns_table("responses", [reply("a", "q")]))
    with pytest.raises(TableError, match="response_id a is stored 2 times"):
        build_staging(run, {})
    assert query(run.database, "select count(*) as n from stg_responses").to_pylist() == [{"n": len(REPLIES)}]


def test_the_named_verifier_decides_else_the_strictest_verdict(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append("prompts", columns_table("prompts", [prompt("p") | {"verifier": "choice"}, prompt("q")]))
    run.append("responses", columns_table("responses", [reply("a", "p"), reply("b", "q")]))
    verdicts = [
        {"response_id": name, "verifier": verifier, "verifier_version": "1", "verdict": verdict}
        for name in "ab"
        for verifier, verdict in (("choice", "correct"), ("number", "wrong"), ("latex", "error"))
    ]
    run.append("verdicts", columns_table("verdicts", verdicts))
    build_staging(run, {})
    rows = query(run.database, "select response_id, verdict from stg_candidates order by response_id").to_pylist()
    assert rows == [{"response_id": "a", "verdict": "correct"}, {"response_id": "b", "verdict": "wrong"}]


def test_a_run_in_a_folder_whose_name_is_a_pattern_reads_its_own_rows(tmp_path: Path) -> None:
    run, neighbour = make_run(tmp_path / "a[1]"), Run(tmp_path / "a1")
    neighbour.append("responses", columns_table("responses", [reply("foreign", "p")]))
    build_staging(run, {})
    assert query(run.database, "select count(*) as n from stg_responses").to_pylist() == [{"n": len(REPLIES)}]
    run.replace("rejections", columns_table("rejections", [{"response_id": "a", "rule_name": "mine"}]))
    build_staging(run, {})
    with duckdb.connect(str(run.database), read_only=True) as connection:
        assert connection.execute("select rule_name from stg_rejections").fetchall() == [("mine",)]


def test_large_and_changing_tables_are_views_that_sql_reads_inside_and_outside_the_sandbox(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sentences = [
        {"response_id": "f", "student_id": student, "p_teacher": [0.5]}
        for student in (student_id(STUDENT), "another student")
    ]
    run.append("sentences", columns_table("sentences", sentences))
    run.replace("rejections", columns_table("rejections", [{"response_id": "a", "rule_name": "mine"}]))
    variables = staging_variables(Recipe(name="test", student=STUDENT))
    build_staging(run, variables)
    counts = (
        "select (select count(*) from stg_sentences) as sentences, (select count(*) from survivors) as survivors, "
        "(select count(*) from stg_selection) as selected, (select min(rule_name) from stg_rejections) as rule"
    )
    expected = {"sentences": 1, "survivors": 2, "selected": 0, "rule": "mine"}
    assert query(run.database, counts).to_pylist() == [expected]
    with duckdb.connect(str(run.database), read_only=True) as connection:
        assert connection.execute(counts).fetchall() == [tuple(expected.values())]
        made = connection.execute("select table_name from duckdb_tables() where table_name like 'stg_s%'").fetchall()
    assert made == [("stg_scores",)]
    run.replace("rejections", columns_table("rejections", [{"response_id": "g", "rule_name": "other"}]))
    assert is_staged(run, variables)
    assert query(run.database, "select rule_name from stg_rejections").to_pylist() == [{"rule_name": "other"}]


def test_a_run_that_was_moved_is_staged_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "before")
    run.replace("rejections", columns_table("rejections", [{"response_id": "a", "rule_name": "mine"}]))
    build_staging(run, {})
    moved = Run(run.root.rename(tmp_path / "after"))
    assert query(moved.database, "select rule_name from stg_rejections").num_rows == 1
    assert build_staging(moved, {}) == ["stg_rejections", "stg_candidates", "stg_rated_prompts", *RANKED]
    with duckdb.connect(str(moved.database), read_only=True) as connection:
        assert connection.execute("select count(*) from survivors").fetchall() == [(2,)]


def test_a_database_with_tables_where_views_belong_is_brought_up_to_date(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    build_staging(run, {})
    with duckdb.connect(str(run.database)) as connection:
        connection.execute("drop view survivors; create table survivors as select 'old' as response_id")
        connection.execute("delete from stg_built where name = 'survivors'")
    assert build_staging(run, {}) == RANKED
    assert query(run.database, "select count(*) as n from survivors").to_pylist() == [{"n": 3}]
