"""`builder sql`: one SELECT over a run, the list of rules, or the line that opens the database."""

from pathlib import Path

from builder.config import Recipe
from builder.console import Reporter
from builder.errors import UsageError
from builder.rules import catalogue, load_sql
from builder.sqlrun import query as run_query
from builder.store import Run

_SHOWN_ROWS = 200
_FEW = 5
"""Rows that are worth a block of lines each."""


def show_query(reporter: Reporter, run: Run, recipe: Recipe, text: str | None, file: Path | None) -> None:
    """Run one SELECT, sandboxed and read-only, with the recipe's parameters; or say how to open the database."""
    if not run.database.is_file():
        raise UsageError(f"{run.database} does not exist yet; builder select builds it from the run's tables.")
    if text is not None and file is not None:
        raise UsageError("Give a query with -c or a file with -f, not both.")
    if text is None and file is None:
        reporter.line(f"duckdb {run.database} -readonly")
        reporter.result({"database": str(run.database)})
        return
    sql = text if text is not None else _read(file)
    rows = run_query(run.database, sql, recipe.selection.params)
    values = [tuple(row.values()) for row in rows.slice(0, _SHOWN_ROWS).to_pylist()]
    note = f"{_SHOWN_ROWS} of {rows.num_rows:,} rows" if rows.num_rows > _SHOWN_ROWS else f"{rows.num_rows:,} rows"
    if _is_wide(rows.column_names, reporter.out.width) and len(values) <= _FEW:
        for row in values:
            reporter.table("", ("", ""), list(zip(rows.column_names, row, strict=True)))
        reporter.line(note)
    else:
        reporter.table("", rows.column_names, values, caption=note)
    reporter.result({"rows": rows.to_pylist()})


def _is_wide(names: list[str], width: int) -> bool:
    """Whether a line does not even hold the names of the columns; then rows are shown one name a line."""
    return sum(len(name) + 2 for name in names) - 2 > width


def show_rules(reporter: Reporter) -> None:
    """Packaged rules and selectors with purpose and parameters."""
    for kind in ("rules", "selectors"):
        rows = []
        for name, path in catalogue(kind).items():
            found = load_sql(kind, path)
            parameters = ", ".join(f"{one.name} = {one.default} ({one.unit})" for one in found.parameters)
            rows.append((name, found.purpose, parameters))
        reporter.table(kind, ("name", "purpose", "parameters"), rows)
        reporter.result({kind: [{"name": n, "purpose": p, "parameters": q} for n, p, q in rows]})


def _read(file: Path | None) -> str:
    try:
        return file.read_text(encoding="utf-8") if file else ""
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error}.") from error
