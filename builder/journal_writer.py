"""The one writer of a shard's journal: SQLite in WAL with synchronous FULL, and one thread that commits what waits.

Many requests share one sync; a future resolves only after the commit that holds its record.
"""

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import zstandard

from builder import wal
from builder.claim_file import ClaimLost, hold
from builder.errors import JournalError
from builder.journal import CHECKS, DAMAGED, FORMAT, GIVEN_UP, SCHEMA, Attempt, row_checksum, unreadable

INSERT_ATTEMPT = (
    "insert into attempts (model, revision, request_key, prompt_id, role, temperature, sample_index, seed, max_tokens,"
    " endpoint, sent_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)

_Work = tuple[Callable[[sqlite3.Connection], Any], "Future[Any]"]


class Journal:
    """The one writer of a shard's journal. Use as a context manager; a second process on the shard is refused.

    When its claim is lost, nothing more is written and nothing more is sent: every future fails with ClaimLost.
    """

    def __init__(self, folder: Path, shard: int = 0) -> None:
        self.shard = shard
        self.path = folder / f"{shard:03d}.sqlite"
        self._claim = hold(self.path.with_suffix(".lock"), "journal", (shard, shard + 1))
        try:
            damaged = wal.damage(self.path)
        except OSError as error:
            self._claim.release()
            raise JournalError(
                f"Journal {self.path} cannot be opened: {error}. Nothing was sent, because a reply that cannot be "
                "recorded would be paid for nothing. Free space or mend the disk, then rerun."
            ) from error
        if damaged is not None:
            self._claim.release()
            raise JournalError(unreadable(self.path, damaged))
        self._waiting: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._failure: JournalError | None = None
        # On 2.8 MB of logprobs level 1 is smaller than 3 and 1.6 times as fast. The checksum names a body that changed.
        self._compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._write, args=(ready,), name="journal", daemon=True)
        self._thread.start()
        try:
            ready.result()
        except sqlite3.Error as error:
            self._claim.release()
            raise JournalError(unreadable(self.path, error)) from error

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is None:
            self._claim.check()

    def close(self) -> None:
        """Commit what is waiting, close the file, give the shard back."""
        self._waiting.put(None)
        self._thread.join()
        self._claim.release()

    def begin(self, attempt: Attempt) -> "Future[int]":
        """Record that a request is about to be sent; its id once that is on disk.

        Cancelling the future before then leaves no record: nothing was sent.
        """

        def insert(connection: sqlite3.Connection) -> int:
            cursor = connection.execute(INSERT_ATTEMPT, attempt_values(attempt))
            if attempt.prefix_response_id is not None:
                connection.execute(
                    "insert or ignore into prefixes (request_key, response_id, prefix) values (?, ?, ?)",
                    (attempt.request_key, attempt.prefix_response_id, attempt.prefix or ""),
                )
            return int(cursor.lastrowid or 0)

        return self._submit(insert)

    def store(self, attempt_id: int, body: bytes, latency_s: float) -> "Future[None]":
        """Record a raw body, before anything parses it."""
        received = time.time()

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute(
                "insert into replies (attempt_id, received_at, latency_s, body) values (?, ?, ?, ?)",
                (attempt_id, received, latency_s, self._compressor.compress(body)),
            )

        return self._submit(insert)

    def conclude(self, attempt_id: int, outcome: str, detail: str | None = None) -> "Future[None]":
        """Record what an attempt came to: for a reply, `detail` is its finish_reason; else the error."""
        if detail is not None:
            detail = detail.encode("utf-8", "replace").decode()  # SQLite takes no lone surrogate

        def update(connection: sqlite3.Connection) -> None:
            connection.execute(
                "update attempts set outcome = ?, detail = ? where attempt_id = ?", (outcome, detail, attempt_id)
            )

        return self._submit(update)

    def seal(self, parts: Sequence[tuple[str | None, str | None, int]]) -> "Future[None]":
        """Record in which parts replies stand: (part of responses, part of logprobs, attempt id). Null: in none."""

        def update(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "update attempts set responses_part = ?, logprobs_part = ? where attempt_id = ?", parts
            )

        return self._submit(update)

    def prune(self) -> "Future[int]":
        """Drop the raw bodies of all replies that `seal` recorded, in one transaction; how many that were.

        SQLite uses the space again for later bodies; the file does not shrink.
        """

        def delete(connection: sqlite3.Connection) -> int:
            return connection.execute(
                "delete from replies where attempt_id in (select r.attempt_id from replies r"
                " cross join attempts a using (attempt_id) where a.responses_part is not null)"
            ).rowcount

        return self._submit(delete)

    def give_up(self, attempt_ids: Sequence[int]) -> "Future[None]":
        """Record that sealed replies are gone and may be asked, and paid, again."""

        def update(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "update attempts set outcome = ? where attempt_id = ?", [(GIVEN_UP, each) for each in attempt_ids]
            )

        return self._submit(update)

    def write(self, operation: Callable[[sqlite3.Connection], Any]) -> "Future[Any]":
        """Run `operation` within the next commit: for records beside those of single requests."""
        return self._submit(operation)

    def _submit(self, operation: Callable[[sqlite3.Connection], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        if self._failure is None and self._claim.lost is not None:
            self._failure = ClaimLost(self._claim.lost)
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

    def _commit(self, connection: sqlite3.Connection, waiting: list[_Work]) -> None:
        """All of `waiting` in one transaction; futures resolve after it. A failure fails everything after it too."""
        work = [(operation, future) for operation, future in waiting if future.set_running_or_notify_cancel()]
        results: list[Any] = []
        if self._failure is None:
            try:
                connection.execute("begin immediate")
                results = [operation(connection) for operation, _ in work]
                connection.execute("commit")
            except Exception as error:  # whatever it is: this thread must not die with futures that wait for it
                with suppress(sqlite3.Error):
                    connection.rollback()
                self._failure = JournalError(
                    f"Writing the journal {self.path} failed: {error}. No further request is sent, because a reply "
                    "that cannot be recorded would be paid for nothing. Free space or mend the disk, then rerun."
                )
        for index, (_, future) in enumerate(work):
            if self._failure is not None:
                future.set_exception(self._failure)
            else:
                future.set_result(results[index])


def attempt_values(attempt: Attempt) -> tuple[Any, ...]:
    """Values of INSERT_ATTEMPT for an attempt that is about to be sent."""
    return (
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
    )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    try:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.execute("pragma secure_delete = off")  # some builds write zeros over what is pruned
        connection.execute("pragma journal_size_limit = 67108864")  # bytes of -wal that stay after a large commit
        connection.create_function("row_checksum", -1, row_checksum, deterministic=True)
        connection.executescript(f"begin immediate; {SCHEMA} commit;")  # at once: readers see all tables or none
        (found,) = connection.execute("select value from meta where name = 'format'").fetchone()
        if found != str(FORMAT):
            raise sqlite3.DatabaseError(f"it has format {found}, this version of tempered writes {FORMAT}")
        connection.executescript(CHECKS)
        if (damaged := connection.execute(DAMAGED).fetchone()) is not None:
            raise sqlite3.DatabaseError(f"the record of attempt {damaged[0]} is not what was written")
    except sqlite3.Error:
        connection.close()
        raise
    return connection
