"""What makes two sets of rows the same: a hash without order, from tables of a run or from released Parquet alone."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_PIECE_BYTES: Final = 32_000_000
"""Rows that are hashed at once, by the size of their columns: their bytes are in memory two or three times."""
_HEAD: Final = np.dtype([("letter", "S1"), ("number", "<i8")])
_EMPTY: Final = pa.scalar(b"", pa.large_binary())
_Parts = list[Any]
"""What follows one another in a row's bytes: bytes that all rows share, a matrix with a line of bytes a row, or binary
values of any length.
"""


def rowset_hash(rows: pl.DataFrame | pa.Table, columns: Sequence[str] | None = None) -> str:
    """64 hex digits over the rows of `columns` (all where None), whatever their order, chunks and widths of types.

    The sum of the sha256 of each row's bytes (`canonical_rows`), read as big-endian numbers, modulo 2²⁵⁶; zeros for no
    rows. A sum keeps multiplicity (two equal rows differ from none), which exclusive or would lose, and the sum of two
    row sets is that of their union.
    """
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest()) if isinstance(rows, pl.DataFrame) else rows
    chosen = table if columns is None else table.select(list(columns))
    return rowset_hex(sum(map(hash_sum, chosen.to_batches())))


def rowset_hash_of_files(files: Iterable[Path]) -> str:
    """`rowset_hash` of Parquet files together: of a released config, that of the manifest's schedule."""
    total = 0
    for path in files:
        with pq.ParquetFile(path) as file:
            total += sum(map(hash_sum, file.iter_batches(batch_size=1024)))
    return rowset_hex(total)


def rowset_hex(total: int) -> str:
    """A sum of `hash_sum` as `rowset_hash` writes it."""
    return f"{total % 2**256:064x}"


def hash_sum(rows: pa.RecordBatch) -> int:
    """Sum of the hashes of rows, to be added up and written by `rowset_hex`."""
    step = max(1, _PIECE_BYTES * rows.num_rows // max(1, rows.nbytes))
    starts = range(0, rows.num_rows, step)
    return sum(sum_of_hashes(canonical_rows(rows.slice(start, step))) for start in starts)


def sum_of_hashes(rows: pa.LargeBinaryArray) -> int:
    """Sum of the sha256 of each row's bytes, as big-endian numbers."""
    offsets, data, total = _offsets(rows).tolist(), memoryview(rows.buffers()[2] or b""), 0
    for index in range(len(rows)):
        digest = hashlib.sha256(data[offsets[index] : offsets[index + 1]]).digest()
        total += int.from_bytes(digest, "big")
    return total


def row_sizes(rows: pa.LargeBinaryArray) -> np.ndarray:
    """Length of each row's bytes."""
    return np.diff(_offsets(rows))


def canonical_rows(rows: pa.RecordBatch) -> pa.LargeBinaryArray:
    """The bytes that stand for each row: those of a struct of its columns.

    Every value is a head of 9 bytes, a letter and a signed 64-bit little-endian number, and for some a body:

        n  null          0
        i  integer       the number; true and false are 1 and 0, a time is microseconds since 1970 UTC
        f  float         the bits of the 64-bit number; −0.0 as 0.0, every NaN as 0x7ff8000000000000
        s  text, bytes   length in bytes, then the UTF-8 text or the bytes
        l  list          number of elements, then each as a value
        d  struct        number of fields, then each in order of the names' UTF-8: the name as text, then its value

    So int32 and int64, float32 and float64 of the same number are the same. Raises TypeError for other types.
    """
    fields = dict(zip(rows.schema.names, rows.columns, strict=True))
    return _joined(_struct(fields, np.zeros(rows.num_rows, dtype=bool)), rows.num_rows)


def _parts(values: Any) -> _Parts:  # noqa: PLR0911
    """The parts of each value's bytes."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _parts(values.dictionary_decode())
    null = values.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_struct(kind):
        names = [kind.field(index).name for index in range(kind.num_fields)]
        return _struct(dict(zip(names, values.flatten(), strict=True)), null)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = _numbers(pc.list_value_length(values))
        inner = values.flatten()
        return [_heads("l", lengths, null), _grouped(_joined(_parts(inner), len(inner)), lengths)]
    if pa.types.is_null(kind):
        return [_heads("n", np.zeros(len(values), dtype="<i8"), null)]
    if pa.types.is_floating(kind):
        numbers = values.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False) + 0.0
        return [_heads("f", np.where(np.isnan(numbers), np.nan, numbers).view("<i8"), null)]
    if pa.types.is_timestamp(kind):
        return [_heads("i", _numbers(values.cast(pa.timestamp("us", kind.tz)).cast(pa.int64())), null)]
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return [_heads("i", _numbers(values), null)]
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if any(is_kind(kind) for is_kind in texts):
        body = values.cast(pa.large_binary()).fill_null(b"")
        return [_heads("s", _numbers(pc.binary_length(body)), null), body]
    raise TypeError(f"rows with a column of type {kind} have no canonical bytes")


def _struct(fields: Mapping[str, Any], null: np.ndarray) -> _Parts:
    body: _Parts = []
    for name in sorted(fields, key=str.encode):
        text = name.encode()
        body += [_heads("s", np.array([len(text)]), np.zeros(1, bool)).tobytes() + text, *_parts(fields[name])]
    if null.any():  # nothing follows the head of a null
        body = [pc.if_else(pa.array(null), _EMPTY, _joined(body, len(null)))]
    return [_heads("d", np.full(len(null), len(fields)), null), *body]


def _heads(letter: str, numbers: np.ndarray, null: np.ndarray) -> np.ndarray:
    heads: Any = np.empty(len(numbers), dtype=_HEAD)
    heads["letter"], heads["number"] = letter.encode(), numbers
    if null.any():
        heads[null] = (b"n", 0)
    found: np.ndarray = heads.view(np.uint8).reshape(-1, _HEAD.itemsize)
    return found


def _numbers(values: Any) -> np.ndarray:
    found: np.ndarray = values.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return found


def _joined(parts: _Parts, rows: int) -> pa.LargeBinaryArray:
    """The parts of each row as one value; neighbours of fixed width are put together first, which is quicker."""
    found: list[Any] = []
    for is_fixed, run in groupby(parts, key=lambda part: isinstance(part, bytes | np.ndarray)):
        neighbours = list(run)
        found += [_block(neighbours, rows)] if is_fixed else neighbours
    joined: Any = pc.binary_join_element_wise(*found, _EMPTY)
    return cast("pa.LargeBinaryArray", joined)


def _block(parts: Sequence[Any], rows: int) -> pa.LargeBinaryArray:
    lines = [np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part for part in parts]
    block = np.empty((rows, sum(line.shape[-1] for line in lines)), np.uint8)
    start = 0
    for line in lines:
        block[:, start : start + line.shape[-1]] = line
        start += line.shape[-1]
    return _binary(np.arange(rows + 1, dtype="<i8") * block.shape[1], pa.py_buffer(cast("Any", block)))


def _grouped(values: pa.LargeBinaryArray, lengths: np.ndarray) -> pa.LargeBinaryArray:
    """Runs of so many values as one each, without a copy."""
    return _binary(_offsets(values)[np.concatenate([[0], np.cumsum(lengths)])], values.buffers()[2])


def _offsets(values: pa.LargeBinaryArray) -> np.ndarray:
    """Where each value begins in the data, and where the last one ends."""
    found: Any = values.buffers()[1]
    return np.frombuffer(found, dtype="<i8")[values.offset :][: len(values) + 1]


def _binary(offsets: Any, data: Any) -> pa.LargeBinaryArray:
    found: Any = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), data]
    )
    return cast("pa.LargeBinaryArray", found)
