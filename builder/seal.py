"""Replies → parts of `responses` and `logprobs`; then their raw bodies leave the journal.

A segment of replies is written, read back and compared, recorded in the journal, renamed into place, in this order;
then its bodies are pruned. A crash anywhere in between leaves the body or the row, and the next run goes on from there.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from builder import journal as journals
from builder.config import Recipe
from builder.errors import EndpointError, FatalReply, TableError
from builder.journal import Sealed, Stored
from builder.journal_writer import Journal, ShardBusy
from builder.prefix import parse
from builder.reply import Reply
from builder.reply_rows import reply_rows
from builder.store import Run, columns_table, sync_directory

_SEAL_REPLIES = 4096
_SEAL_TOKENS = 4_000_000
# A part is written when this many replies or tokens wait: bounds memory, keeps parts large.
_RAW_BYTES = 100_000_000
# Small parts are pruned once this much waits: a segment of tokens at the 24 compressed bytes that each takes.
_KEPT_RAW = 1000
# One raw body in so many stays, to look at and to parse again.


@dataclass
class _Segment:
    """Replies that become one part. `sealed` are those whose bodies may go: attempt id, response id, has logprobs."""

    responses: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    sealed: list[tuple[int, str, bool]] = field(default_factory=list)
    tokens: int = 0

    @property
    def is_full(self) -> bool:
        return max(len(self.responses), len(self.logprobs)) >= _SEAL_REPLIES or self.tokens >= _SEAL_TOKENS


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
        pa.set_memory_pool(pa.system_memory_pool())  # pyarrow's own keeps 35 MB once a part was made
        self._writing: Future[None] | None = None
        self._read_tables()

    def _read_tables(self) -> None:
        """Which replies stand in the tables, and which stand there in half."""
        self._sealed: set[str] = set()
        self._half: dict[str, str] = {}  # a crash came between the two tables: part of `logprobs` by reply
        self._bare: set[str] = set()  # their part of `logprobs` is gone
        if not (self.run.parts("responses") or self.run.parts("logprobs")):
            return  # the first query of polars takes 60 MB
        scored = self.run.scan("logprobs", paths_as="part").select("response_id", "part")
        known = self.run.scan("responses").select("response_id", "logprobs_mode")
        half = scored.join(known, on="response_id", how="anti").collect()
        bare = known.filter(pl.col("logprobs_mode").is_not_null()).join(scored, on="response_id", how="anti").collect()
        self._sealed = set(known.select("response_id").collect()["response_id"])
        self._half = {identity: Path(part).name for identity, part in half.iter_rows()}
        self._bare = set(bare["response_id"])

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
        response, logprobs = reply_rows(self.recipe.require_teacher(), stored, reply)
        cost: float | None = response["cost_usd"]
        identity = response["response_id"]
        if identity in self._sealed and identity not in self._bare:
            return cost
        segment = self._segment
        if logprobs is not None and identity not in self._half:
            segment.logprobs.append(logprobs)
        if identity in self._sealed:  # only its logprobs were missing
            self._bare.discard(identity)
        else:
            self._sealed.add(identity)
            segment.responses.append(response)
            if not _keeps_raw(stored, reply, logprobs):
                segment.sealed.append((stored.attempt_id, identity, logprobs is not None))
        segment.tokens += max(len(reply.pieces), reply.completion_tokens or 0)
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
                    outcome, detail = journals.REPLY, parse(stored.body, stored.attempt.prefix).finish_reason
                except EndpointError as error:
                    outcome = journals.FATAL if isinstance(error, FatalReply) else journals.RETRYABLE
                    detail = str(error)
                if before is None or outcome == journals.REPLY:
                    self.journal.conclude(stored.attempt_id, outcome, detail).result()
        whole = self._sealed - self._bare if self._bare else self._sealed
        for stored in journals.bodies(self.journal.path, outcome=journals.REPLY, skip=whole):
            self.add(stored, parse(stored.body, stored.attempt.prefix))
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
            self.run.remove({reply.response_id for reply in missing})
            self.journal.give_up([reply.attempt_id for reply in missing]).result()
            self._read_tables()

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
        if self._segment.responses or self._segment.logprobs:
            segment, self._segment = self._segment, _Segment()
            self._writing = self._worker.submit(self._write, segment)

    def _settle(self) -> None:
        """Wait for the part that is being written. Raises what went wrong with it, each time."""
        if self._writing is not None:
            self._writing.result()

    def _write(self, segment: _Segment) -> None:
        """One part of each table. `logprobs` first: a reply counts as sealed once it is in `responses`."""
        shard = self.journal.shard
        logprobs = columns_table("logprobs", segment.logprobs)
        scored = self.run.append("logprobs", logprobs, shard=shard, check=lambda file, _: _read_back(file, logprobs))
        responses = columns_table("responses", segment.responses)

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
            same = stored.read().equals(rows)
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
