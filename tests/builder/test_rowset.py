"""Hashes of row sets: order, chunks and widths do not matter, every value does; and what another program computes."""

import hashlib
import math
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from release_toys import Selected, recipe

from builder import rowset
from builder.release import release
from builder.rowset import rowset_hash, rowset_hash_of_files

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [("id", pa.string()), ("n", pa.int32()), ("x", pa.float64()), ("yes", pa.bool_()), ("prompt", MESSAGES),
     ("counts", pa.list_(pa.int32()))]
)  # fmt: skip
MESSAGE = st.none() | st.fixed_dictionaries({"role": TEXT, "content": st.none() | TEXT})
ROW = st.fixed_dictionaries(
    {
        "id": st.none() | TEXT,
        "n": st.none() | st.integers(-(2**31), 2**31 - 1),
        "x": st.none() | st.floats(),
        "yes": st.none() | st.booleans(),
        "prompt": st.none() | st.lists(MESSAGE, max_size=3),
        "counts": st.none() | st.lists(st.none() | st.integers(0, 9), max_size=3),
    }
)


def plain(value: Any) -> bytes:
    """The bytes of a value as the docstring of `canonical_rows` has them, value by value."""
    if value is None:
        return b"n" + bytes(8)
    if isinstance(value, int):
        return b"i" + struct.pack("<q", value)
    if isinstance(value, float):
        return b"f" + (struct.pack("<Q", 0x7FF8000000000000) if math.isnan(value) else struct.pack("<d", value + 0.0))
    if isinstance(value, str):
        return b"s" + struct.pack("<q", len(value.encode())) + value.encode()
    if isinstance(value, list):
        return b"l" + struct.pack("<q", len(value)) + b"".join(map(plain, value))
    fields = sorted(value.items(), key=lambda item: item[0].encode())
    return b"d" + struct.pack("<q", len(value)) + b"".join(plain(name) + plain(inner) for name, inner in fields)


def plain_hash(rows: list[dict[str, Any]]) -> str:
    total = sum(int.from_bytes(hashlib.sha256(plain(row)).digest(), "big") for row in rows)
    return f"{total % 2**256:064x}"


@given(st.lists(ROW, max_size=6))
def test_the_hash_is_what_its_definition_says_value_by_value(rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    assert rowset_hash(table) == plain_hash(rows)


@given(st.lists(ROW, max_size=6), st.randoms(use_true_random=False), st.integers(1, 3))
def test_order_columns_chunks_and_widths_do_not_matter(rows: list[dict[str, Any]], random: Any, step: int) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    turned = pa.Table.from_pylist(random.sample(rows, len(rows)), schema=SCHEMA)
    chunks = [turned.slice(start, step) for start in range(0, len(rows), step)]
    other = pa.concat_tables(chunks) if chunks else turned
    wider = {pa.int32(): pa.int64(), pa.string(): pa.large_string()}
    wide = pa.schema([field.with_type(wider.get(field.type, field.type)) for field in SCHEMA])
    names = random.sample(SCHEMA.names, len(SCHEMA))
    assert rowset_hash(other.cast(wide).select(names)) == rowset_hash(table)
    assert rowset_hash(pl.DataFrame(pl.from_arrow(table))) == rowset_hash(table)


def test_pieces_of_any_size_give_the_same_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"id": [f"r{number}" for number in range(50)], "x": [number / 7 for number in range(50)]})
    whole = rowset_hash(table)
    monkeypatch.setattr(rowset, "_PIECE_BYTES", 100)
    assert rowset_hash(table) == whole


@given(st.lists(ROW, max_size=4), st.lists(ROW, max_size=4))
def test_two_row_sets_add_up_to_their_union(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    first, second, both = (
        int(rowset_hash(pa.Table.from_pylist(rows, schema=SCHEMA)), 16) for rows in (one, two, one + two)
    )
    assert (first + second) % 2**256 == both


def test_multiplicity_nulls_and_column_names_count() -> None:
    tables = [
        pa.table({"id": ["a"], "x": pa.array([None], pa.float64())}),
        pa.table({"id": ["a"], "x": [0.0]}),
        pa.table({"id": ["a", "a"], "x": [0.0, 0.0]}),
        pa.table({"id": ["a", "a", "a"], "x": [0.0, 0.0, 0.0]}),
        pa.table({"id": ["a"], "x": [0.1]}),
        pa.table({"id": ["a"], "x": [0]}),
        pa.table({"id": ["a"], "y": [0.0]}),
        pa.table({"id": ["a"]}),
        pa.table({"id": [["a"]], "x": [0.0]}),
    ]
    assert len({rowset_hash(table) for table in tables}) == len(tables)
    assert rowset_hash(tables[1].slice(1)) == "0" * 64
    assert rowset_hash(tables[1], ["id"]) == rowset_hash(tables[7])


def test_the_hash_of_known_rows_is_pinned() -> None:
    when = datetime(2026, 11, 22, tzinfo=UTC)
    rows = pl.DataFrame({"id": ["é", None], "x": [-0.0, 2.5], "at": [when, None], "list": [[1, None], []]})
    assert rowset_hash(rows) == "e0086a2d4575a7a5f4d36657bba26b1d8d3ea56147a360d66a38c6e0176f87f4"


def test_types_without_canonical_bytes_are_refused() -> None:
    with pytest.raises(TypeError, match="type duration"):
        rowset_hash(pa.table({"x": pa.array([1], pa.duration("s"))}))


def test_the_schedule_can_be_checked_with_the_released_files_alone(made: Selected) -> None:
    found = release(made[0], recipe(), made[1])
    for stage in found.manifest["schedule"]:
        files = sorted((found.path / "data" / stage["config"]).iterdir())
        assert rowset_hash_of_files(files) == stage["rowset_hash"] == plain_hash(_rows(files))
    for entry in found.manifest["files"]:
        if entry["path"].startswith("data/"):
            assert rowset_hash_of_files([found.path / entry["path"]]) == entry["rowset_hash"]


def _rows(files: list[Path]) -> list[dict[str, Any]]:
    return [row for path in files for row in pq.read_table(path).to_pylist()]
