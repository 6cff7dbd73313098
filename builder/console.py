"""What a person or a program sees: tables and lines on stdout, progress and warnings on stderr, or one JSON object."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table

from builder.live import duration

_EVERY_S: Final = 30.0
"""Without a terminal, progress is one plain line this often."""
Progress = Callable[[str, int, int | None], None]
"""Gets the name of a step, what is done of it, and how much there is where that is known."""


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
        """A bar on a terminal, a plain line every 30 s elsewhere; nothing when quiet, nor for a program that reads
        JSON."""
        if self.quiet or (self.as_json and not self.err.is_terminal):
            yield Meter()
        elif self.err.is_terminal:
            # where it is narrow, the note goes on below; rich would rather cut how far the job is
            whole = Column(no_wrap=True)
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=10, table_column=whole),
                TextColumn("{task.fields[far]}", table_column=whole),
                TimeElapsedColumn(table_column=whole),
                TextColumn("{task.fields[note]}", table_column=Column(overflow="fold"), markup=False),
            )
            with Bars(*columns, console=self.err, transient=True) as bars:
                yield _Bar(bars, what, total)
        else:
            lines = _Lines(self.err, what, total)
            try:
                yield lines
            finally:
                lines.end()


class Meter:
    """Progress of one job; this one shows nothing."""

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Say how far the job is; without a `note` of its own the meter adds how fast and until when."""

    def step(self, what: str, done: int, total: int | None = None) -> None:
        """The same for a job of several steps: `what` goes on now, and its pace is its own."""


@dataclass(frozen=True)
class _Now:
    """What goes on since `began`, when `first` was done, and how far it is."""

    what: str
    total: int | None
    began: float
    first: int = 0
    done: int = 0
    note: str = ""

    @property
    def far(self) -> tuple[str, ...]:
        """What is done, and of how many; nothing of a job that counts nothing."""
        if self.total is None:
            return (f"{self.done:,}",) if self.done else ()
        return f"{self.done:,}", f"{self.total:,}"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def pace(self) -> str:
        left = None if self.total is None else self.total - self.first
        return self.note or pace(self.done - self.first, left, self.seconds)


class _Paced(Meter):
    def __init__(self, what: str, total: int | None) -> None:
        self._now = _Now(what, total, time.monotonic())

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        self._now = replace(self._now, done=done, total=self._now.total if total is None else total, note=note)
        self._show(is_new=False)

    def step(self, what: str, done: int, total: int | None = None) -> None:
        if what == self._now.what:
            self.update(done, total)
            return
        self._now = _Now(what, total, time.monotonic(), done, done)
        self._show(is_new=True)

    def _show(self, *, is_new: bool) -> None:
        raise NotImplementedError


class _Bar(_Paced):
    def __init__(self, bars: Bars, what: str, total: int | None) -> None:
        super().__init__(what, total)
        self._bars = bars
        self._task = bars.add_task(what, total=total, far="", note="")

    def _show(self, *, is_new: bool) -> None:
        """A step is drawn at once, for what it does may keep this process busy; all else when rich next draws."""
        now = self._now
        fields: dict[str, Any] = {"far": "/".join(now.far), "note": now.pace}
        self._bars.update(
            self._task, description=now.what, completed=now.done, total=now.total, refresh=is_new, **fields
        )


class _Lines(_Paced):
    """Lines when it is told how far the job is; a thread says them while nothing is told, as of a long statement."""

    def __init__(self, console: Console, what: str, total: int | None) -> None:
        super().__init__(what, total)
        self._console = console
        self._shown = time.monotonic()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._remind, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """No line comes after this."""
        self._ended.set()
        self._thread.join()

    def _remind(self) -> None:
        with suppress(OSError):  # where nothing can be written, the job's own next line says so
            while not self._ended.wait(_EVERY_S / 10):
                self._show(is_new=False)

    def _show(self, *, is_new: bool) -> None:
        with self._lock:
            if time.monotonic() - self._shown >= _EVERY_S:
                self._shown = time.monotonic()
                now = self._now
                since = f"{duration(now.seconds)} so far" if now.seconds >= 1 else ""
                said = ", ".join(filter(None, [" of ".join(now.far), now.pace or since]))
                self._console.print(f"{now.what}{said and f': {said}'}", markup=False)


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
