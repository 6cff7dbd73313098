"""What the report draws from packaged SQL reports: how sure the teacher is by temperature, and who says what where.

They run on views over the run's tables, so that page and `builder sql` agree and nothing of the run is rebuilt.
"""

from dataclasses import dataclass
from typing import Final, Literal

from builder.report_replies import Replies
from builder.sqlfile import Value

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


def confidences(replies: Replies, student: str | None) -> list[Confidence]:
    """Rows of sql/reports/temperature.sql, over the index; none where no reply has sentence scores by this student."""
    rows = replies.report("temperature", {"student_id": student or ""}, indexed=True)
    for row in rows:
        row |= {name: tuple(row[name]) for name in ("histogram", "histogram_kept")}
    return [Confidence(**row) for row in rows] if any(row["replies"] for row in rows) else []


def places(replies: Replies, student: str | None) -> list[Place]:
    """Rows of sql/reports/position.sql at the page's margin, over the index."""
    variables: dict[str, Value] = {"student_id": student or "", "teacher_margin": replies.margin}
    return [Place(**row) for row in replies.report("position", variables, indexed=True)]


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
