"""Build the stg_ tables of `run.duckdb` from `tables/`. Our own SQL, the only SQL that reads files."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from builder.config import Recipe
from builder.console import Progress
from builder.errors import TableError
from builder.models import student_id
from builder.resources import resource
from builder.schema import TABLES
from builder.shards import rewriting
from builder.sqlcheck import quoted
from builder.store import Run, check_schema

_PATTERN: Final = re.compile(r"[*?\[]")
"""What read_parquet takes for a pattern: in brackets it stands for itself, so a run may lie in a folder named a[1]."""
_ROW_GROUP: Final = 16_384
"""Rows that are in memory together while a table is written: of long replies DuckDB's own 122,880 take gigabytes."""
_MEMORY: Final = "640MiB"
"""Of what DuckDB spills beyond this, nothing was slower to build, from 120,000 long replies to 1.8 million."""


@dataclass(frozen=True)
class Staged:
    """One table of run.duckdb: the run's tables that decide its rows, and its key.

    `grows` says that new parts can be added to what is there, because each row depends on one row of one table. Of a
    `view` nothing is copied: it reads staged tables, and a part where it is asked for, so that a change costs nothing.
    """

    name: str
    tables: tuple[str, ...]
    key: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    grows: bool = False
    view: bool = False


STAGED: Final = (
    Staged("stg_prompts", ("prompts",), ("prompt_id",), grows=True),
    Staged("stg_responses", ("responses",), ("response_id",), grows=True),
    Staged("stg_features", ("features",), ("response_id",), grows=True),
    Staged("stg_scores", ("scores",), ("response_id",), variables=("student_id",), grows=True),
    Staged("stg_sentences", ("sentences",), variables=("student_id",), view=True),
    Staged("stg_verdicts", ("verdicts", "responses", "prompts"), ("response_id", "verifier")),
    Staged("stg_pairs", ("pairs",), ("pair_id",), grows=True),
    Staged("stg_duplicates", ("duplicates",), ("response_id", "earlier_id")),
    Staged("stg_contaminations", ("contaminations",), ("prompt_id", "benchmark", "benchmark_row")),
    Staged("stg_rollouts", ("rollouts",), ("response_id",)),
    Staged("stg_rewrites", ("rewrites",), ("response_id",)),
    Staged("stg_reviews", ("reviews",), ("response_id",)),
    Staged("stg_rejections", ("rejections",), view=True),
    Staged("stg_selection", ("selection",), view=True),
    Staged("stg_candidates", (), view=True),
    Staged("stg_rated_prompts", (), view=True),
    Staged("reply_numbers", ("responses", "scores"), variables=("student_id",)),
    Staged("survivors", (), variables=("selection_order", "ranked_role"), view=True),
    Staged("stg_scores_of_survivors", (), view=True),
    Staged("stg_sentences_of_survivors", (), view=True),
)


def staging_variables(recipe: Recipe) -> dict[str, str | None]:
    """What of a recipe decides the staged rows: whose scores count, and which replies a selector ranks."""
    return {
        "student_id": student_id(recipe.student) if recipe.student else None,
        "selection_order": recipe.selection.order,
        "ranked_role": "rewrite" if recipe.rewrite else None,
    }


def sources(run: Run, variables: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """What decides the rows of each staged table, by its name: its SQL, and the parts that it reads."""
    return {staged.name: _made_from(run, staged, variables) for staged in STAGED}


def is_staged(run: Run, variables: Mapping[str, str | None]) -> bool:
    """Whether run.duckdb holds what the run's tables hold: then no table has changed since it was built."""
    if not run.database.is_file():
        return False
    with _open(run.database) as connection:
        built = _built(connection)
    return built == sources(run, variables)


def build_staging(run: Run, variables: Mapping[str, str | None], progress: Progress = lambda *_: None) -> list[str]:
    """Bring run.duckdb up to date in one transaction; names of what was rebuilt or extended.

    `variables` come from `staging_variables`. A crash leaves the database as it was; one that cannot be
    opened is built anew, because it is never the only copy of anything. Raises TableError where another program holds
    it, where a part breaks its schema, or where a key comes twice.
    """
    run.root.mkdir(parents=True, exist_ok=True)
    with rewriting(run), _open(run.database) as connection:
        connection.begin()
        connection.execute("create table if not exists stg_built (name varchar primary key, made_from varchar)")
        built = _built(connection)
        changed: list[str] = []
        for number, staged in enumerate(STAGED):
            source = _made_from(run, staged, variables)
            # a view of staged tables knows their columns by name, so it follows whatever changed before it
            follows = staged.view and not staged.tables and bool(changed)
            if built.get(staged.name) == source and not follows:
                continue
            progress(f"run.duckdb: {staged.name}", number, len(STAGED))
            _build(connection, run, staged, source, built.get(staged.name))
            connection.execute("insert or replace into stg_built values (?, ?)", [staged.name, json.dumps(source)])
            changed.append(staged.name)
        connection.commit()
    return changed


def _built(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, Any]]:
    """What each staged table was made from, by its name."""
    if not connection.execute("select 1 from duckdb_tables() where table_name = 'stg_built'").fetchall():
        return {}
    return {name: json.loads(made_from) for name, made_from in connection.execute("from stg_built").fetchall()}


def _open(path: Path) -> duckdb.DuckDBPyConnection:
    """A connection to the database at `path`, which is built anew where it cannot be read."""
    try:
        return _attached(path)
    except duckdb.Error as error:
        if "lock" in str(error) or isinstance(error, duckdb.ConnectionException):
            raise TableError(
                f"{path} is open in another program, so its tables cannot be brought up to date ({error}). "
                "Close that program (a duckdb shell, another builder), then rerun."
            ) from error
    for stale in (path, path.with_name(f"{path.name}.wal")):
        stale.unlink(missing_ok=True)
    return _attached(path)


def _attached(path: Path) -> duckdb.DuckDBPyConnection:
    """Attached, because only so the size of row groups can be said."""
    connection = duckdb.connect(
        config={
            "python_enable_replacements": "false",
            "memory_limit": _MEMORY,
            "temp_directory": str(path.with_name(f"{path.name}.tmp")),
        }
    )
    try:
        connection.execute(f"attach {quoted(str(path))} as run (row_group_size {_ROW_GROUP})")
        connection.execute("use run")
    except BaseException:
        connection.close()
        raise
    return connection


def _made_from(run: Run, staged: Staged, variables: Mapping[str, str | None]) -> dict[str, Any]:
    """What decides the rows of a staged table: its SQL with its variables, the parts it reads (name, size, time).

    Of a view, which reads parts when it is asked, the parts' names and their folder; `builder.sqlchild` reads those.
    """
    parts = {}
    for table in staged.tables:
        for path in run.parts(table):
            stat = path.stat()
            parts[f"{table}/{path.name}"] = None if staged.view else [stat.st_size, stat.st_mtime_ns]
    return {
        "sql": _sql(staged, variables),
        "schema": [str(TABLES[table].schema.remove_metadata()) for table in staged.tables],
        "parts": parts,
        "folder": str(run.root.resolve()) if staged.view and parts else None,
    }


def _sql(staged: Staged, variables: Mapping[str, str | None]) -> str:
    """The file's one SELECT, each variable as a literal: a view is asked where no variable is set."""
    sql = resource("sql", "staging", f"{staged.name}.sql").read_text(encoding="utf-8").strip().removesuffix(";")
    for name in staged.variables:
        value = variables.get(name)
        sql = sql.replace(f"getvariable('{name}')", "null" if value is None else quoted(value))
    return sql


def _build(
    connection: duckdb.DuckDBPyConnection,
    run: Run,
    staged: Staged,
    source: dict[str, Any],
    before: dict[str, Any] | None,
) -> None:
    added = _added(staged, source, before)
    reads = []
    for table in staged.tables:
        paths = [path for path in run.parts(table) if added is None or f"{table}/{path.name}" in added]
        reads.append(f"{table} as ({_rows_of(connection, table, paths)})")
    # The line break ends a comment in the file's last line.
    sql = f"{'with ' if reads else ''}{', '.join(reads)} select * from (\n{source['sql']}\n)"
    if added is None:
        _drop(connection, staged.name)
        connection.execute(f"create {'view' if staged.view else 'table'} {staged.name} as {sql}")
    else:
        connection.execute(f"insert into {staged.name} {sql}")
    _check_key(connection, staged)


def _drop(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Drop the table or view of this name, whichever an earlier version made of it."""
    kind = connection.execute(
        "select 'table' from duckdb_tables() where table_name = $1 "
        "union all select 'view' from duckdb_views() where view_name = $1",
        [name],
    ).fetchone()
    if kind is not None:
        connection.execute(f"drop {kind[0]} {name}")


def _added(staged: Staged, source: dict[str, Any], before: dict[str, Any] | None) -> set[str] | None:
    """Parts that came since the last build; None where the table must be built anew."""
    if before is None or not staged.grows:
        return None
    unchanged = all(before.get(name) == source[name] for name in ("sql", "schema"))
    old: dict[str, Any] = before["parts"]
    if not unchanged or any(source["parts"].get(name) != facts for name, facts in old.items()):
        return None
    return set(source["parts"]) - set(old)


def _rows_of(connection: duckdb.DuckDBPyConnection, table: str, paths: list[Path]) -> str:
    """A SELECT of a table's columns from these parts; of no rows, in the same types, where there are none."""
    for path in paths:
        check_schema(TABLES[table], path)
    if paths:
        columns = ", ".join(f'"{name}"' for name in TABLES[table].schema.names)
        listed = ", ".join(quoted(_PATTERN.sub(r"[\g<0>]", str(path.resolve()))) for path in paths)
        return f"select {columns} from read_parquet([{listed}], hive_partitioning = false)"
    connection.register(table, TABLES[table].schema.empty_table())
    described = connection.execute(f"describe {table}").fetchall()
    connection.unregister(table)
    columns = ", ".join(f'null::{kind} as "{name}"' for name, kind, *_ in described)
    return f"select {columns} where false"


def _check_key(connection: duckdb.DuckDBPyConnection, staged: Staged) -> None:
    if not staged.key:
        return
    key = ", ".join(staged.key)
    row = connection.execute(
        f"select {key}, count(*) from {staged.name} group by {key} having count(*) > 1 order by all limit 1"
    ).fetchone()
    if row is not None:
        named = ", ".join(f"{name} {value}" for name, value in zip(staged.key, row, strict=False))
        raise TableError(
            f"{' and '.join(staged.tables)}: {named} is stored {row[-1]} times. Every count would be off. Move "
            f"the folder tables/{staged.tables[0]} away and rerun the step that makes it. For replies that is builder "
            "generate: it makes them from the journal's raw bodies, and names the parts whose bodies are pruned."
        )
