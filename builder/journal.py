"""The journal: what was sent and what came back, on disk before anything relies on it.

Order of a request (design: money spent is recorded before it is spent): attempt committed → call → raw body committed →
acknowledged → parsed. One SQLite file a shard, WAL with synchronous FULL; one writer thread commits whatever is waiting
in one transaction, so that many requests share one sync.
"""

import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Container, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from builder.errors import JournalError
from builder.identity import response_id

_SCHEMA = """
create table if not exists meta (name text primary key, value text not null);
create table if not exists attempts (
    attempt_id integer primary key,
    model text not null,
    revision text,
    request_key text not null,
    prompt_id text not null,
    role text not null,
    temperature real not null,
    sample_index integer not null,
    seed integer,
    max_tokens integer not null,
    endpoint text not null,
    sent_at real not null,
    outcome text,
    detail text
);
create table if not exists replies (
    attempt_id integer primary key references attempts (attempt_id),
    received_at real not null,
    latency_s real not null,
    body blob not null
);
create index if not exists attempts_by_key on attempts (request_key);
"""

REPLY, RETRYABLE, FATAL, FAILED = "reply", "retryable", "fatal", "failed"
"""Outcomes of an attempt: a reply; a body worth another try; one that is not; no body. Null: in flight, or lost."""


@dataclass(frozen=True)
class Attempt:
    """One request as it goes out. `request_key` is its identity, see `identity.request_key`."""

    model: str
    revision: str | None
    request_key: str
    prompt_id: str
    role: str
    temperature: float
    sample_index: int
    seed: int | None
    max_tokens: int
    endpoint: str


@dataclass(frozen=True)
class Stored:
    """One stored body with the attempt it answers. Times in seconds since 1970, UTC."""

    attempt: Attempt
    attempt_id: int
    body: bytes
    received_at: float
    latency_s: float


class Journal:
    """The one writer of a shard's journal. Use as a context manager; a second process on the shard is refused."""

    def __init__(self, folder: Path, shard: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{shard:03d}.sqlite"
        self._lock = _take_lock(self.path.with_suffix(".lock"))
        self._waiting: queue.SimpleQueue[tuple[Callable[[sqlite3.Connection], Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._failure: BaseException | None = None
        self._compressor = zstandard.ZstdCompressor(level=3)
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._write, args=(ready,), name="journal", daemon=True)
        self._thread.start()
        try:
            ready.result()
        except sqlite3.Error as error:
            self._lock.close()
            raise JournalError(_unreadable(self.path, error)) from error

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Commit what is waiting, close the file, give the shard back."""
        self._waiting.put(None)
        self._thread.join()
        self._lock.close()

    def begin(self, attempt: Attempt) -> "Future[int]":
        """Record that a request is about to be sent; its id once that is on disk."""

        def insert(connection: sqlite3.Connection) -> int:
            cursor = connection.execute(
                "insert into attempts (model, revision, request_key, prompt_id, role, temperature, sample_index, seed,"
                " max_tokens, endpoint, sent_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    attempt.model,
                    attempt.revision,
                    attempt.request_key,
                    attempt.prompt_id,
                    attempt.role,
                    attempt.temperature,
                    attempt.sample_index,
                    attempt.seed,
                    attempt.max_tokens,
                    attempt.endpoint,
                    time.time(),
                ),
            )
            return int(cursor.lastrowid or 0)

        return self._submit(insert)

    def store(self, attempt_id: int, body: bytes, latency_s: float) -> "Future[None]":
        """Record a raw body, before anything parses it."""
        compressed = self._compressor.compress(body)
        received = time.time()

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute(
                "insert into replies (attempt_id, received_at, latency_s, body) values (?, ?, ?, ?)",
                (attempt_id, received, latency_s, compressed),
            )

        return self._submit(insert)

    def conclude(self, attempt_id: int, outcome: str, detail: str | None = None) -> "Future[None]":
        """Record what an attempt came to: for a reply, `detail` is its finish_reason; else the error."""

        def update(connection: sqlite3.Connection) -> None:
            connection.execute(
                "update attempts set outcome = ?, detail = ? where attempt_id = ?", (outcome, detail, attempt_id)
            )

        return self._submit(update)

    def _submit(self, operation: Callable[[sqlite3.Connection], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        if self._failure is not None:
            future.set_exception(self._failure)
        else:
            self._waiting.put((operation, future))
        return future

    def _write(self, ready: "Future[None]") -> None:
        try:
            connection = _connect(self.path)
        except sqlite3.Error as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        with closing(connection):
            open_for_more = True
            while open_for_more:
                batch = [self._waiting.get()]
                while not self._waiting.empty():
                    batch.append(self._waiting.get())
                work = [item for item in batch if item is not None]
                open_for_more = len(work) == len(batch)
                if work:
                    self._commit(connection, work)

    def _commit(
        self, connection: sqlite3.Connection, work: list[tuple[Callable[[sqlite3.Connection], Any], "Future[Any]"]]
    ) -> None:
        """All of `work` in one transaction; futures resolve after the commit. A failure fails everything after it."""
        try:
            if self._failure is not None:
                raise self._failure
            connection.execute("begin immediate")
            results = [operation(connection) for operation, _ in work]
            connection.execute("commit")
        except (sqlite3.Error, JournalError) as error:
            if connection.in_transaction:
                connection.execute("rollback")
            self._failure = JournalError(
                f"Writing the journal {self.path} failed: {error}. No further request is sent, because a reply that "
                "cannot be recorded would be paid for nothing. Free space or mend the disk, then rerun."
            )
            for _, future in work:
                future.set_exception(self._failure)
        else:
            for (_, future), result in zip(work, results, strict=True):
                future.set_result(result)


def stored_replies(folder: Path) -> dict[bytes, int]:
    """What is paid for, over all shards: request key (32 bytes) → the limit that cut the reply, −1 for a whole one.

    Where a request was asked twice, a whole reply wins over a cut one, and a larger limit over a smaller.
    """
    found: dict[bytes, int] = {}
    for path in journals(folder):
        with closing(_reader(path)) as connection, _naming(path):
            for key, finish, limit in connection.execute(
                "select request_key, detail, max_tokens from attempts where outcome = ?", (REPLY,)
            ):
                digest = bytes.fromhex(key)
                cut = limit if finish == "length" else -1
                known = found.get(digest)
                if known is None or (known != -1 and (cut == -1 or cut > known)):
                    found[digest] = cut
    return found


def bodies(path: Path, *, outcome: str | None, skip: Container[str] = ()) -> Iterator[Stored]:
    """Stored bodies of one journal with that outcome (None: not parsed yet), less replies whose id is in `skip`."""
    decompressor = zstandard.ZstdDecompressor()
    with closing(_reader(path)) as connection, _naming(path):
        rows = connection.execute(
            "select a.attempt_id, received_at, latency_s, detail, model, revision, request_key, prompt_id, role,"
            " temperature, sample_index, seed, max_tokens, endpoint"
            " from attempts a join replies r using (attempt_id) where a.outcome is ? order by a.attempt_id",
            (outcome,),
        )
        for attempt_id, received, latency, finish, *fields in rows:
            attempt = Attempt(*fields)
            if response_id(attempt.request_key, finish_reason=finish, max_tokens=attempt.max_tokens) in skip:
                continue
            (body,) = connection.execute("select body from replies where attempt_id = ?", (attempt_id,)).fetchone()
            yield Stored(attempt, attempt_id, decompressor.decompress(body), received, latency)


def counts(folder: Path) -> dict[str, int]:
    """Attempts by outcome over all shards; `maybe_billed` are attempts that were sent and never answered here."""
    total: dict[str, int] = {}
    for path in journals(folder):
        with closing(_reader(path)) as connection, _naming(path):
            for outcome, number in connection.execute(
                "select coalesce(outcome, case when r.attempt_id is null then 'maybe_billed' else 'unparsed' end),"
                " count(*) from attempts a left join replies r using (attempt_id) group by 1"
            ):
                total[outcome] = total.get(outcome, 0) + number
    return total


def errors_by_kind(folder: Path) -> dict[str, int]:
    """Details of attempts that brought no reply, with their numbers."""
    total: dict[str, int] = {}
    for path in journals(folder):
        with closing(_reader(path)) as connection, _naming(path):
            for detail, number in connection.execute(
                "select coalesce(detail, outcome), count(*) from attempts where outcome in (?, ?, ?) group by 1",
                (RETRYABLE, FATAL, FAILED),
            ):
                total[detail] = total.get(detail, 0) + number
    return total


def journals(folder: Path) -> list[Path]:
    """Journal files of a run, all shards."""
    return sorted(folder.glob("*.sqlite"))


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    connection.executescript(_SCHEMA)
    return connection


def _reader(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)


class _naming:  # noqa: N801 - reads as a phrase: with closing(...), _naming(path)
    """Turn SQLite's errors into a JournalError that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error | zstandard.ZstdError):
            raise JournalError(_unreadable(self.path, error)) from error


def _unreadable(path: Path, error: BaseException) -> str:
    return (
        f"Journal {path} cannot be used: {error}. It holds paid replies, so nothing goes on without it. "
        "Copy the file away, try `sqlite3 FILE .recover`, or restore a backup."
    )


def _take_lock(path: Path) -> IO[str]:
    """An exclusive lock that the system drops with the process, however it ends."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise JournalError(
            f"Shard {path.stem} of this run is being written by process {holder}. Two writers could pay twice for one "
            "request. Wait for it, stop it, or use another shard."
        ) from None
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file
