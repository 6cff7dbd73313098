"""Build the stg_ tables of `run.duckdb` from `tables/`. Our own SQL, the only SQL that reads files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from builder.config import Recipe
from builder.errors import TableError
from builder.identity import sha256_hex
from builder.models import student_id
from builder.resources import resource
from builder.schema import TABLES
from builder.store import Run, check_schema


@dataclass(frozen=True)
class Staged:
    """One table of run.duckdb: the run's tables that decide its rows, and its key.

    `grows` says that new parts can be added to what is there, because each row depends on one row of one table.
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
    Staged("stg_sentences", ("sentences",), ("response_id",), variables=("student_id",), grows=True),
    Staged("stg_verdicts", ("verdicts", "responses", "prompts"), ("response_id", "verifier")),
    Staged("stg_pairs", ("pairs",), ("pair_id",), grows=True),
    Staged("stg_rollouts", ("rollouts",), ("response_id",)),
    Staged("stg_rejections", ("rejections",), ("response_id", "rule_name")),
    Staged("stg_selection", ("selection",), ("stage", "grain_id")),
    Staged("stg_candidates", ("responses", "prompts", "scores", "verdicts", "features"), view=True),
    Staged("survivors", ("responses", "rejections"), ("response_id",), variables=("selection_order",)),
)


def staging_variables(recipe: Recipe) -> dict[str, str | None]:
    """What of a recipe decides the staged rows: whose scores count, and which replies a selector ranks."""
    return {
        "student_id": student_id(recipe.student) if recipe.student else None,
        "selection_order": recipe.selection.order,
    }


def build_staging(run: Run, variables: Mapping[str, str | None]) -> list[str]:
    """Bring run.duckdb up to date in one transaction; names of what was rebuilt or extended.

    `variables` come from `staging_variables`. A crash leaves the database as it was; one that cannot be
    opened is built anew, because it is never the only copy of anything. Raises TableError where another program holds
    it, where a part breaks its schema, or where a key comes twice.
    """
    run.root.mkdir(parents=True, exist_ok=True)
    with _open(run.database) as connection:
        connection.begin()
        connection.execute("create table if not exists stg_built (name varchar primary key, made_from varchar)")
        built: dict[str, dict[str, Any]] = {
            name: json.loads(made_from) for name, made_from in connection.execute("from stg_built").fetchall()
        }
        changed: list[str] = []
        for staged in STAGED:
            source = _made_from(run, staged, variables)
            if built.get(staged.name) == source:
                continue
            _build(connection, run, staged, source, built.get(staged.name), variables)
            connection.execute("insert or replace into stg_built values (?, ?)", [staged.name, json.dumps(source)])
            changed.append(staged.name)
        connection.commit()
    return changed


def _open(path: Path) -> duckdb.DuckDBPyConnection:
    config: dict[str, str | bool | int | float | list[str]] = {"python_enable_replacements": "false"}
    try:
        return duckdb.connect(str(path), config=config)
    except duckdb.Error as error:
        if "lock" in str(error) or isinstance(error, duckdb.ConnectionException):
            raise TableError(
                f"{path} is open in another program, so its tables cannot be brought up to date ({error}). "
                "Close that program (a duckdb shell, another builder), then rerun."
            ) from error
    for stale in (path, path.with_name(f"{path.name}.wal")):
        stale.unlink(missing_ok=True)
    return duckdb.connect(str(path), config=config)


def _made_from(run: Run, staged: Staged, variables: Mapping[str, str | None]) -> dict[str, Any]:
    """What decides the rows of a staged table: its SQL, its variables, the parts it reads (name, size, time)."""
    parts = {}
    for table in staged.tables:
        for path in run.parts(table):
            stat = path.stat()
            parts[f"{table}/{path.name}"] = [stat.st_size, stat.st_mtime_ns]
    return {
        "sql": sha256_hex(_sql(staged)),
        "schema": [str(TABLES[table].schema.remove_metadata()) for table in staged.tables],
        "variables": {name: variables.get(name) for name in staged.variables},
        "parts": parts,
    }


def _sql(staged: Staged) -> str:
    text = resource("sql", "staging", f"{staged.name}.sql").read_text(encoding="utf-8")
    return text.strip().removesuffix(";")


def _build(
    connection: duckdb.DuckDBPyConnection,
    run: Run,
    staged: Staged,
    source: dict[str, Any],
    before: dict[str, Any] | None,
    variables: Mapping[str, str | None],
) -> None:
    added = _added(staged, source, before)
    for table in staged.tables:
        paths = [path for path in run.parts(table) if added is None or f"{table}/{path.name}" in added]
        _expose(connection, table, paths)
    for name in staged.variables:
        connection.execute(f"set variable {name} = ?", [variables.get(name)])
    if staged.view:
        connection.execute(f"create or replace view {staged.name} as {_sql(staged)}")
    elif added is None:
        connection.execute(f"create or replace table {staged.name} as {_sql(staged)}")
    else:
        connection.execute(f"insert into {staged.name} {_sql(staged)}")
    _check_key(connection, staged)
    for table in staged.tables:
        connection.execute(f"drop view if exists temp.main.{table}")


def _added(staged: Staged, source: dict[str, Any], before: dict[str, Any] | None) -> set[str] | None:
    """Parts that came since the last build; None where the table must be built anew."""
    if before is None or not staged.grows:
        return None
    unchanged = all(before[name] == source[name] for name in ("sql", "schema", "variables"))
    old: dict[str, Any] = before["parts"]
    if not unchanged or any(source["parts"].get(name) != facts for name, facts in old.items()):
        return None
    return set(source["parts"]) - set(old)


def _expose(connection: duckdb.DuckDBPyConnection, table: str, paths: list[Path]) -> None:
    """A temporary view of the parts under the table's own name; an empty one where there are none."""
    if not paths:
        connection.register(table, TABLES[table].schema.empty_table())
        return
    for path in paths:
        check_schema(TABLES[table], path)
    columns = ", ".join(f'"{name}"' for name in TABLES[table].schema.names)
    listed = ", ".join("'" + str(path.resolve()).replace("'", "''") + "'" for path in paths)
    connection.execute(f"create or replace temp view {table} as select {columns} from read_parquet([{listed}])")


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
