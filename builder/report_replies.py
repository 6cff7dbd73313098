"""Candidate replies of a run or of a release, one row each, in a DuckDB of its own that the report counts from.

Texts and lists of sentences stay where they are, in Parquet, and are read for the few replies that the page shows.
DuckDB spills, so a page about millions of replies takes the memory of `_MEMORY`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import duckdb

from builder.errors import TableError
from builder.report_replies_sql import FROM_CANDIDATES, FROM_RUN, FROM_STAGES, NO_SENTENCES, VIEWS
from builder.resources import resource
from builder.rules import catalogue
from builder.schema import MARGINS, RELEASE_CANDIDATES, TABLES
from builder.sqlcheck import quoted
from builder.sqlfile import Value
from builder.store import Run, check_schema

INDEXED: Final = 100_000
"""Replies that the page lists, and that charts of sentences read: the first by md5 of their id."""
_MEMORY: Final = "640MiB"
_STAGED: Final = (
    "responses", "prompts", "scores", "features", "verdicts", "rejections", "selection", "sentences", "rewrites"
)  # fmt: skip
_PATTERN: Final = re.compile(r"[*?\[]")
"""What read_parquet takes for a pattern: a run may lie in a folder named a[1]."""
_NONE_KEPT: Final = "select null::varchar as response_id, null::varchar as stage, null::integer as position where false"


@dataclass(frozen=True)
class Replies:
    """A connection with table `replies`, and views by which packaged reports and selectors read it.

    `counted_at` is the margin of teacher and student sentences in `replies`: the recipe's, or of those that scores
    hold counts for the one nearest to it. Only a run (`of_run`) has lists of sentences, what rules observed, times and
    prices.
    """

    connection: duckdb.DuckDBPyConnection
    margin: float
    counted_at: float
    of_run: bool

    def ask(self, sql: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Rows of a statement by the names of their columns. Raises TableError where a part cannot be read."""
        return self._ask(sql, list(values))

    def ask_named(self, sql: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """As `ask`, with parameters by name."""
        return self._ask(sql, dict(values))

    def _ask(self, sql: str, values: list[Any] | dict[str, Any]) -> list[dict[str, Any]]:
        try:
            answer = self.connection.execute(sql, values)
            names = [column[0] for column in answer.description or ()]
            return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
        except duckdb.Error as error:
            raise TableError(
                f"The report cannot be counted: {error}. Where a file is named, restore it from where it was published "
                "or from a backup; where memory or disk is, free some; then rerun builder report."
            ) from error

    def report(self, name: str, variables: Mapping[str, Value], *, indexed: bool = False) -> list[dict[str, Any]]:
        """Rows of a packaged SQL report, over all replies or those of the index."""
        self._set(variables)
        self._name_views("is_indexed" if indexed else "true")
        return self.ask(catalogue("reports")[name].read_text(encoding="utf-8"))

    def rank(self, selector: str, variables: Mapping[str, Value], table: str) -> None:
        """Make a table of what a packaged selector ranks: response_id, rank. It counts at `counted_at`."""
        self._set({**variables, "teacher_margin": self.counted_at})
        self._name_views("true")
        sql = catalogue("selectors")[selector].read_text(encoding="utf-8").strip().removesuffix(";")
        self.ask(f"create or replace temp table {table} as {sql}")

    def _name_views(self, where: str) -> None:
        for view, sql in VIEWS.items():
            self.ask(f"create or replace view {view} as {sql.format(where=where)}")

    def _set(self, variables: Mapping[str, Value]) -> None:
        for name, value in variables.items():
            self.ask(f'set variable "{name}" = ?', [value])


@contextmanager
def replies_of_run(run: Run, staged: Mapping[str, str | None], margin: float) -> Iterator[Replies]:
    """Candidates of a run from its tables; run.duckdb may be older. `staged` are `staging_variables`.

    Raises TableError where a part is damaged or of another version.
    """
    with _opened() as connection:
        counted_at = nearest_margin(margin)
        made = Replies(connection, margin, counted_at, of_run=True)
        made._set({name: value for name, value in staged.items() if value is not None})
        for table in _STAGED:
            made.ask(f"create view {table} as {_rows_of(connection, run, table)}")
            made.ask(f"create view stg_{table} as {_staging(f'stg_{table}')}")
        made.ask(f"create view survivors as {_staging('survivors')}")
        made.ask(FROM_RUN.format(slot=MARGINS.index(counted_at) + 1, indexed=INDEXED))
        yield made


@contextmanager
def replies_of_release(database: Path, stages: Mapping[str, str], margin: float) -> Iterator[Replies]:
    """Candidates of a published release from the database that `published.database` makes; where it publishes none,
    the rows of its stages of kind sft, whose configs `stages` names. Raises TableError where it holds no reply."""
    with _opened() as connection:
        counted_at = nearest_margin(margin)
        made = Replies(connection, margin, counted_at, of_run=False)
        made.ask(f"attach {quoted(str(database))} as release (read_only)")
        named = made.ask("select table_name from duckdb_tables() where database_name = 'release'")
        tables = {row["table_name"] for row in named}
        own = {stage: f'release."{_table(config)}"' for stage, config in stages.items() if _table(config) in tables}
        kept = [f"select response_id, {quoted(stage)} as stage, position from {name}" for stage, name in own.items()]
        made.ask(f"create view kept_rows as {' union all '.join(kept) or _NONE_KEPT}")
        if "candidates" in tables:
            _check_candidates(made)
            made.ask(FROM_CANDIDATES.format(slot=MARGINS.index(counted_at) + 1, indexed=INDEXED))
        else:
            if not own:
                raise TableError("The release holds neither candidates nor a stage of kind sft: no reply to report.")
            rows = " union all by name ".join(f"from {name}" for name in own.values())
            made.ask(FROM_STAGES.format(rows=rows, indexed=INDEXED))
        made.ask(NO_SENTENCES)
        yield made


def nearest_margin(margin: float) -> float:
    """Of the margins at which scores hold counts, the one nearest to this."""
    return min(MARGINS, key=lambda one: abs(one - margin))


@contextmanager
def _opened() -> Iterator[duckdb.DuckDBPyConnection]:
    with (
        TemporaryDirectory() as folder,
        duckdb.connect(
            config={"python_enable_replacements": "false", "memory_limit": _MEMORY, "temp_directory": folder}
        ) as connection,
    ):
        yield connection


def _table(config: str) -> str:
    """The table that `published.database` makes of a config."""
    return re.sub("[-./]", "_", config)


def _check_candidates(made: Replies) -> None:
    """Raise TableError where config `candidates` lacks a column: an older or a foreign release."""
    found = {row["column_name"] for row in made.ask("describe release.candidates")}
    if lacking := [name for name in RELEASE_CANDIDATES.names if name not in found]:
        raise TableError(
            f"Config candidates of this release lacks {', '.join(lacking)}: another version of tempered made it, and "
            "numbers without these would be wrong. Report it with that version, or release it anew."
        )


def _staging(name: str) -> str:
    return resource("sql", "staging", f"{name}.sql").read_text(encoding="utf-8")


def _rows_of(connection: duckdb.DuckDBPyConnection, run: Run, table: str) -> str:
    """A SELECT of a table's columns; of no rows where it was never written."""
    paths = run.parts(table)
    for path in paths:
        check_schema(TABLES[table], path)
    columns = ", ".join(f'"{name}"' for name in TABLES[table].schema.names)
    if not paths:
        connection.register(f"no_{table}", TABLES[table].schema.empty_table())
        return f"select {columns} from no_{table}"
    listed = ", ".join(quoted(_PATTERN.sub(r"[\g<0>]", str(path.resolve()))) for path in paths)
    return f"select {columns} from read_parquet([{listed}], hive_partitioning = false)"
