"""What the report draws from packaged SQL reports: how sure the teacher is by temperature, and who says what where.

The files run on views over the run's tables, so that page and `builder sql` agree and nothing of the run is rebuilt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import duckdb
from pyarrow.dataset import dataset

from builder.resources import resource
from builder.rules import catalogue
from builder.schema import TABLES
from builder.sqlfile import Value
from builder.store import Run, check_schema

_TABLES: Final = ("responses", "sentences", "selection")
_LEVEL: Final = 0.05
"""Change of a share below which a curve counts as level: our choice."""


@dataclass(frozen=True)
class Confidence:
    """Replies of one temperature by their response probability, in 20 bins of 0.05; `reading` compares two."""

    temperature: float
    replies: int
    without_value: int
    median: float | None
    histogram: tuple[int, ...]
    histogram_kept: tuple[int, ...]
    next_temperature: float | None
    overlap: float | None
    reading: str | None


@dataclass(frozen=True)
class Place:
    """Shares of sentences in one part of replies, means over replies. Numbers are null for tenths."""

    scale: Literal["tenth", "number"]
    bucket: int
    first_number: int | None
    last_number: int | None
    replies: int
    sentences: int
    teacher_share: float
    common_share: float
    student_share: float


def confidences(run: Run, student: str | None) -> list[Confidence]:
    """Rows of sql/reports/temperature.sql; none where no reply has sentence scores by this student."""
    rows = run_report(run, "temperature", {"student_id": student or ""})
    for row in rows:
        row |= {name: tuple(row[name]) for name in ("histogram", "histogram_kept")}
    return [Confidence(**row) for row in rows] if any(row["replies"] for row in rows) else []


def places(run: Run, student: str | None, margin: float) -> list[Place]:
    """Rows of sql/reports/position.sql at a margin."""
    rows = run_report(run, "position", {"student_id": student or "", "teacher_margin": margin})
    return [Place(**row) for row in rows]


def run_report(run: Run, name: str, variables: Mapping[str, Value]) -> list[dict[str, Any]]:
    """Rows of a packaged report that reads responses, sentences and selection.

    Raises TableError where a part of theirs is damaged or of another version.
    """
    with duckdb.connect(config={"python_enable_replacements": "false"}) as connection:
        for variable, value in variables.items():
            connection.execute(f"set variable {variable} = ?", [value])
        for table in _TABLES:
            paths = run.parts(table)
            for path in paths:
                check_schema(TABLES[table], path)
            # a dataset, because read_parquet takes a folder named a[1] for a pattern
            rows = dataset(paths, format="parquet") if paths else TABLES[table].schema.empty_table()
            connection.register(table, rows)
            staging = resource("sql", "staging", f"stg_{table}.sql").read_text(encoding="utf-8")
            connection.execute(f"create view stg_{table} as {staging}")
        answer = connection.sql(catalogue("reports")[name].read_text(encoding="utf-8"))
        return [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]


def provenance(found: list[Place]) -> str | None:
    """In words: how the teacher's share moves from the first tenth of a reply to the last."""
    tenths = [one for one in found if one.scale == "tenth"]
    if len(tenths) < 2:
        return None
    first, last, top = tenths[0], tenths[-1], max(tenths, key=lambda one: one.teacher_share)
    change = last.teacher_share - first.teacher_share
    moves = "hardly changes" if abs(change) < _LEVEL else "falls" if change < 0 else "rises"
    return (
        f"The teacher's share {moves} along a reply: {first.teacher_share:.0%} in the first tenth, "
        f"{last.teacher_share:.0%} in the last; it is largest in tenth {top.bucket} ({top.teacher_share:.0%})."
    )
