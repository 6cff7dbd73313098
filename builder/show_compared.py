"""What `builder compare` prints: at most 80 columns, the same numbers side by side."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from builder.compare import Comparison
from builder.console import Reporter
from builder.grid import cut, folded, grid, plain

_REASONS_SHOWN: Final = 8
_MILLIONS: Final = 100_000_000
"""Tokens from which a table counts them in millions."""
_SHIFTS: Final = {
    "rows": "replies",
    "tokens": "completion tokens",
    "mean_tokens": "  mean of a reply",
    "median_tokens": "  median",
    "pass_rate": "pass rate of the prompt",
    "teacher_sentences": "teacher sentences, mean",
    "mean_delta": "mean_delta, mean",
}


def show_compared(reporter: Reporter, found: Comparison) -> None:
    """Rules, stages, overlap, shifts, domains, reasons and examples."""
    width = reporter.out.width
    for line in _lines(found, width):
        reporter.line(line)
    reporter.result({"compare": plain(asdict(found))})


def _lines(found: Comparison, width: int) -> list[str]:
    lines = []
    for name, label in (("A", found.label_a), ("B", found.label_b)):
        head, *rest = folded(label, width - 3)
        lines += [f"{name}  {head}", *(f"   {line}" for line in rest)]
    rows, prompts = found.rows, found.prompts
    overlap = (
        f"replies: {rows['both']:,} in both, {rows['only_a']:,} only in A, {rows['only_b']:,} only in B; "
        f"prompts: {prompts['same']:,} with the same replies, {prompts['changed']:,} with others, "
        f"{prompts['only_a']:,} only in A, {prompts['only_b']:,} only in B"
    )
    lines += ["", *folded(overlap, width)]
    if not (rows["only_a"] or rows["only_b"]):
        lines.append("Both keep the same replies.")
    lines += _rules(found, width)
    lines += _table(
        ("stage", "kind", "rows A", "B", "in both"), [tuple(stage.values()) for stage in found.stages], width
    )
    shifts = [found.shifts[name] for name in ("a", "b", "only_a", "only_b")]
    if any(shift["rows"] for shift in shifts):
        lines += _table(
            ("", "A", "B", "only A", "only B"),
            [(said, *(_short(shift[name]) for shift in shifts)) for name, said in _SHIFTS.items()],
            width,
        )
        lines += folded(
            f"Teacher sentences at margin {found.margin:g}; means are over replies that have the number.", width
        )
    lines += _table(("domain", "A", "B", "% of A", "B"), _domains(found), width)
    for side, other in (("a", "B"), ("b", "A")):
        lines += _only(found, side, other, width)
    return lines


def _rules(found: Comparison, width: int) -> list[str]:
    """Rules that reject something on either side, then the names of the others."""
    broken = [rule for rule in found.rules if rule["breaks_a"] or rule["breaks_b"]]
    most = max((rule[f"tokens_{side}"] or 0 for rule in broken for side in "ab"), default=0)
    unit, said = (1_000_000, "million tokens A") if most >= _MILLIONS else (1, "tokens A")
    rows = []
    for rule in broken:
        tokens = (rule[f"tokens_{side}"] for side in "ab")
        counts = (rule[f"{name}_{side}"] for name in ("breaks", "breaks_alone") for side in "ab")
        rows.append((rule["rule_name"], *counts, *(None if one is None else round(one / unit) for one in tokens)))
    lines = _table(("rule", "breaks A", "B", "only it A", "B", said, "B"), rows, width)
    idle = [rule["rule_name"] for rule in found.rules if rule not in broken]
    if idle:
        lines += [*([] if lines else [""]), *folded(f"Nothing is rejected by {', '.join(idle)}.", width)]
    return lines


def _domains(found: Comparison) -> list[tuple[Any, ...]]:
    shown = []
    for row in found.domains:
        numbers = [row[f"rows_{side}"] for side in "ab"]
        totals = [found.shifts[side]["rows"] for side in "ab"]
        shares = [round(100 * part / whole, 1) if whole else None for part, whole in zip(numbers, totals, strict=True)]
        shown.append((row["domain"], *numbers, *shares))
    return shown


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int) -> list[str]:
    return ["", *grid(columns, rows, width).lines] if rows else []


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _only(found: Comparison, side: str, other: str, width: int) -> list[str]:
    reasons = [row for row in found.reasons if row["only_in"] == side]
    if not reasons:
        return []
    lines = ["", f"only in {side.upper()}: in {other} they are"]
    lines += [f"  {row['rows']:>8,}  {cut(row['reason'], width - 12)}" for row in reasons[:_REASONS_SHOWN]]
    if more := reasons[_REASONS_SHOWN:]:
        lines.append(f"  {sum(row['rows'] for row in more):>8,}  for {len(more)} more reasons (--json lists all)")
    for row in found.examples:
        if row["only_in"] == side:
            lines += _example(row, other, width)
    return lines


def _example(row: Any, other: str, width: int) -> list[str]:
    said = " ".join(f"{row['reasoning'] or ''} {row['answer'] or ''}".split())
    tokens = "–" if row["completion_tokens"] is None else f"{row['completion_tokens']:,}"
    lines = [
        f"  {row['response_id']}  {tokens} tokens at {row['temperature']}",
        f"    in {other}      {row['reason']}",
        f"    question  {' '.join(row['question'].split())}",
        f"    reply     {said}",
    ]
    return ["", *(cut(line, width) for line in lines)]
