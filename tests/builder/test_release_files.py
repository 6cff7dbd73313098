"""Parquet shards of a release: page index, content-defined chunks, shards, row groups."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder import release_files
from builder.release_files import put_config


def text_rows(count: int, skip: int = 0) -> pa.Table:
    """Incompressible rows of 3,000 characters."""
    texts = ["".join(hashlib.sha256(f"{i}-{j}".encode()).hexdigest() for j in range(47)) for i in range(skip, count)]
    return pa.table({"id": [f"r{i:05d}" for i in range(skip, count)], "text": texts})


def test_parquet_has_a_page_index_and_chunks_by_content(tmp_path: Path) -> None:
    put_config(tmp_path / "one", "c", text_rows(2000), None, {})
    put_config(tmp_path / "two", "c", text_rows(2000, skip=1), None, {})
    one, two = (tmp_path / name / "data/c/train-00000-of-00001.parquet" for name in ("one", "two"))
    column = pq.read_metadata(one).row_group(0).column(1)
    assert column.has_offset_index
    assert column.has_column_index
    assert column.compression == "ZSTD"
    first, second = one.read_bytes(), two.read_bytes()
    known = sum(first.find(second[start : start + 64]) >= 0 for start in range(0, len(second), 65_536))
    assert known > 0.5 * len(second) / 65_536, "a row less in front must not change what follows"


def test_large_configs_are_several_shards_and_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = text_rows(100)
    monkeypatch.setattr(release_files, "_SHARD_BYTES", table.nbytes // 7)
    monkeypatch.setattr(release_files, "_ROW_GROUP_BYTES", table.nbytes // 25)
    assert not put_config(tmp_path, "c", table, None, {})
    files = sorted((tmp_path / "data" / "c").iterdir())
    assert [file.name for file in files] == [f"train-{i:05d}-of-{len(files):05d}.parquet" for i in range(len(files))]
    assert len(files) == 8
    assert all(pq.read_metadata(file).num_row_groups > 1 and pq.read_metadata(file).num_rows for file in files)
    assert pa.concat_tables(pq.read_table(file) for file in files).equals(table)
    hashes = {f"data/c/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert put_config(tmp_path / "next", "c", table, tmp_path, hashes)
    assert not put_config(tmp_path / "other", "c", table.slice(1), tmp_path, hashes)
    assert not put_config(tmp_path / "more", "c", pa.concat_tables([table, table.slice(0, 1)]), tmp_path, hashes)
