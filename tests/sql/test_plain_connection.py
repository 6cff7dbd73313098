"""Every SQL file that a recipe may name runs unchanged on run.duckdb by DuckDB alone: nothing set, nothing written."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from builder.rules import catalogue
from builder.sqlrun import MIX_COLUMNS, RULE_COLUMNS, SELECTOR_COLUMNS
from builder.staging import build_staging
from builder.store import Run, columns_table

COLUMNS = {"rules": RULE_COLUMNS, "selectors": SELECTOR_COLUMNS, "mix": MIX_COLUMNS}
FILES = [(kind, name) for kind in (*COLUMNS, "reports") for name in catalogue(kind)]
NEVER_COMPARED = {"benchmark_contaminated", "response_near_duplicate"}
"""Rules that refuse to run before `builder select` has compared anything; their case files show what they find then."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run.duckdb of a run with a prompt and two replies, not scored, verified, measured or selected."""
    run = Run(tmp_path_factory.mktemp("run"))
    reply = {
        **{"prompt_id": "p", "role": "teacher", "model": "m", "sample_index": 0, "temperature": 0.6},
        **{"reasoning_format": "none", "tool_calls": 0, "replaced_characters": 0, "prefix_chars": 0},
    }
    prompt = {"prompt_id": "p", "messages": [{"role": "user", "content": "1 + 2?"}], "sources": [], "gold_conflicts": 0}
    run.append("prompts", columns_table("prompts", [prompt]))
    run.append("responses", columns_table("responses", [{"response_id": name, **reply} for name in ("a", "b")]))
    build_staging(run, {})
    return run.database


@pytest.fixture
def plain(database: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(str(database), read_only=True) as connection:
        yield connection


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_file_runs_on_a_plain_read_only_connection(kind: str, name: str, plain: duckdb.DuckDBPyConnection) -> None:
    text = catalogue(kind)[name].read_text(encoding="utf-8")
    if name in NEVER_COMPARED:
        with pytest.raises(duckdb.InvalidInputException, match="was compared"):
            plain.execute(text)
        return
    assert len(plain.extract_statements(text)) == 1
    plain.execute(text).fetchall()
    assert plain.description is not None
    returned = [column[0] for column in plain.description]
    assert returned == [column for column, _ in COLUMNS[kind]] if kind in COLUMNS else returned


def test_the_connection_is_one_that_cannot_write(plain: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.InvalidInputException, match="read-only"):
        plain.execute("create table t as select 1")
