"""Files of a release: Parquet shards as the Hub needs them, and what is taken over from the version before."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder.errors import ReleaseError
from builder.release_held_out import TRAIN
from builder.rowset import canonical_rows, row_sizes, rowset_hex, sum_of_hashes
from builder.store import file_sha256, publish_file, sync_directory

_GROUP_BYTES: Final = 100_000_000
"""Of rows as they are hashed, before encoding and compression."""
_SHARD_GROUPS: Final = 5
_PIECE_BYTES: Final = 32_000_000
# The Hub's viewer needs a page index; content-defined chunks let a changed file upload only what changed.
PARQUET: Final[dict[str, Any]] = {
    "compression": "zstd",
    "compression_level": 3,
    "write_page_index": True,
    "use_content_defined_chunking": True,
}
_MISTAKEN: Final = ("messages", "text")
"""Columns that TRL would train on in place of prompt and completion."""


@dataclass
class Shard:
    """A Parquet file of a config, while it is written. `total` is the sum of the hashes of its rows."""

    path: Path
    rows: int = 0
    groups: int = 0
    total: int = 0


@dataclass(frozen=True)
class Written:
    """A config on disk: rows, the hash of all of them, and that of each file by its path in the release.

    `is_taken` where every file is one of the version before.
    """

    rows: int
    rowset_hash: str
    hashes: Mapping[str, str]
    is_taken: bool


@dataclass
class _Config:
    """Shards of one config. Where a row group or a shard ends hangs on the rows before it alone: rows that follow, or
    the pieces in which they come, move no boundary. A row group is written while the next one is put together.
    """

    folder: Path
    schema: pa.Schema
    pool: ThreadPoolExecutor
    shards: list[Shard] = field(default_factory=list)
    group: list[pa.RecordBatch] = field(default_factory=list)
    size: int = 0
    writer: Any = None
    pending: Future[None] | None = None

    def add(self, rows: pa.RecordBatch) -> None:
        encoded = canonical_rows(rows)
        ends = np.cumsum(row_sizes(encoded))
        start = 0
        while start < rows.num_rows:
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + _GROUP_BYTES - self.size, side="right"))
            if stop <= start and self.group:
                self.end_group()
                continue
            stop = max(stop, start + 1)
            if not self.shards or (not self.group and self.shards[-1].groups == _SHARD_GROUPS):
                self.begin_shard()
            self.shards[-1].total += sum_of_hashes(encoded.slice(start, stop - start))
            self.shards[-1].rows += stop - start
            self.group.append(rows.slice(start, stop - start))
            self.size += int(ends[stop - 1]) - before
            start = stop

    def begin_shard(self) -> None:
        self.close()
        self.shards.append(Shard(self.folder / f".part-{len(self.shards):05d}"))
        self.writer = pq.ParquetWriter(str(self.shards[-1].path), self.schema, **PARQUET)

    def end_group(self) -> None:
        """Hand the rows to the writer: as one piece each column, or their pieces would show in the file's bytes."""
        self.wait()
        table = pa.Table.from_batches(self.group).combine_chunks()
        self.pending = self.pool.submit(self.writer.write_table, table, row_group_size=table.num_rows)
        self.shards[-1].groups += 1
        self.group, self.size = [], 0

    def wait(self) -> None:
        if self.pending is not None:
            self.pending.result()
            self.pending = None

    def close(self) -> None:
        if self.group:
            self.end_group()
        self.wait()
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def abandon(self) -> None:
        """Close what is open after an error, whatever state it is in; the file is of no use."""
        if self.pending is not None:
            self.pending.exception()
        if self.writer is not None:
            with suppress(OSError):
                self.writer.close()
            self.writer.is_open = False  # or it would try again when it is collected


def put_config(
    work: Path,
    config: str,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    parent: Path | None,
    before: Iterable[Any],
    split: str = TRAIN,
    progress: Callable[[int], None] = lambda _: None,
) -> Written:
    """Write the shards of one split of a config, synced. Where a file of the version before holds the same rows, it is
    that file.

    `before` are the files of the version `parent` as its manifest lists them. Rows are compared, not bytes, because
    another pyarrow writes other bytes for the same rows; a file that was changed since is written anew, never passed
    on. `progress` gets the rows written. Raises ReleaseError for a column that would be mistaken for what is trained
    on, OSError from the disk.
    """
    if mistaken := [name for name in schema.names if name in _MISTAKEN]:
        raise ReleaseError(
            f"Config {config!r} has a column {mistaken[0]!r}, which trainers take for what is to be learnt in place of "
            "prompt and completion. Give it another name in builder/schema.py."
        )
    folder = work / "data" / config
    folder.mkdir(parents=True, exist_ok=True)  # the other split is there
    with ThreadPoolExecutor(1) as pool:
        writing = _Config(folder, schema, pool)
        try:
            for table in tables:
                step = max(1, _PIECE_BYTES * table.num_rows // max(1, table.nbytes))
                for batch in table.to_batches(max_chunksize=step):
                    writing.add(batch)
                    progress(sum(shard.rows for shard in writing.shards))
            if not writing.shards:  # a config without rows is a file without rows
                writing.begin_shard()
            writing.close()
        except BaseException:
            writing.abandon()
            raise
    known = {(entry.get("rowset_hash"), entry["rows"]): entry for entry in before}
    hashes: dict[str, str] = {}
    taken = 0
    for number, shard in enumerate(writing.shards):
        path = folder / f"{split}-{number:05d}-of-{len(writing.shards):05d}.parquet"
        found = rowset_hex(shard.total)
        same = known.get((found, shard.rows))
        if parent is not None and same is not None and _is_intact(parent / same["path"], same["sha256"], schema):
            shutil.copyfile(parent / same["path"], shard.path)
            taken += 1
        publish_file(shard.path, path)
        hashes[path.relative_to(work).as_posix()] = found
    total = sum(shard.total for shard in writing.shards)
    rows = sum(shard.rows for shard in writing.shards)
    return Written(rows, rowset_hex(total), hashes, is_taken=taken == len(hashes))


def _is_intact(path: Path, sha256: str, schema: pa.Schema) -> bool:
    """Whether a file of the version before is as its manifest says, in today's columns and types."""
    return path.is_file() and file_sha256(path) == sha256 and pq.read_schema(path).equals(schema)


def ids_of(root: Path, files: Iterable[Mapping[str, Any]], key: str) -> list[str]:
    """Values of an id column over files of a release in order; none where a file was changed or lacks the column."""
    ids: list[str] = []
    for entry in files:
        path = root / entry["path"]
        if not path.is_file() or file_sha256(path) != entry["sha256"] or key not in pq.read_schema(path).names:
            return []
        with pq.ParquetFile(path) as file:
            ids += map(str, file.read(columns=[key])[key].to_pylist())
    return ids


def put_text(path: Path, text: str) -> None:
    """Write a text file of a release, synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    publish_file(temporary, path)


def sync_folders(work: Path) -> None:
    """Make every name below `work` durable."""
    for folder in {path.parent for path in work.rglob("*")}:
        sync_directory(folder)


def file_entry(work: Path, path: Path, hashes: Mapping[str, str]) -> dict[str, Any]:
    """A file as the manifest lists it; `hashes` are of rows, by path in the release."""
    name = path.relative_to(work).as_posix()
    is_table = path.suffix == ".parquet"
    entry = {
        "path": name,
        "sha256": file_sha256(path),
        "bytes": path.stat().st_size,
        "rows": pq.read_metadata(path).num_rows if is_table else None,
    }
    return entry | ({"rowset_hash": hashes[name]} if is_table else {})
