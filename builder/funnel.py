"""The funnel of the latest select by domain, by temperature, or by both: whom a rule hits, and how hard."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from builder.console import Reporter
from builder.errors import UsageError
from builder.grid import grid
from builder.rules import catalogue, did_you_mean
from builder.sqlrun import query
from builder.store import Run

GROUPINGS: Final = ("domain", "temperature")
_KEPT: Final = ("(kept)", "(not kept)")


@dataclass(frozen=True)
class FunnelRow:
    """What a rule breaks within one group: replies, those that only it breaks, their completion tokens, and the group's
    replies in all. `rule_name` (kept) counts what a stage of kind sft holds, (outranked) what breaks no rule and is
    held by none; neither breaks anything alone."""

    group: tuple[str | float, ...]
    rule_name: str
    replies: int
    breaks: int
    breaks_alone: int | None
    tokens: int


def check_grouping(by: Sequence[str]) -> None:
    """Raise UsageError for what the funnel is not told apart by."""
    for name in by:
        if name not in GROUPINGS:
            raise UsageError(f"--by {name!r}{did_you_mean(name, GROUPINGS)}: the funnel is told apart by domain or by "
                             "temperature.")  # fmt: skip


def funnel_by(run: Run, by: Sequence[str], *, ranked_role: str = "teacher") -> list[FunnelRow]:
    """Rows of sql/reports/funnel.sql for the stored selection, added up by the columns `by`; ordered by group, then
    most broken rule first. `ranked_role` is that of the replies which the selector ranked."""
    text = catalogue("reports")["funnel"].read_text(encoding="utf-8")
    found = query(run.database, text, {"ranked_role": ranked_role})
    cells = [row for row in found.to_pylist() if row["temperature"] is not None]
    replies: dict[tuple[Any, ...], int] = {}
    sums: dict[tuple[tuple[Any, ...], str], list[int]] = {}
    for row in cells:
        group = tuple(row[name] for name in dict.fromkeys(by))
        if row["rule_name"] in _KEPT:
            replies[group] = replies.get(group, 0) + row["breaks"]
        total = sums.setdefault((group, row["rule_name"]), [0, 0, 0])
        for place, name in enumerate(("breaks", "breaks_alone", "tokens")):
            total[place] += row[name] or 0
    rows = [
        FunnelRow(group, rule, replies[group], breaks, None if rule.startswith("(") else alone, tokens)
        for (group, rule), (breaks, alone, tokens) in sums.items()
        if rule != "(not kept)"
    ]
    return sorted(rows, key=lambda row: (row.group, row.rule_name.startswith("("), -row.breaks, row.rule_name))


def show_funnel_by(reporter: Reporter, by: Sequence[str], rows: Sequence[FunnelRow]) -> None:
    """A line for every group and rule that breaks something in it, with its share of the group's replies."""
    names = tuple(dict.fromkeys(by))
    columns = [*names, "rule", "breaks", "of replies", "only it", "tokens"]
    cells = [
        (
            *map(str, row.group),
            row.rule_name,
            row.breaks,
            f"{row.breaks / row.replies:.1%}",
            row.breaks_alone,
            row.tokens,
        )
        for row in rows
    ]
    reporter.line(f"by {' and '.join(names)}; rules that break nothing there are left out")
    for line in grid(columns, cells, reporter.out.width).lines:
        reporter.line(line)
    reporter.result({"funnel_by": [dict(zip(names, row.group, strict=True)) | asdict(row) for row in rows]})
