"""What `builder eval` prints: at most 80 columns, percent."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from builder.console import Reporter
from builder.eval_counts import AtK, Counts
from builder.eval_paired import Paired, harmed
from builder.eval_teacher import Ceiling
from builder.evaluate import Evaluation
from builder.grid import Grid, cut, folded, grid

_APART: Final = "not judged: unscorable, timeout or error"
_NAME_WIDTH: Final = 15
"""Of a benchmark beside seven columns of numbers, in cells."""
_NO_BREAK: Final = "\u00a0"


def show_evaluations(reporter: Reporter, found: Sequence[Evaluation]) -> None:
    """One evaluation as lines, more of them as a table. `--json`: `evaluations`, and `eval` where there is one."""
    if not found:
        return
    if len(found) == 1:
        _one(reporter, found[0])
        reporter.result({"eval": asdict(found[0])})
    else:
        _by_benchmark(reporter, found)
        for line in folded(_asked(found), reporter.out.width):
            reporter.line(line)
    reporter.result({"evaluations": [asdict(one) for one in found]})


def show_ceilings(reporter: Reporter, found: Sequence[Ceiling]) -> None:
    """What the teacher itself can do, temperature by temperature: a student taught by it should not expect more."""
    names = sorted({one.model for one in found})
    head = f"Ceiling of the teacher, {', '.join(names)}: stored replies to the recipe's prompts, n questions"
    for line in folded(head, reporter.out.width):
        reporter.line(line)
    who = ("teacher",) if len(names) > 1 else ()
    rows = [(*(one.model for _ in who), one.temperature, one.questions, *_numbers(one)) for one in found]
    _table(reporter, (*who, "T", "n", *_columns(found)), rows)
    reporter.line(f"percent, 95% intervals; {_APART}")
    reporter.result({"teacher": [asdict(one) for one in found]})


def show_paired(reporter: Reporter, found: Sequence[Sequence[Paired]]) -> None:
    """For each model one row a benchmark, then how many it harms. `--json`: `paired`, one object a row."""
    for rows in found:
        head = f"{rows[0].model} less {rows[0].against}: pass@1 over the same questions, points with 95% interval"
        for line in ["", *folded(head, reporter.out.width)]:
            reporter.line(line)
        cells = [
            (
                cut(row.benchmark, _NAME_WIDTH),
                *(round(100 * value, 1) + 0.0 for value in (row.difference, row.low, row.high)),  # no −0.0
                row.won,
                row.lost,
                row.verdict.replace(" ", _NO_BREAK),  # a word is shown whole or not at all
                round(100 * row.would_see, 1),
            )
            for row in rows
        ]
        _table(reporter, ("benchmark", "points", "low", "high", "won", "lost", "verdict", "would see ±"), cells)
        for line in folded(harmed(rows), reporter.out.width):
            reporter.line(line)
    if found:
        reporter.result({"paired": [asdict(row) for rows in found for row in rows]})


def _by_benchmark(reporter: Reporter, found: Sequence[Evaluation]) -> None:
    """One table in which every benchmark is a heading over its models."""
    names = list(dict.fromkeys(one.benchmark for one in found))
    ordered = sorted(found, key=lambda one: names.index(one.benchmark))
    table = grid(
        ("model", *_columns(found)), [(f"  {one.model}", *_numbers(one)) for one in ordered], reporter.out.width
    )
    head, rows = table.lines[: -len(ordered)], table.lines[-len(ordered) :]
    for line in head:
        reporter.line(line)
    shown: list[str] = []
    for one, line in zip(ordered, rows, strict=True):
        if one.benchmark not in shown:
            shown.append(one.benchmark)
            reporter.line(cut(f"{one.benchmark}, {one.questions:,} questions", reporter.out.width))
        reporter.line(line)
    _note(reporter, table)


def _one(reporter: Reporter, found: Evaluation) -> None:
    reporter.line(
        f"eval: {found.model}: pass@1 {found.pass_at_1:.1%} [{found.low:.1%}, {found.high:.1%}] "
        f"({found.correct:,} of {found.replies:,} replies; T={found.temperature}; {found.unscorable:,} unscorable, "
        f"{found.cut:,} cut; mean {found.mean_tokens:.0f} tokens)"
    )
    for one in found.at_k:
        if one.k > 1:
            reporter.line(f"      {_at(one)}")


def _at(one: AtK) -> str:
    text = f"pass@{one.k} {one.pass_at_k:.1%} [{one.low:.1%}, {one.high:.1%}]"
    if one.maj_at_k is not None:
        text += f", maj@{one.k} {one.maj_at_k:.1%} [{one.maj_low:.1%}, {one.maj_high:.1%}]"
    return text


def _columns(found: Sequence[Counts]) -> tuple[str, ...]:
    """Columns of `_numbers`; without those of the largest k where it is 1 everywhere."""
    largest = {one.at_k[-1].k for one in found}
    k = f"{max(largest)}" if len(largest) == 1 else "k"
    return ("pass@1", "interval", *((f"pass@{k}", f"maj@{k}") if largest != {1} else ()), "not judged", "cut")


def _numbers(one: Counts) -> tuple[object, ...]:
    last = one.at_k[-1]
    more = (_percent(last.pass_at_k), _percent(last.maj_at_k)) if last.k > 1 else ()
    return (
        _percent(one.pass_at_1),
        f"{100 * one.low:.1f}–{100 * one.high:.1f}",
        *more,
        one.unscorable,
        one.cut,
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


def _asked(found: Sequence[Evaluation]) -> str:
    """What the numbers of a table are."""
    one = found[0]
    replies = "1 reply" if one.samples == 1 else f"{one.samples} replies"
    return f"percent, 95% intervals; {replies} a question at T={one.temperature:g}; {_APART}"


def _table(reporter: Reporter, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = grid(columns, rows, reporter.out.width)
    for line in table.lines:
        reporter.line(line.replace(_NO_BREAK, " "))
    _note(reporter, table)


def _note(reporter: Reporter, table: Grid) -> None:
    if table.note:
        reporter.line(f"({table.note}; --json has all)")
