"""Processes that hold claims and journals, on this host or on one that shares its disk."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from builder import claim, claim_file
from builder.claim_record import Record, this_process

ELSEWHERE = "node-7"

CHILD = """
import fcntl, sys, time
from pathlib import Path
from builder import claim, claim_file, claim_record
from builder.journal import REPLY, Attempt
from builder.journal_writer import Journal
from builder.store import Run

run, host, what = Run(Path(sys.argv[1])), sys.argv[2], sys.argv[3]
claim_file.BEAT_S = 0.05
if host:
    claim_record.host = lambda: host
def held():
    print("held", flush=True)
    sys.stdin.read()
if what == "journal":
    with Journal(run.journal_dir, 0) as book:
        sent = book.begin(Attempt("m", None, "ab" * 32, "p", "teacher", 1.0, 0, 7, 64, "u")).result()
        book.store(sent, b"{}", 0.1).result()
        book.conclude(sent, REPLY, "stop").result()
        held()
else:
    index, count, settings, lies = int(sys.argv[4]), int(sys.argv[5]), sys.argv[6], sys.argv[7]
    with claim.claimed(run, what, (index, count), settings=settings) as mine:
        if lies:  # as on a disk whose locks reach nobody else
            fcntl.flock(mine._descriptor, fcntl.LOCK_UN)
        held()
"""


@contextmanager
def child(root: Path, host: str, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds what `words` say until it is told to end; `host` is empty for this one."""
    command = [sys.executable, "-c", CHILD, str(root), host, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def holder(
    root: Path, *, host: str = "", what: str = "generate", shard: tuple[int, int] = (0, 1), lies: bool = False
) -> "contextmanager[subprocess.Popen[str]]":
    """A process that holds this shard of a step."""
    return child(root, host, what, str(shard[0]), str(shard[1]), "", "yes" if lies else "")


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats and looks at them in hundredths of a second."""
    monkeypatch.setattr(claim_file, "BEAT_S", 0.05)
    monkeypatch.setattr(claim_file, "WATCH_S", 1.0)
    for module in (claim_file, claim):
        monkeypatch.setattr(module, "POLL_S", 0.02)


def foreign(what: str = "generate", *, host: str = ELSEWHERE) -> Record:
    """A record of another host."""
    mine = this_process(what, (0, 1))
    return Record(host, "another boot", mine.pid, mine.started, "another nonce", what, 0, 1)
