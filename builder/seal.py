"""Replies → parts of `responses` and `logprobs`; then their raw bodies leave the journal.

A segment of replies is written, read back and compared, recorded in the journal, renamed into place, in this order;
then its bodies are pruned. A crash anywhere in between leaves the body or the row, and the next run goes on from there.
"""

from collections import Counter
from collections.abc import Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder import journal as journals
from builder.claim_file import ShardBusy
from builder.config import Recipe
from builder.errors import EndpointError, FatalReply, TableError
from builder.journal import Sealed, Stored
from builder.journal_writer import Journal
from builder.prefix import parse
from builder.reply import Reply
from builder.reply_rows import reply_rows
from builder.schema import TABLES
from builder.shards import drop_rows
from builder.store import Run, columns_table, sync_directory

_SEAL_REPLIES = 4096
_SEAL_TOKENS = 4_000_000
# A part is written when this many replies or tokens wait: bounds memory, keeps parts large.
_RAW_BYTES = 100_000_000
# Small parts are pruned once this much waits: a segment of tokens at the 24 compressed bytes that each takes.
_KEPT_RAW = 1000
# One raw body in so many stays, to look at and to parse again.
_LOOSE_REPLIES = 256
_LOOSE_TOKENS = 250_000
# So many rows wait as Python objects, which take thrice the memory that they take in Arrow.


@dataclass
class _Rows:
    """Rows of a table on their way to a part: the latest as they came, those before in Arrow."""

    name: str
    loose: list[dict[str, Any]] = field(default_factory=list)
    packed: list[pa.Table] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.loose) + sum(rows.num_rows for rows in self.packed)

    def pack(self) -> None:
        """Bring all of them to Arrow. Raises TableError for a row that does not fit."""
        self.packed.append(columns_table(self.name, self.loose))
        self.loose = []

    def table(self) -> pa.Table:
        """All of them. Raises as `pack`."""
        self.pack()
        return pa.concat_tables(self.packed)


@dataclass
class _Segment:
    """Replies that become one part. `sealed` are those whose bodies may go: attempt id, response id, has logprobs."""

    responses: _Rows = field(default_factory=lambda: _Rows("responses"))
    logprobs: _Rows = field(default_factory=lambda: _Rows("logprobs"))
    sealed: list[tuple[int, str, bool]] = field(default_factory=list)
    tokens: int = 0
    _loose_tokens: int = 0

    @property
    def is_full(self) -> bool:
        return max(len(self.responses), len(self.logprobs)) >= _SEAL_REPLIES or self.tokens >= _SEAL_TOKENS

    def add(self, response: dict[str, Any] | None, logprobs: dict[str, Any] | None, tokens: int) -> None:
        """Rows of one reply of so many tokens. Raises TableError where a row does not fit its table."""
        if response is not None:
            self.responses.loose.append(response)
        if logprobs is not None:
            self.logprobs.loose.append(logprobs)
        self.tokens += tokens
        self._loose_tokens += tokens
        waiting = max(len(self.responses.loose), len(self.logprobs.loose))
        if waiting >= _LOOSE_REPLIES or self._loose_tokens >= _LOOSE_TOKENS:
            self.responses.pack()
            self.logprobs.pack()
            self._loose_tokens = 0


class Sealer:
    """Collects replies of one shard and writes them as parts, in a thread of its own, one part after the other.

    Use as a context manager inside the journal's: its end waits for the thread. A part that cannot be written stops
    everything: `add` and `flush` raise its error, and nothing more is written. Its replies are still in the journal.
    """

    def __init__(self, run: Run, recipe: Recipe, journal: Journal) -> None:
        self.run = run
        self.recipe = recipe
        self.journal = journal
        self._segment = _Segment()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._writing: Future[None] | None = None
        self._read_tables()

    def _read_tables(self) -> None:
        """Which replies stand in the tables, and which stand there in half."""
        self._sealed: set[str] = set()
        self._half: dict[str, str] = {}  # a crash came between the two tables: part of `logprobs` by reply
        bare: set[str] = set()
        for _, rows in self.run.by_part("responses", ["response_id", "logprobs_mode"]):
            ids: list[Any] = rows["response_id"].to_pylist()
            modes = rows["logprobs_mode"].to_pylist()
            self._sealed.update(ids)
            bare.update(identity for identity, mode in zip(ids, modes, strict=True) if mode is not None)
        for part, rows in self.run.by_part("logprobs", ["response_id"]):
            scored: list[Any] = rows["response_id"].to_pylist()
            bare.difference_update(scored)
            self._half.update((identity, part.name) for identity in scored if identity not in self._sealed)
        self._bare = set(bare)  # their part of `logprobs` is gone; a copy, as a set that was large stays large

    def __enter__(self) -> "Sealer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.shutdown(wait=True)
        if error is None:
            self._settle()

    def add(self, stored: Stored, reply: Reply) -> float | None:
        """Queue one reply; write a part when enough wait. Returns its price in USD, None where none is declared.

        Raises TableError or JournalError when an earlier part could not be written.
        """
        if self._writing is not None and self._writing.done():
            self._settle()
        response, logprobs = reply_rows(self.recipe, stored, reply)
        cost: float | None = response["cost_usd"]
        identity = response["response_id"]
        if identity in self._sealed and identity not in self._bare:
            return cost
        segment = self._segment
        is_new = identity not in self._sealed
        self._sealed.add(identity)
        self._bare.discard(identity)
        if is_new and not _keeps_raw(stored, reply, logprobs):
            segment.sealed.append((stored.attempt_id, identity, logprobs is not None))
        segment.add(
            response if is_new else None,  # else only its logprobs were missing
            logprobs if identity not in self._half else None,
            max(len(reply.pieces), reply.completion_tokens or 0),
        )
        if segment.is_full:
            self._submit()
        return cost

    def flush(self) -> None:
        """Write what waits, and wait for it. Raises as `add`."""
        self._submit()
        self._settle()

    def catch_up(self, *, forget_missing: bool = False) -> None:
        """Parse bodies that a crash left unparsed, and seal replies of this shard's journal that no part holds.

        Bodies that an earlier version could not read are tried again: they are paid for. Raises TableError when replies
        without a raw body stand in no part any more; with `forget_missing` they are to be asked, and paid, again.
        """
        self._compare_with_journal(forget_missing=forget_missing)
        for before in (None, journals.RETRYABLE, journals.FATAL):
            for stored in journals.bodies(self.journal.path, outcome=before):
                try:
                    outcome, detail = journals.REPLY, _parsed(stored).finish_reason
                except EndpointError as error:
                    outcome = journals.FATAL if isinstance(error, FatalReply) else journals.RETRYABLE
                    detail = str(error)
                if before is None or outcome == journals.REPLY:
                    self.journal.conclude(stored.attempt_id, outcome, detail).result()
        whole = self._sealed - self._bare if self._bare else self._sealed
        for stored in journals.bodies(self.journal.path, outcome=journals.REPLY, skip=whole):
            self.add(stored, _parsed(stored))
        self.flush()
        if self._is_due():
            self._prune()

    def _compare_with_journal(self, *, forget_missing: bool) -> None:
        """Before anything is written: what the journal calls sealed must stand in the tables, or be sealed again."""
        again: list[int] = []
        missing: list[Sealed] = []
        for reply in journals.sealed(self.journal.path):
            if reply.response_id not in self._sealed or (reply.logprobs_part and reply.response_id in self._bare):
                if reply.has_body:
                    again.append(reply.attempt_id)
                else:
                    missing.append(reply)
        if again:  # a crash came before the part's rename, or the part is gone: prune must not touch these bodies
            self.journal.seal([(None, None, attempt_id) for attempt_id in again]).result()
        if missing and not forget_missing:
            raise self._missing_error(missing)
        if missing:
            self._remove({reply.response_id for reply in missing})
            self.journal.give_up([reply.attempt_id for reply in missing]).result()
            self._read_tables()

    def _remove(self, ids: Container[str]) -> None:
        """Take all rows of these replies, which are of this shard, out of every table."""

        def gone(rows: pa.Table) -> list[bool]:
            return [identity in ids for identity in rows["response_id"].to_pylist()]

        for name, table in TABLES.items():
            if "response_id" in table.schema.names:
                drop_rows(self.run, name, gone)

    def _missing_error(self, missing: Sequence[Sealed]) -> TableError:
        parts: Counter[str] = Counter()
        for reply in missing:
            if reply.response_id not in self._sealed:
                parts[f"tables/responses/{reply.responses_part}"] += 1
            else:
                parts[f"tables/logprobs/{reply.logprobs_part}"] += 1
        listed = ", ".join(f"{part} ({number:,})" for part, number in sorted(parts.items())[:10])
        more = f" and {len(parts) - 10} more" if len(parts) > 10 else ""
        return TableError(
            f"{len(missing):,} paid replies are missing in {self.run.root}: {listed}{more}. Their raw bodies left "
            f"{self.journal.path.name} when these parts were sealed, so only the parts hold them, and asking again "
            "would cost their price again. Restore the parts from a backup and rerun. To pay again instead, run "
            "builder generate --forget-missing, and do not restore the parts after that."
        )

    def _submit(self) -> None:
        """Hand the segment to the thread. Waits while the one before it is being written, so memory stays bounded."""
        self._settle()
        if len(self._segment.responses) or len(self._segment.logprobs):
            segment, self._segment = self._segment, _Segment()
            self._writing = self._worker.submit(self._write, segment)

    def _settle(self) -> None:
        """Wait for the part that is being written. Raises what went wrong with it, each time."""
        if self._writing is not None:
            self._writing.result()

    def _write(self, segment: _Segment) -> None:
        """One part of each table. `logprobs` first: a reply counts as sealed once it is in `responses`."""
        shard = self.journal.shard
        logprobs = segment.logprobs.table()
        scored = self.run.append("logprobs", logprobs, shard=shard, check=lambda file, _: _read_back(file, logprobs))
        responses = segment.responses.table()

        def check(temporary: Path, part: Path) -> None:
            _read_back(temporary, responses)
            here = scored.name if scored else None
            recorded = [
                (part.name, self._half.get(identity, here) if has_logprobs else None, attempt_id)
                for attempt_id, identity, has_logprobs in segment.sealed
            ]
            self.journal.seal(recorded).result()

        self.run.append("responses", responses, shard=shard, check=check)
        if segment.is_full or self._is_due():
            self._prune()

    def _is_due(self) -> bool:
        number, size = journals.prunable(self.journal.path)
        return number >= _SEAL_REPLIES or size >= _RAW_BYTES

    def _prune(self) -> None:
        """Drop the bodies of what is sealed, once the folders that hold the parts are on disk too."""
        try:
            for folder in (self.run.root, self.run.table_dir("responses").parent):
                sync_directory(folder)
        except OSError as error:
            raise TableError(
                f"Syncing {self.run.root} failed: {error}. Nothing was lost: the journal keeps every raw body. "
                "Free space or mend the disk, then rerun the same command."
            ) from error
        self.journal.prune().result()


def _parsed(stored: Stored) -> Reply:
    return parse(stored.body, stored.attempt.prefix, stored.attempt.role)


def _keeps_raw(stored: Stored, reply: Reply, logprobs: dict[str, Any] | None) -> bool:
    """Whether a body stays: by chance, and where the tables hold less of it (tool calls, tokens that do not align)."""
    unaligned = logprobs is not None and logprobs["token_end"] is None and stored.attempt.prefix is None
    return bool(reply.tool_calls) or unaligned or int(stored.attempt.request_key[:8], 16) % _KEPT_RAW == 0


def _read_back(file: Path, rows: pa.Table) -> None:
    """Raise TableError unless the file gives the rows that were written, value by value.

    The rows were parsed from the very bytes that the journal stored. What is read may come from the system's cache:
    this proves the encoding, and a full or failing disk where the system reports it, not the platter.
    """
    try:
        with pq.ParquetFile(file) as stored:  # pq.read_table loads pyarrow.dataset and pandas, 60 MB
            same = stored.read(use_threads=False).equals(rows)  # each thread of Arrow takes memory of its own
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{file} was written and cannot be read ({error}); {_NOTHING_LOST}") from error
    if not same:
        raise TableError(f"{file} was written and reads otherwise than it was written; {_NOTHING_LOST}")


_NOTHING_LOST = (
    "its replies are still in the journal and no part was made of it. Look at the disk, then rerun the same command."
)


def seal_orphans(run: Run, recipe: Recipe, shard: tuple[int, int], *, forget_missing: bool = False) -> None:
    """Seal journals of shards that today's shard count lacks: what a crash left there must not hide from the tables.

    Each belongs to one of today's shards; one that a process still writes is that process's own.
    """
    index, count = shard
    for path in journals.journals(run.journal_dir):
        number = int(path.stem) if path.stem.isdecimal() else -1
        if number >= count and number % count == index:
            with (
                suppress(ShardBusy),
                Journal(run.journal_dir, number) as journal,
                Sealer(run, recipe, journal) as sealer,
            ):
                sealer.catch_up(forget_missing=forget_missing)
