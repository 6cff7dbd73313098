"""The journal: what was sent and what came back, on disk before anything relies on it. Here: its form and readers.

Order of a request (design: money spent is recorded before it is spent): attempt committed → call → raw body committed →
acknowledged → parsed → sealed in the tables → body pruned. One SQLite file a shard; `builder.journal_writer` writes it.
"""

import sqlite3
import zlib
from collections.abc import Container, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from builder.claim_file import reading
from builder.errors import JournalError
from builder.identity import response_id

FORMAT = 3
"""Version of the file's form, kept in `meta`."""

_CHECKED = (
    "attempt_id, model, revision, request_key, prompt_id, role, temperature, sample_index, seed, max_tokens, endpoint,"
    " sent_at, outcome, detail, responses_part, logprobs_part"
)

SCHEMA = f"""
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
    detail text,
    responses_part text,
    logprobs_part text,
    checksum integer
);
create table if not exists replies (
    attempt_id integer primary key references attempts (attempt_id),
    received_at real not null,
    latency_s real not null,
    body blob not null
);
create table if not exists prefixes (
    request_key text primary key,
    response_id text not null,
    prefix text not null
);
create table if not exists batches (
    reference text primary key,
    endpoint text not null,
    model text not null,
    revision text,
    token_ids integer not null,
    requests integer not null,
    prompt_tokens integer not null,
    completion_tokens integer not null,
    recorded_at real not null,
    state text not null,
    file_id text,
    batch_id text,
    status text,
    replies integer,
    with_logprobs integer
);
create table if not exists batch_attempts (
    attempt_id integer primary key references attempts (attempt_id),
    reference text not null references batches (reference)
);
create index if not exists attempts_of_batch on batch_attempts (reference);
insert or ignore into meta (name, value) values ('format', '{FORMAT}');
"""

CHECKS = f"""
create temp trigger attempt_begun after insert on main.attempts begin
    update attempts set checksum = row_checksum({_CHECKED}) where attempt_id = new.attempt_id;
end;
create temp trigger attempt_changed
after update of outcome, detail, responses_part, logprobs_part on main.attempts begin
    update attempts set checksum = row_checksum({_CHECKED}) where attempt_id = new.attempt_id;
end;
"""
"""Triggers of the writer's connection. SQLite notices a page whose form is damaged, but not another number in a row."""

DAMAGED = f"select attempt_id from attempts where checksum <> row_checksum({_CHECKED}) limit 1"
"""A null is not compared: who edits a row by hand sets it."""


def row_checksum(*values: Any) -> int:
    """CRC-32 of an attempt's columns, for SQLite to call."""
    return zlib.crc32(repr(values).encode("utf-8", "surrogatepass"))


REPLY, RETRYABLE, FATAL, FAILED, GIVEN_UP = "reply", "retryable", "fatal", "failed", "given_up"
"""Outcomes of an attempt: a reply; a body worth another try; one that is not; no body; a reply that was sealed, whose
part is gone, and that the user lets be asked again. Null: in flight, or lost."""


@dataclass(frozen=True)
class Attempt:
    """One request as it goes out. `request_key` is its identity, see `identity.request_key`.

    `prefix` is the text that the reply goes on from, the beginning of reply `prefix_response_id`; a rewrite
    names the reply that it rewrites, and has none.
    """

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
    prefix_response_id: str | None = None
    prefix: str | None = None


@dataclass(frozen=True)
class Stored:
    """One stored body with the attempt it answers. Times in seconds since 1970, UTC."""

    attempt: Attempt
    attempt_id: int
    body: bytes
    received_at: float
    latency_s: float


class Sealed(NamedTuple):
    """A reply that stands in the tables, in these part files; `logprobs_part` is null where it has no logprobs."""

    attempt_id: int
    response_id: str
    responses_part: str
    logprobs_part: str | None
    has_body: bool


def stored_replies(folder: Path) -> dict[bytes, int]:
    """What is paid for, over all shards: request key (32 bytes) → the limit that cut the reply, −1 for a whole one.

    Where a request was asked twice, a whole reply wins over a cut one, and a larger limit over a smaller.
    """
    found: dict[bytes, int] = {}
    for path in journals(folder):
        query = "select request_key, detail, max_tokens from attempts where outcome = ?"
        for key, finish, limit in _rows(path, query, (REPLY,)):
            digest = bytes.fromhex(key)
            cut = limit if finish == "length" else -1
            known = found.get(digest)
            if known is None or (known != -1 and (cut == -1 or cut > known)):
                found[digest] = cut
    return found


def answered_prompts(folder: Path) -> set[str]:
    """Ids of the prompts that any stored reply answers, over all shards."""
    query = "select distinct prompt_id from attempts where outcome = ?"
    return {prompt for path in journals(folder) for (prompt,) in _rows(path, query, (REPLY,))}


def bodies(path: Path, *, outcome: str | None, skip: Container[str] = ()) -> Iterator[Stored]:
    """Stored bodies of one journal with that outcome (None: not parsed yet), less replies whose id is in `skip`.

    None of a journal that another host writes now.
    """
    decompressor = zstandard.ZstdDecompressor()
    with reading_journal(path) as connection:
        if not _is_made(connection):
            return
        rows = connection.execute(
            "select a.attempt_id, received_at, latency_s, detail, model, revision, request_key, prompt_id, role,"
            " temperature, sample_index, seed, max_tokens, endpoint, response_id,"
            " case when role <> 'rewrite' then prefix end"  # a rewrite names a reply and goes on from none
            " from attempts a join replies r using (attempt_id) left join prefixes using (request_key)"
            " where a.outcome is ? order by a.attempt_id",
            (outcome,),
        )
        for attempt_id, received, latency, finish, *fields in rows:
            attempt = Attempt(*fields)
            if response_id(attempt.request_key, finish_reason=finish, max_tokens=attempt.max_tokens) in skip:
                continue
            (body,) = connection.execute("select body from replies where attempt_id = ?", (attempt_id,)).fetchone()
            yield Stored(attempt, attempt_id, decompressor.decompress(body), received, latency)


def sealed(path: Path) -> Iterator[Sealed]:
    """Replies of one journal that were sealed and checked: their raw body is pruned, or may be."""
    rows = _rows(
        path,
        "select a.attempt_id, request_key, detail, max_tokens, responses_part, logprobs_part,"
        " r.attempt_id is not null from attempts a left join replies r using (attempt_id)"
        " where outcome = ? and responses_part is not null",
        (REPLY,),
    )
    for attempt_id, key, finish, limit, responses, logprobs, has_body in rows:
        identity = response_id(key, finish_reason=finish, max_tokens=limit)
        yield Sealed(attempt_id, identity, responses, logprobs, bool(has_body))


def prunable(path: Path) -> tuple[int, int]:
    """Raw bodies of one journal that are sealed and still there: how many, and their compressed bytes."""
    ((number, size),) = _rows(
        path,
        "select count(*), coalesce(sum(length(body)), 0) from replies r cross join attempts a using (attempt_id)"
        " where responses_part is not null",
    )
    return int(number), int(size)


def counts(folder: Path) -> dict[str, int]:
    """Attempts by outcome over all shards; `maybe_billed` are attempts that were sent and never answered here."""
    total: dict[str, int] = {}
    for path in journals(folder):
        for outcome, number in _rows(
            path,
            "select coalesce(outcome, case when r.attempt_id is null then 'maybe_billed' else 'unparsed' end),"
            " count(*) from attempts a left join replies r using (attempt_id) group by 1",
        ):
            total[outcome] = total.get(outcome, 0) + number
    return total


def errors_by_kind(folder: Path) -> dict[str, int]:
    """Details of attempts that brought no reply, with their numbers."""
    total: dict[str, int] = {}
    for path in journals(folder):
        for detail, number in _rows(
            path,
            "select coalesce(detail, outcome), count(*) from attempts where outcome in (?, ?, ?) group by 1",
            (RETRYABLE, FATAL, FAILED),
        ):
            total[detail] = total.get(detail, 0) + number
    return total


def journals(folder: Path) -> list[Path]:
    """Journal files of a run, all shards."""
    return sorted(folder.glob("*.sqlite"))


def unreadable(path: Path, error: BaseException | str) -> str:
    """The sentence for a journal that SQLite or zstd cannot read."""
    return (
        f"Journal {path} cannot be used: {error}. It holds paid replies, so nothing goes on without it. "
        "Copy the file away, try `sqlite3 FILE .recover`, or restore a backup."
    )


@contextmanager
def reading_journal(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection, safe beside a writer of this host; to an empty database where another host's writes.

    SQLite's write-ahead log needs memory that both share (https://sqlite.org/wal.html, "Disadvantages"), so a writer
    elsewhere is kept out while this reads. SQLite's errors become a JournalError that names the file.
    """
    with reading(path.with_suffix(".lock")) as is_alone:
        # Nobody writes and nothing is in the log: no file is needed beside this one, which may be on a read-only disk.
        is_still = is_alone and not path.with_name(f"{path.name}-wal").exists()
        address = path.absolute().as_uri() + "?mode=ro" + ("&immutable=1" if is_still else "")
        address = "file::memory:" if is_alone is False else address
        try:
            with closing(sqlite3.connect(address, uri=True, timeout=30)) as connection:
                yield connection
        except (sqlite3.Error, zstandard.ZstdError) as error:
            raise JournalError(unreadable(path, error)) from error


def _rows(path: Path, query: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Rows of a query on one journal; none where its writer has only just made the file, or is of another host.

    A living shard of today's count holds no prompt of another one's: nothing that it stored would be asked here.
    """
    with reading_journal(path) as connection:
        if _is_made(connection):
            yield from connection.execute(query, values)


def _is_made(connection: sqlite3.Connection) -> bool:
    return connection.execute("select 1 from sqlite_master where name = 'replies'").fetchone() is not None
