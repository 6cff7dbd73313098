"""What a person or a program sees: tables and lines on stdout, progress and warnings on stderr, or one JSON object."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from builder.live import duration

_EVERY_S: Final = 30.0
"""Without a terminal, progress is one plain line this often."""


class Reporter:
    """Output of one command. With `as_json`, stdout carries one JSON object and nothing else."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.out = Console(highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())
        self.err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=not sys.stderr.isatty())
        self._result: dict[str, Any] = {}

    def line(self, text: str) -> None:
        """One line of the result."""
        if not (self.as_json or self.quiet):
            self.out.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Something to know although the command goes on; shown even when quiet."""
        self.err.print(f"warning: {text}", style="yellow", markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str = "") -> None:
        """A small table; numbers to the right."""
        if self.as_json or self.quiet:
            return
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, caption=caption)
        for index, name in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[index], int | float | None) for row in rows)
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(shown(value) for value in row))
        self.out.print(table)

    def result(self, values: Mapping[str, Any]) -> None:
        """Facts for `--json`."""
        self._result.update(values)

    def finish(self) -> None:
        """Print the JSON object, if that was asked."""
        if self.as_json:
            sys.stdout.write(json.dumps(self._result, ensure_ascii=False, default=str) + "\n")

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator["Meter"]:
        """A bar on a terminal, a plain line every 30 s elsewhere, nothing when quiet."""
        if self.quiet:
            yield Meter()
        elif self.err.is_terminal:
            # where it is narrow, the note goes on below; rich would rather cut how far the job is
            whole = Column(no_wrap=True)
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=10, table_column=whole),
                MofNCompleteColumn(table_column=whole),
                TimeElapsedColumn(table_column=whole),
                TextColumn("{task.fields[note]}", table_column=Column(overflow="fold")),
            )
            with Progress(*columns, console=self.err, transient=True) as bars:
                yield _Bar(bars, what, total)
        else:
            yield _Lines(self.err, what, total)


class Meter:
    """Progress of one job; this one shows nothing."""

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Say how far the job is; without a `note` of its own the meter adds how fast and until when."""

    def step(self, what: str, done: int, total: int | None = None) -> None:
        """The same for a job of several steps: `what` goes on now, and its pace is its own."""


class _Paced(Meter):
    def __init__(self, what: str, total: int | None) -> None:
        self._what, self._total, self._began = what, total, time.monotonic()

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        self._total = self._total if total is None else total
        self._show(done, self._total, note or pace(done, self._total, time.monotonic() - self._began))

    def step(self, what: str, done: int, total: int | None = None) -> None:
        if what != self._what:
            self._what, self._total, self._began = what, None, time.monotonic()
        self.update(done, total)

    def _show(self, done: int, total: int | None, note: str) -> None:
        raise NotImplementedError


class _Bar(_Paced):
    def __init__(self, bars: Progress, what: str, total: int | None) -> None:
        super().__init__(what, total)
        self._bars = bars
        self._task = bars.add_task(what, total=total, note="")

    def _show(self, done: int, total: int | None, note: str) -> None:
        self._bars.update(self._task, description=self._what, completed=done, total=total, note=note)


class _Lines(_Paced):
    def __init__(self, console: Console, what: str, total: int | None) -> None:
        super().__init__(what, total)
        self._console = console
        self._shown = time.monotonic()

    def _show(self, done: int, total: int | None, note: str) -> None:
        if time.monotonic() - self._shown >= _EVERY_S:
            self._shown = time.monotonic()
            of = f" of {total:,}" if total is not None else ""
            self._console.print(f"{self._what}: {done:,}{of}{note and f', {note}'}", markup=False)


def pace(done: int, total: int | None, seconds: float) -> str:
    """How fast, and until when where the total is known: 40/s, 4 min left. Nothing before there is a pace."""
    if done <= 0 or seconds < 1:
        return ""
    rate = done / seconds
    left = "" if total is None else f", {duration(max(0, total - done) / rate)} left"
    return f"{shown(rate)}/s{left}"


def shown(value: Any) -> str:
    """A value as a person reads it: thousands separated, three significant decimals, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
