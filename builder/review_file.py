"""Files that people review: CSV for a spreadsheet or JSONL, what is written and how it is read back. No tables here."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from builder.errors import UsageError

DECISIONS: Final = ("keep", "drop")
COLUMNS: Final = (
    "response_id", "decision", "note", "reviewer", "stage", "prompt", "reasoning", "answer", "gold", "verdict",
    "original_id", "original_reasoning", "original_answer",
)  # fmt: skip
"""People fill in decision, note and reviewer; the import reads these and the id, and nothing else."""
_NEEDED: Final = ("response_id", "decision")
_IDS: Final = ("response_id", "original_id")
_FORMULA: Final = re.compile(r"'*[=+\-@\t\r\n]")
"""What a spreadsheet may run as a formula (OWASP, CSV injection), behind quotes that stand before it already."""
_NUMBER: Final = re.compile(r"'*[0-9]+(e[0-9]+)?")
"""Ids that a spreadsheet would take for a number and save with fewer digits."""
_LONGEST_CELL: Final = 2**31 - 1
_NAMED: Final = 5


@dataclass(frozen=True)
class Decided:
    """One row of a file: where it stands, and what a person said; decision None where nobody has decided."""

    place: str
    response_id: str
    decision: str | None
    reviewer: str | None
    note: str | None


def kind_of(path: Path) -> str:
    """csv or jsonl, by the file's ending. Raises UsageError for any other."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("csv", "jsonl"):
        raise UsageError(f"{path} is neither .csv (for a spreadsheet) nor .jsonl; give the file one of these endings.")
    return kind


def write_rows(file: TextIO, kind: str, rows: Iterable[Mapping[str, str | None]]) -> None:
    """Write rows of `COLUMNS`. The file is open for UTF-8 without translation of line ends."""
    if kind == "jsonl":
        for row in rows:
            file.write(json.dumps({name: row.get(name) or "" for name in COLUMNS}, ensure_ascii=False) + "\n")
        return
    file.write("\ufeff")  # Excel reads a file without it in the machine's old code page
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([guarded(row.get(name) or "", is_id=name in _IDS) for name in COLUMNS])


def guarded(cell: str, *, is_id: bool = False) -> str:
    """The cell with a quote before it where a spreadsheet would run it, or change an id; `unguarded` takes it off."""
    return f"'{cell}" if _FORMULA.match(cell) or (is_id and _NUMBER.fullmatch(cell)) else cell


def unguarded(cell: str, *, is_id: bool = False) -> str:
    """What was given to `guarded`."""
    is_guarded = cell.startswith("'") and (_FORMULA.match(cell) or (is_id and _NUMBER.fullmatch(cell)))
    return cell[1:] if is_guarded else cell


def read_decisions(path: Path) -> list[Decided]:
    """Every row of a reviewed file. Raises UsageError that names the rows that cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 (byte {error.start}). Save it from the spreadsheet as CSV UTF-8. Nothing was "
            "imported."
        ) from error
    rows = list(_csv_rows(path, text) if kind_of(path) == "csv" else _jsonl_rows(path, text))
    if not rows:
        raise UsageError(f"{path} holds no row, so there is no decision to import.")
    wrong = [
        f"{place}: decision {row['decision']!r}"
        for place, row in rows
        if row["decision"].casefold() not in ("", *DECISIONS)
    ]
    refuse(path, wrong, f"a decision is {' or '.join(DECISIONS)}, or nothing where nobody has decided")
    refuse(path, [f"{place}: no response_id" for place, row in rows if not row["response_id"]], "it names the reply")
    return [
        Decided(
            place, row["response_id"], row["decision"].casefold() or None, row["reviewer"] or None, row["note"] or None
        )
        for place, row in rows
    ]


def refuse(path: Path, wrong: list[str], meaning: str) -> None:
    """Raise UsageError with the first of these rows, where there are any."""
    if wrong:
        more = f" and {len(wrong) - _NAMED:,} more" if len(wrong) > _NAMED else ""
        raise UsageError(f"{path}: {'; '.join(wrong[:_NAMED])}{more}: {meaning}. Nothing was imported.")


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Row as a spreadsheet counts it, and its cells; a spreadsheet may have saved with semicolons or tabs."""
    head = text.partition("\n")[0]
    csv.field_size_limit(_LONGEST_CELL)  # a long thought is longer than the 131,072 characters allowed by default
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    try:
        names = [name.strip().casefold() for name in next(rows, [])]
        _check_names(path, names)
        for number, cells in enumerate(rows, 2):
            if any(cell.strip() for cell in cells):
                given = dict(zip(names, cells, strict=False))
                yield (
                    f"row {number}",
                    _cells({name: unguarded(cell, is_id=name in _IDS) for name, cell in given.items()}),
                )
    except csv.Error as error:
        raise UsageError(
            f"{path}, line {rows.line_num}: {error}. Save it as CSV again from the spreadsheet; nothing was imported."
        ) from error


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}, line {number} is not JSON ({error}). Nothing was imported.") from error
        given = {name: "" if value is None else value for name, value in row.items()} if isinstance(row, dict) else {}
        _check_names(path, list(given), f", line {number}")
        if odd := [name for name in COLUMNS[:4] if not isinstance(given.get(name, ""), str)]:
            raise UsageError(f"{path}, line {number}: {', '.join(odd)} must be text. Nothing was imported.")
        yield f"line {number}", _cells(given)


def _cells(given: Mapping[str, str]) -> dict[str, str]:
    return {name: given.get(name, "").strip() for name in COLUMNS[:4]}


def _check_names(path: Path, names: list[str], place: str = "") -> None:
    if missing := [name for name in _NEEDED if name not in names]:
        raise UsageError(
            f"{path}{place} has no column {' and no column '.join(missing)}; builder review --export writes a file "
            "with all of them. Nothing was imported."
        )
