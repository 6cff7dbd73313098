"""The run's side of an import: one at a time, gathered in a scratch run, then moved into the tables by rename."""

import fcntl
import shutil
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import polars as pl
import pyarrow.parquet as pq

from builder.errors import TableError, UsageError
from builder.schema import TABLES
from builder.store import Run, sync_directory, write_parquet

SHARD: Final = 999
"""Parts of imports have a number of their own, so that `builder generate` may write the same tables meanwhile."""


@contextmanager
def exclusive(run: Run) -> Iterator[Run]:
    """A scratch run beside the tables, for one import at a time; it goes away at the end."""
    try:
        run.root.mkdir(parents=True, exist_ok=True)
        with (run.root / ".import.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"Another import into {run.root} is going on. Wait for it, then rerun.") from None
            for stale in run.root.glob(".import-*"):
                shutil.rmtree(stale)
            folder = run.root / f".import-{uuid.uuid4().hex}"
            try:
                yield Run(folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise TableError(f"Importing into {run.root} failed: {error}. Free space or mend the disk, rerun.") from error


def known_replies(run: Run) -> dict[str, tuple[bool, bool]]:
    """Whether each reply of the run has logprobs of its own, and a finish_reason."""
    columns = ("response_id", pl.col("logprobs_mode").is_not_null(), pl.col("finish_reason").is_not_null())
    held = run.ids("logprobs")
    found = run.scan("responses").select(*columns).collect()
    return {identity: (has_mode and identity in held, ended) for identity, has_mode, ended in found.iter_rows()}


def forget(run: Run, ids: Collection[str], tables: Sequence[str]) -> None:
    """Take the rows of these replies out of some tables, part by part, each by rename."""
    for name in tables if ids else ():
        for part in run.parts(name):
            rows = pq.ParquetFile(part).read()
            frame: Any = pl.from_arrow(rows)
            kept = frame.filter(~pl.col("response_id").is_in(list(ids)))
            if kept.height < rows.num_rows:
                write_parquet(kept.to_arrow().cast(TABLES[name].schema), part)


def adopt(run: Run, scratch: Run, tables: Sequence[str]) -> None:
    """Rename the parts of a scratch run into the run's tables, behind those that are there."""
    for name in tables:
        folder = run.table_dir(name)
        folder.mkdir(parents=True, exist_ok=True)
        taken = [int(path.stem[-5:]) for path in run.parts(name) if path.stem.startswith(f"part-{SHARD:03d}-")]
        for number, part in enumerate(scratch.parts(name), start=max(taken, default=-1) + 1):
            part.rename(folder / f"part-{SHARD:03d}-{number:05d}.parquet")
        sync_directory(folder)


def without_mode(run: Run, ids: Collection[str]) -> None:
    """Say of these replies that no logprobs came with them, so that the teacher may rescore them."""
    for part in run.parts("responses") if ids else ():
        frame: Any = pl.from_arrow(pq.ParquetFile(part).read())
        mode = pl.when(~pl.col("response_id").is_in(list(ids))).then("logprobs_mode").alias("logprobs_mode")
        write_parquet(frame.with_columns(mode).to_arrow().cast(TABLES["responses"].schema), part)
