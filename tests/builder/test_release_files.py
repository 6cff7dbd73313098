"""Parquet shards of a release: page index, content-defined chunks, shards, row groups, what is taken over."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder import release_files
from builder.errors import ReleaseError
from builder.release_files import Written, file_entry, ids_of, put_config
from builder.rowset import rowset_hash, rowset_hash_of_files


def text_rows(count: int, skip: int = 0) -> pa.Table:
    """Incompressible rows of 3,000 characters."""
    texts = ["".join(hashlib.sha256(f"{i}-{j}".encode()).hexdigest() for j in range(47)) for i in range(skip, count)]
    return pa.table({"id": [f"r{i:05d}" for i in range(skip, count)], "said": texts})


def put(work: Path, *tables: pa.Table, parent: Path | None = None, before: Any = ()) -> Written:
    return put_config(work, "c", tables[0].schema, tables, parent, before)


def files(work: Path) -> list[Path]:
    return sorted((work / "data" / "c").iterdir())


def entries(work: Path, written: Written) -> list[dict[str, Any]]:
    return [file_entry(work, path, written.hashes) for path in files(work)]


def contents(work: Path) -> list[bytes]:
    return [path.read_bytes() for path in files(work)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of some ten rows of `text_rows`, two a shard."""
    monkeypatch.setattr(release_files, "_GROUP_BYTES", 32_000)
    monkeypatch.setattr(release_files, "_SHARD_GROUPS", 2)


def test_parquet_has_a_page_index_and_chunks_by_content(tmp_path: Path) -> None:
    put(tmp_path / "one", text_rows(2000))
    put(tmp_path / "two", text_rows(2000, skip=1))
    one, two = (tmp_path / name / "data/c/train-00000-of-00001.parquet" for name in ("one", "two"))
    column = pq.read_metadata(one).row_group(0).column(1)
    assert column.has_offset_index
    assert column.has_column_index
    assert column.compression == "ZSTD"
    first, second = one.read_bytes(), two.read_bytes()
    known = sum(first.find(second[start : start + 64]) >= 0 for start in range(0, len(second), 65_536))
    assert known > 0.5 * len(second) / 65_536, "a row less in front must not change what follows"


@pytest.mark.usefixtures("small")
def test_large_configs_are_several_shards_and_row_groups(tmp_path: Path) -> None:
    table = text_rows(100)
    written = put(tmp_path, table)
    found = files(tmp_path)
    assert [file.name for file in found] == [f"train-{i:05d}-of-{len(found):05d}.parquet" for i in range(len(found))]
    groups = [pq.read_metadata(file).num_row_groups for file in found]
    assert len(found) == 5 and groups == [2] * 5
    assert all(pq.read_metadata(file).row_group(group).total_byte_size < 33_000 for file in found for group in range(2))
    assert pa.concat_tables(pq.read_table(file) for file in found).equals(table)
    assert (written.rows, written.rowset_hash) == (100, rowset_hash(table)) == (100, rowset_hash_of_files(found))
    assert list(written.hashes.values()) == [rowset_hash_of_files([file]) for file in found]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("step", [1, 7, 33])
def test_the_pieces_in_which_rows_come_do_not_show_in_the_bytes(tmp_path: Path, step: int) -> None:
    table = text_rows(64)
    put(tmp_path / "whole", table)
    put(tmp_path / "pieces", *(table.slice(start, step) for start in range(0, 64, step)))
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small")
def test_rows_behind_change_no_full_shard_before(tmp_path: Path) -> None:
    put(tmp_path / "one", text_rows(70))
    put(tmp_path / "two", text_rows(90))
    assert contents(tmp_path / "two")[:3] == contents(tmp_path / "one")[:3]
    assert len(files(tmp_path / "two")) > len(files(tmp_path / "one")) == 4


@pytest.mark.usefixtures("small")
def test_files_with_the_rows_of_the_version_before_are_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = text_rows(70)
    first = put(tmp_path / "one", table)
    before = entries(tmp_path / "one", first)
    monkeypatch.setitem(release_files.PARQUET, "compression_level", 1)  # as another pyarrow, which writes other bytes
    same = put(tmp_path / "same", table, parent=tmp_path / "one", before=before)
    assert same.is_taken and contents(tmp_path / "same") == contents(tmp_path / "one")
    more = put(tmp_path / "more", text_rows(75), parent=tmp_path / "one", before=before)
    assert not more.is_taken and contents(tmp_path / "more")[:3] == contents(tmp_path / "one")[:3]
    for name, other in (("less", table.slice(1)), ("twice", pa.concat_tables([table, table.slice(0, 1)]))):
        assert not put(tmp_path / name, other, parent=tmp_path / "one", before=before).is_taken
    wider = table.append_column("n", pa.nulls(70, pa.int32()))
    assert not put(tmp_path / "wider", wider, parent=tmp_path / "one", before=before).is_taken


@pytest.mark.usefixtures("small")
def test_an_altered_file_is_neither_taken_over_nor_read_for_its_order(tmp_path: Path) -> None:
    table = text_rows(30)
    before = entries(tmp_path / "one", put(tmp_path / "one", table))
    assert ids_of(tmp_path / "one", before, "id") == table["id"].to_pylist()
    assert ids_of(tmp_path / "one", before, "response_id") == []
    good = contents(tmp_path / "one")
    files(tmp_path / "one")[0].write_bytes(good[0][:-50] + bytes(50))
    assert ids_of(tmp_path / "one", before, "id") == []
    assert not put(tmp_path / "two", table, parent=tmp_path / "one", before=before).is_taken
    assert contents(tmp_path / "two") == good


@pytest.mark.parametrize("name", ["messages", "text"])
def test_a_column_that_a_trainer_would_mistake_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ReleaseError, match=f"has a column '{name}', which trainers take for what is to be learnt"):
        put(tmp_path, text_rows(1).rename_columns(["id", name]))


def test_a_config_without_rows_is_a_file_without_rows(tmp_path: Path) -> None:
    written = put(tmp_path, text_rows(0))
    assert (written.rows, written.rowset_hash) == (0, "0" * 64)
    assert [pq.read_metadata(file).num_rows for file in files(tmp_path)] == [0]


def test_an_error_while_rows_are_made_or_written_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Any:
        yield text_rows(3)
        raise ReleaseError("a selected row lacks its prompt")

    with pytest.raises(ReleaseError, match="lacks its prompt"):
        put_config(tmp_path / "one", "c", text_rows(1).schema, rows(), None, [])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        put(tmp_path / "two", text_rows(3))
