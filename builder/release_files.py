"""Files of a release: Parquet shards as the Hub needs them, and what is taken over from the version before."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from builder.store import file_sha256, publish_file, sync_directory

_ROW_GROUP_BYTES: Final = 100_000_000
_SHARD_BYTES: Final = 500_000_000
# The Hub's viewer needs a page index; content-defined chunks let a changed file upload only what changed.
_PARQUET: Final[dict[str, Any]] = {
    "compression": "zstd",
    "compression_level": 3,
    "write_page_index": True,
    "use_content_defined_chunking": True,
}


def put_config(work: Path, config: str, rows: pa.Table, parent: Path | None, hashes: Mapping[str, str]) -> bool:
    """Write the shards of one config, synced; True where the parent's files hold these rows and were taken over.

    `hashes` are the parent's files by its manifest: a file that changed since is written anew, never passed on. Rows
    are compared, not bytes, because another pyarrow writes other bytes for the same rows.
    """
    folder = work / "data" / config
    if parent is not None and _holds(parent, config, rows, hashes):
        shutil.copytree(parent / "data" / config, folder)
        for path in folder.iterdir():
            publish_file(path, path)
        return True
    folder.mkdir(parents=True)
    size = max(1, -(-rows.num_rows // max(1, -(-rows.nbytes // _SHARD_BYTES))))
    starts = range(0, max(1, rows.num_rows), size)
    group = max(1, int(_ROW_GROUP_BYTES * rows.num_rows / max(1, rows.nbytes)))
    for shard, start in enumerate(starts):
        path = folder / f"train-{shard:05d}-of-{len(starts):05d}.parquet"
        temporary = folder / f".{path.name}"
        pq.write_table(rows.slice(start, size), temporary, row_group_size=group, **_PARQUET)
        publish_file(temporary, path)
    return False


def _holds(release: Path, config: str, rows: pa.Table, hashes: Mapping[str, str]) -> bool:
    """Whether a config of a release is as its manifest says and holds exactly these rows in this order."""
    files = sorted((release / "data" / config).glob("*.parquet"))
    if not files or any(hashes.get(path.relative_to(release).as_posix()) != file_sha256(path) for path in files):
        return False
    start = 0
    for path in files:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(rows.schema):
                return False
            for batch in file.iter_batches():
                if not pa.Table.from_batches([batch]).equals(rows.slice(start, batch.num_rows)):
                    return False
                start += batch.num_rows
    return start == rows.num_rows


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


def file_entry(work: Path, path: Path) -> dict[str, Any]:
    """A file as the manifest lists it."""
    rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None
    return {
        "path": path.relative_to(work).as_posix(),
        "sha256": file_sha256(path),
        "bytes": path.stat().st_size,
        "rows": rows,
    }
