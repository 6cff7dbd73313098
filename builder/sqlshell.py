"""`builder sql`: one SELECT over a run, the list of rules, or the line that opens the database."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from builder.config import Recipe
from builder.console import Reporter
from builder.errors import UsageError
from builder.grid import folded, grid, plain, stacked
from builder.rules import catalogue, find_sql, load_sql
from builder.sqlfile import SqlFile, Value
from builder.sqlrun import query as run_query

_SHOWN_ROWS: Final = 200
_FEW: Final = 5
"""Rows that are worth a block of lines each."""
_CSV_BATCH: Final = 10_000


def show_query(
    reporter: Reporter,
    database: Path,
    params: Mapping[str, Value],
    text: str | None,
    file: Path | None,
    *,
    as_csv: bool = False,
) -> None:
    """Run one SELECT on `database`, sandboxed and read-only, with these parameters; or say how to open it.

    A table of the first 200 rows; every row with --json, or with `as_csv` (RFC 4180, UTF-8) on stdout.
    """
    if text is not None and file is not None:
        raise UsageError("Give a query with -c or a file with -f, not both.")
    if as_csv and (reporter.as_json or (text is None and file is None)):
        raise UsageError("--csv prints the rows of a query: give one with -c or -f, and leave out --json.")
    if not database.is_file():
        raise UsageError(f"{database} does not exist yet; builder select builds it from the run's tables.")
    if text is None and file is None:
        reporter.line(f"duckdb {database} -readonly")
        reporter.result({"database": str(database)})
        return
    sql = text if text is not None else _read(file)
    rows = run_query(database, sql, params, what="The query" if file is None else f"The query in {file}")
    if as_csv:
        for line in csv_lines(rows):
            sys.stdout.buffer.write(line.encode())
        return
    if reporter.as_json:
        reporter.result({"rows": [plain(row) for row in rows.to_pylist()]})
        return
    _show_rows(reporter, rows)


def csv_lines(rows: pa.Table) -> Iterator[str]:
    """The names, then every row, as RFC 4180 has it: a comma between, CRLF after, quotes where they are needed.

    NULL is nothing between two commas, an empty text is `""`; lists and structs are JSON.
    """
    yield ",".join(map(_csv_field, rows.column_names)) + "\r\n"
    for batch in rows.to_batches(max_chunksize=_CSV_BATCH):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield ",".join(map(_csv_field, row)) + "\r\n"


def _csv_field(value: Any) -> str:
    if value is None:
        return ""
    value = plain(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    is_bare = text and text == text.strip() and not any(mark in text for mark in ',"\r\n')
    return text if is_bare else '"' + text.replace('"', '""') + '"'


def _show_rows(reporter: Reporter, rows: pa.Table) -> None:
    names, width = rows.column_names, reporter.out.width
    first = rows.slice(0, _SHOWN_ROWS)
    values = list(zip(*(column.to_pylist() for column in first.columns), strict=True))
    shape = grid(names, values, width)
    count = f"{rows.num_rows:,} row{'s' * (rows.num_rows != 1)}"
    if shape.note and len(values) <= _FEW:
        for row in values:
            _lines(reporter, [*stacked(names, row, width), ""])
        reporter.line(count)
        return
    _lines(reporter, shape.lines)
    shown = f"{len(values)} of {count}" if rows.num_rows > len(values) else count
    if rows.num_rows > len(values) or shape.note:
        shown = "; ".join(filter(None, [shown, shape.note, "--json or --csv prints all"]))
    _lines(reporter, folded(shown, width))


def show_rules(reporter: Reporter, recipe: Recipe, recipe_dir: Path) -> None:
    """Packaged rules and selectors and the recipe's own, with purpose, parameters, and what the recipe uses."""
    given = recipe.selection.params
    for kind, used in (("rules", recipe.selection.rules), ("selectors", [recipe.selection.selector])):
        _lines(reporter, [f"{kind} (* in use by {recipe.name})", ""])
        listed = []
        for name in dict.fromkeys([*catalogue(kind), *used]):
            file = load_sql(kind, find_sql(kind, name, recipe_dir))
            _lines(reporter, _described(file, name in used, given, reporter.out.width))
            listed.append(
                {
                    "name": name,
                    "purpose": file.purpose,
                    "in_use": name in used,
                    "parameters": [
                        {"name": p.name, "default": p.default, "unit": p.unit, "recipe": given.get(p.name)}
                        for p in file.parameters
                    ],
                }
            )
        reporter.result({kind: listed})


def _described(file: SqlFile, in_use: bool, given: Mapping[str, Value], width: int) -> list[str]:
    lines = [f"{'*' if in_use else ' '} {file.name}"]
    lines += [f"    {line}" for line in folded(file.purpose, width - 4)]
    for parameter in file.parameters:
        here = f", here {given[parameter.name]}" if parameter.name in given else ""
        text = f"{parameter.name} = {parameter.default}{here}: {parameter.unit}"
        head, *rest = folded(text, width - 6)
        lines += [f"    · {head}", *(f"      {line}" for line in rest)]
    return lines


def _lines(reporter: Reporter, lines: Iterable[str]) -> None:
    for line in lines:
        reporter.line(line)


def _read(file: Path | None) -> str:
    try:
        return file.read_text(encoding="utf-8") if file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}.") from error
