"""What the journal knows of offline batches: each with its state and its attempts, written before money is spent.

Order of a batch: recorded with all of its attempts → file uploaded → created → open, until its results are taken.
"""

import sqlite3
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from builder import journal as journals
from builder.batch_config import price_factor_of
from builder.identity import response_id
from builder.journal import FAILED, REPLY, Attempt, reading_journal
from builder.journal_writer import INSERT_ATTEMPT, Journal, attempt_values

RECORDED, UPLOADED, OPEN, ENDED, LOST = "recorded", "uploaded", "open", "ended", "lost"
"""States: nothing sent that costs; the file is there and the batch may be; the batch is, and its id is known; results
taken; it cannot be found any more, so that its requests stay `maybe_billed` and the next call asks them again."""
_UNSETTLED: Final = (RECORDED, UPLOADED, OPEN)
_COLUMNS: Final = (
    "reference, endpoint, model, revision, token_ids, requests, prompt_tokens, completion_tokens, recorded_at, state,"
    " file_id, batch_id, status"
)
_WAITING: Final = (
    " outcome is null and attempt_id in (select attempt_id from batch_attempts where reference = ?)"
    " and attempt_id not in (select attempt_id from replies)"
)


@dataclass(frozen=True)
class Sent:
    """One batch. `prompt_tokens` and `completion_tokens` are what it may take at its dearest.

    `endpoint` is `batch_config.batch_route`; `token_ids` whether it asks for them; `status` what was last heard of it.
    """

    reference: str
    endpoint: str
    model: str
    revision: str | None
    token_ids: bool
    requests: int
    prompt_tokens: int
    completion_tokens: int
    recorded_at: float
    state: str = RECORDED
    file_id: str | None = None
    batch_id: str | None = None
    status: str | None = None

    @property
    def url(self) -> str:
        """The endpoint's base address."""
        return self.endpoint.rpartition("/batches?")[0]


def unsettled(path: Path) -> list[Sent]:
    """Batches of one journal whose results are not taken, in order of recording."""
    return [
        Sent(*row)
        for row in _rows(
            path, f"select {_COLUMNS} from batches where state in (?, ?, ?) order by recorded_at, reference", _UNSETTLED
        )
    ]


def under_way(folder: Path) -> set[str]:
    """Keys of the requests in batches whose results are not taken, over all shards."""
    query = (
        "select request_key from attempts join batch_attempts using (attempt_id) join batches using (reference)"
        " where state in (?, ?, ?) and outcome is null and attempt_id not in (select attempt_id from replies)"
    )
    return {key for path in journals.journals(folder) for (key,) in _rows(path, query, _UNSETTLED)}


def waiting(path: Path, reference: str) -> dict[str, tuple[int, Attempt]]:
    """Request key → attempt id and attempt, in the file's order, of those that have no result yet."""
    query = (
        "select attempt_id, model, revision, request_key, prompt_id, role, temperature, sample_index, seed, max_tokens,"
        f" endpoint from attempts where {_WAITING} order by attempt_id"
    )
    return {fields[2]: (number, Attempt(*fields)) for number, *fields in _rows(path, query, (reference,))}


def lines(path: Path, reference: str) -> list[str]:
    """Request keys of a batch in the order of its input file."""
    query = (
        "select request_key from attempts join batch_attempts using (attempt_id) where reference = ?"
        " order by attempt_id"
    )
    return [key for (key,) in _rows(path, query, (reference,))]


def proved(folder: Path, endpoint: str, model: str, revision: str | None, *, logprobs: bool) -> bool | None:
    """Whether batches that brought replies (with logprobs) asked for token ids; None where none ever did."""
    query = (
        "select recorded_at, token_ids from batches where endpoint = ? and model = ? and revision is ? and replies > 0"
        f" {'and with_logprobs > 0' if logprobs else ''} order by recorded_at desc limit 1"
    )
    rows = [row for path in journals.journals(folder) for row in _rows(path, query, (endpoint, model, revision))]
    return bool(max(rows)[1]) if rows else None


def factors(folder: Path) -> dict[str, float]:
    """Response id → price factor of the replies that came through batches, over all shards."""
    query = (
        "select request_key, detail, max_tokens, endpoint from attempts join batch_attempts using (attempt_id)"
        " where outcome = ?"
    )
    return {
        response_id(key, finish_reason=finish, max_tokens=limit): price_factor_of(endpoint)
        for path in journals.journals(folder)
        for key, finish, limit, endpoint in _rows(path, query, (REPLY,))
    }


def open_batches(folder: Path) -> list[tuple[str, str, str, int, str]]:
    """Journal, id (our reference before there is one), state, requests and endpoint of the batches under way."""
    return [
        (path.stem, sent.batch_id or sent.reference, sent.status or sent.state, sent.requests, sent.url)
        for path in journals.journals(folder)
        for sent in unsettled(path)
    ]


def record(journal: Journal, sent: Sent, attempts: Sequence[Attempt]) -> "Future[None]":
    """Record a batch that is about to be sent, and all of its attempts, in one commit."""

    def insert(connection: sqlite3.Connection) -> None:
        values = [getattr(sent, name) for name in _COLUMNS.split(", ")]
        connection.execute(f"insert into batches ({_COLUMNS}) values ({', '.join('?' * len(values))})", values)
        for attempt in attempts:
            number = connection.execute(INSERT_ATTEMPT, attempt_values(attempt)).lastrowid
            connection.execute("insert into batch_attempts values (?, ?)", (number, sent.reference))

    return journal.write(insert)


def note(journal: Journal, reference: str, **columns: Any) -> "Future[None]":
    """Record something new of a batch: state, file_id, batch_id, status."""
    names = ", ".join(f"{name} = ?" for name in columns)

    def update(connection: sqlite3.Connection) -> None:
        connection.execute(f"update batches set {names} where reference = ?", (*columns.values(), reference))

    return journal.write(update)


def end(journal: Journal, reference: str, why: str, *, with_logprobs: int = 0) -> "Future[None]":
    """Record that nothing more comes of a batch; its requests without a result were not billed, and `why`."""

    def update(connection: sqlite3.Connection) -> None:
        connection.execute(
            f"update attempts set outcome = ?, detail = ? where {_WAITING}", (FAILED, _sound(why), reference)
        )
        connection.execute(
            "update batches set state = ?, with_logprobs = ?, replies = (select count(*) from attempts"
            " join batch_attempts as b using (attempt_id) where b.reference = batches.reference and outcome = ?)"
            " where reference = ?",
            (ENDED, with_logprobs, REPLY, reference),
        )

    return journal.write(update)


def new(reference: str, endpoint: str, **fields: Any) -> Sent:
    """A batch that is to be recorded now."""
    return Sent(reference=reference, endpoint=endpoint, recorded_at=time.time(), **fields)


def _sound(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # SQLite takes no lone surrogate


def _rows(path: Path, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows of a query on one journal; none where another host writes it, or an earlier version did, without batches."""
    with reading_journal(path) as connection:
        if (
            connection is None
            or not connection.execute("select 1 from sqlite_master where name = 'batch_attempts'").fetchone()
        ):
            return []
        return connection.execute(query, tuple(values)).fetchall()
