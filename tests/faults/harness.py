"""What every fault test needs: a teacher that counts, a run to spoil, and the account that must come out right."""

import json
import os
import queue
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from builder.config import Recipe
from builder.rowset import rowset_hash
from builder.store import Run

HERE = Path(__file__).parent
WORKERS = 2
"""Runs that go on at a time."""
LONGEST_S = 240.0
"""A run that takes longer hangs."""


@dataclass
class Line:
    """One line of the table: what was done to how many runs, and what came of it."""

    fault: str
    rounds: int = 0
    acknowledged: int = 0
    lost: int = 0
    paid_twice: int = 0
    maybe_billed: int = 0
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    def more(self, rounds: int = 1) -> None:
        self.rounds += rounds
        self.seconds = time.monotonic() - self.started

    def add(self, account: "Account", rounds: int) -> None:
        self.more(rounds)
        self.acknowledged += len(account.acknowledged)
        self.lost += len(account.lost)
        self.paid_twice += account.paid_twice
        self.maybe_billed += account.maybe_billed


LINES: list[Line] = []


def line(fault: str) -> Line:
    LINES.append(Line(fault))
    return LINES[-1]


@dataclass
class Teacher:
    """The server's process, see teacher.py."""

    folder: Path
    port: int
    sites: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def name(self) -> str:
        with self.lock:
            self.sites += 1
            return f"site-{self.sites:05d}"


@contextmanager
def teacher(folder: Path) -> Iterator[Teacher]:
    with subprocess.Popen(
        [sys.executable, str(HERE / "teacher.py"), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield Teacher(folder, int(process.stdout.readline()))
        process.kill()


class Spawner:
    """Runs `builder` in children of a process that has imported it already, see child.py. One run at a time."""

    def __init__(self, *before: str) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, str(HERE / "child.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "2"},
        )

    def start(self, order: dict[str, Any]) -> "Spawned":
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Spawned(int(json.loads(self.process.stdout.readline())["pid"]), self.process.stdout)

    def run(self, order: dict[str, Any]) -> int:
        """Exit code; minus the signal where one killed it."""
        return finish(self.start(order))

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Spawned:
    """A child of the spawner, as far as Popen would offer it."""

    def __init__(self, pid: int, said: IO[str]) -> None:
        self.pid = pid
        self.code: int | None = None
        self.peak_mb = 0
        self.thread = threading.Thread(target=self._wait, args=(said,))
        self.thread.start()

    def _wait(self, said: IO[str]) -> None:
        answer = json.loads(said.readline() or '{"status": -9, "peak_mb": 0}')
        self.peak_mb, self.code = answer["peak_mb"], answer["status"]

    def poll(self) -> int | None:
        return self.code

    def wait(self, timeout: float) -> int:
        self.thread.join(timeout)
        if self.code is None:
            raise subprocess.TimeoutExpired("builder", timeout)
        return self.code


Child = Spawned | subprocess.Popen[bytes]


@dataclass
class Journal:
    """A journal's rows at one moment: requests are named by their seed, which no two of a run share."""

    attempts: Counter[int]
    acknowledged: set[int]
    unknown: Counter[int]
    failed: Counter[int]
    """Attempts by request: without reply or outcome (in flight when the process died), and broken off without one."""


@dataclass
class Account:
    """Every claim about money, checked after each round; what it finds wrong it also counts, for the table."""

    site: "Site"
    acknowledged: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    paid_twice: int = 0
    maybe_billed: int = 0
    read: int = 0

    def reckon(self, in_flight: int) -> Journal:
        """After a round, however it ended. `in_flight`: so many may be unknown after it that were not before."""
        self.site.quiet()
        events = self.site.events()
        new, self.read = events[self.read :], len(events)
        again = [seed for what, seed in new if what == "paid" and seed in self.acknowledged]
        self.paid_twice += len(again)
        found = self.site.journal()
        self.lost |= self.acknowledged - found.acknowledged
        assert not any(what == "bug" for what, _ in events), self.site.log.read_text()
        unknown = sum(found.unknown.values())
        newly, self.maybe_billed = unknown - self.maybe_billed, unknown
        paid = Counter(seed for what, seed in events if what == "paid")
        assert not again, f"{len(again)} stored replies were paid again"
        assert not self.lost, f"{len(self.lost)} acknowledged replies are gone from the journal"
        assert found.acknowledged <= set(paid), "the journal holds replies that nobody gave"
        asked = Counter(seed for what, seed in events if what == "ask")
        assert asked <= found.attempts, "requests went out that the journal does not know"
        assert newly <= in_flight, f"{newly} requests are of unknown fate where at most {in_flight} were in flight"
        for seed, number in paid.items():
            bound = found.unknown[seed] + found.failed[seed] + (seed in found.acknowledged)
            assert number <= bound, f"request {seed} was paid {number} times, the journal knows of {bound}"
        self.acknowledged |= found.acknowledged
        return found

    def close(self, calm: dict[str, str]) -> None:
        """After the run that got through: everything is in the tables, once, and equal to an undisturbed run's."""
        found = self.reckon(0)
        seeds = self.site.run.read("responses")["seed"].to_list()
        self.lost |= self.acknowledged - set(seeds)
        assert not self.lost, f"{len(self.lost)} acknowledged replies are in no table"
        assert len(seeds) == len(set(seeds)) == self.site.wanted
        paid = sum(what == "paid" for what, _ in self.site.events())
        assert paid <= self.site.wanted + sum((found.unknown + found.failed).values())
        assert self.site.content() == calm


class Site:
    """One run with its recipe, its address at the teacher and what the teacher says of it."""

    def __init__(
        self,
        server: Teacher,
        folder: Path,
        *,
        questions: int = 5,
        in_flight: int = 4,
        run: Path | None = None,
        **changes: Any,
    ) -> None:
        self.name, self.server, self.in_flight = server.name(), server, in_flight
        self.root = folder / self.name
        self.root.mkdir(parents=True)
        self.run = Run(run or self.root / "run")
        self.wanted = questions * 4
        rows = [{"prompt": f"What is {n} + {n}?", "gold": str(n + n)} for n in range(questions)]
        (self.root / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.recipe = self.root / "toy.yaml"
        given = {
            "name": "toy",
            "prompts": [{"source": str(self.root / "q.jsonl"), "gold": "gold", "gold_type": "number"}],
            "teacher": {"model": "toy", "revision": "r1", "prices": {"input": 1.0, "output": 10.0}},
            "generation": {"samples": 2, "max_tokens": 64},
            "selection": {"selector": "random", "rules": []},
            **changes,
        }
        Recipe.model_validate(given)
        self.recipe.write_text(yaml.safe_dump(given))
        self.account = Account(self)

    @property
    def log(self) -> Path:
        return self.server.folder / f"{self.name}.log"

    @property
    def out(self) -> str:
        return (self.root / "out").read_text(errors="replace")

    def argv(self, mode: str = "calm", command: str = "generate", *more: str) -> list[str]:
        urls = mode.split(",")
        endpoints = [
            {"url": f"http://127.0.0.1:{self.server.port}/{self.name}/{each}/v1", "max_in_flight": self.in_flight}
            for each in urls
        ]
        given = yaml.safe_load(self.recipe.read_text())
        given["teacher"]["endpoints"] = endpoints
        self.recipe.write_text(yaml.safe_dump(given))
        return [command, str(self.recipe), "--run", str(self.run.root), *more]

    def order(self, argv: list[str], **fault: Any) -> dict[str, Any]:
        return {
            "argv": argv, "folder": str(self.root), "log": str(self.log), "out": str(self.root / "out"), **fault
        }  # fmt: skip

    def start(self, argv: list[str]) -> "subprocess.Popen[bytes]":
        """The real command line in a process group of its own."""
        with (self.root / "out").open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "builder.cli", *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def events(self) -> list[tuple[str, int]]:
        """What the teacher wrote, and `hit` where a fault struck, in order."""
        if not self.log.exists():
            return []
        lines = [each.split() for each in self.log.read_text().splitlines()]
        return [(words[0], int(words[1])) for words in lines]

    def count(self, what: str) -> int:
        return sum(kind == what for kind, _ in self.events())

    def quiet(self) -> None:
        """Until the teacher has read what a dead client left in the sockets."""
        before = -1
        while before != (before := self.log.stat().st_size if self.log.exists() else 0):
            time.sleep(0.03)

    def journal(self) -> Journal:
        """From a copy: reading must not mend what the next run has to find."""
        found = Journal(Counter(), set(), Counter(), Counter())
        with tempfile.TemporaryDirectory() as folder:
            for path in sorted(self.run.journal_dir.glob("*.sqlite")):
                for name in (path, path.with_name(path.name + "-wal")):
                    if name.exists():
                        shutil.copy(name, folder)
                plain = sqlite3.connect(Path(folder) / path.name)
                if plain.execute("select 1 from sqlite_master where name = 'replies'").fetchone():
                    for seed, outcome, stored in plain.execute(
                        "select seed, outcome, r.attempt_id from attempts a left join replies r using (attempt_id)"
                    ):
                        found.attempts[seed] += 1
                        if outcome == "reply" or (outcome is None and stored is not None):
                            found.acknowledged.add(seed)
                        elif outcome is None:
                            found.unknown[seed] += 1
                        elif outcome == "failed":
                            found.failed[seed] += 1
                plain.close()
        return found

    def content(self) -> dict[str, str]:
        return {
            name: rowset_hash(self.run.read(name), self.run.content_columns(name)) for name in ("responses", "logprobs")
        }


def kill(child: Child) -> int:
    """The whole group, at once; exit code."""
    for target in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            target(child.pid, signal.SIGKILL)
    return child.wait(LONGEST_S)


def finish(child: Child) -> int:
    """Exit code of a run that must end by itself."""
    try:
        return child.wait(LONGEST_S)
    except subprocess.TimeoutExpired:
        kill(child)
        raise


def wait_for(true: Callable[[], bool], *children: Child) -> None:
    """Until it is so, or a child has ended."""
    limit = time.monotonic() + LONGEST_S
    while not true() and all(child.poll() is None for child in children):
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.002)


def in_parallel(jobs: list[Callable[[], None]], workers: int = 2) -> None:
    """All jobs, on so many threads; the first error is raised when all have ended."""
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                job()
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
