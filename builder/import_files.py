"""Rows of JSONL and Parquet files, one at a time: a file may be larger than memory. What is no row is named."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder.errors import SourceError

_BATCH: Final = 256
"""Rows of Parquet in memory at once: those of 65,000 tokens with their logprobs take a megabyte each."""
Row = dict[str, Any]


class BadRow(Exception):
    """A row that is no reply in the format that was asked for; the message says why."""


def rows_of(path: Path) -> Iterator[tuple[str, Row | BadRow]]:
    """Each row with its place (`line 3`, `row 3`, from 1). Raises SourceError where the file itself cannot be read."""
    if path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        for number, line in _lines(path):
            yield f"line {number}", _row(line)
    else:
        number = 0
        for batch in _batches(path):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


def first_columns(path: Path) -> set[str]:
    """Names in the first row; none where the file is empty or its first row is no object."""
    if path.name.endswith(".parquet"):
        return set(_parquet(path).schema_arrow.names)
    row = next(rows_of(path), ("", BadRow()))[1]
    return set() if isinstance(row, BadRow) else set(row)


class _Tokens(msgspec.Struct):
    sample_uuid: str
    token_ids: list[int]
    logprobs: list[float | None]


class _Uuid(msgspec.Struct):
    sample_uuid: str


@dataclass(frozen=True)
class Tokens:
    """Tokens of one reply: `ids` int64 and `logprobs` float32, shape (tokens,), NaN for null; `nulls` counts those."""

    uuid: str
    ids: "np.ndarray[Any, Any]"
    logprobs: "np.ndarray[Any, Any]"
    nulls: int


def uuids_of(path: Path) -> Iterator[str]:
    """Column `sample_uuid`, without reading the tokens beside it."""
    if path.name.endswith(".parquet"):
        for batch in _batches(path, ["sample_uuid"]):
            yield from map(str, batch.column(0).drop_null().to_pylist())
        return
    decoder = msgspec.json.Decoder(_Uuid)
    for _, line in _lines(path):
        try:
            yield decoder.decode(line).sample_uuid
        except msgspec.DecodeError:  # NaN further on; what is no row at all, `tokens_of` names
            row = _row(line)
            if not isinstance(row, BadRow) and isinstance(row.get("sample_uuid"), str):
                yield row["sample_uuid"]


def tokens_of(path: Path) -> Iterator[tuple[str, Tokens | BadRow]]:
    """`sample_uuid`, `token_ids` and `logprobs` of each row."""
    if path.name.endswith(".parquet"):
        number = 0
        for batch in _batches(path, ["sample_uuid", "token_ids", "logprobs"]):
            for uuid, ids, logprobs in zip(*batch.columns, strict=True):
                number += 1
                nulls = logprobs.values.null_count if logprobs.is_valid else 0
                yield f"row {number}", _tokens(uuid.as_py(), _values(ids), _values(logprobs), nulls)
        return
    decoder = msgspec.json.Decoder(_Tokens)
    for number, line in _lines(path):
        try:
            found = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            row = _row(line)  # the slow reader knows NaN
            yield f"line {number}", row if isinstance(row, BadRow) else _loose_tokens(row)
        else:
            yield f"line {number}", _tokens(found.sample_uuid, found.token_ids, found.logprobs)


def _loose_tokens(row: Row) -> Tokens | BadRow:
    return _tokens(row.get("sample_uuid"), row.get("token_ids"), row.get("logprobs"))


def _values(scalar: Any) -> Any:
    return scalar.values.to_numpy(zero_copy_only=False) if scalar.is_valid else None


def _tokens(uuid: Any, ids: Any, logprobs: Any, nulls: int | None = None) -> Tokens | BadRow:
    if not isinstance(uuid, str) or ids is None or logprobs is None:
        return BadRow("has no sample_uuid, token_ids or logprobs")
    try:
        numbers, values = np.asarray(ids, dtype=np.float64), np.asarray(logprobs, dtype=np.float32)
    except (TypeError, ValueError) as error:
        return BadRow(f"its token_ids or logprobs are no numbers ({error})")
    if numbers.ndim != 1 or numbers.shape != values.shape:
        return BadRow(f"has {numbers.size} token ids for {values.size} logprobs")
    if not ((numbers >= 0) & (numbers < 2**31) & (numbers % 1 == 0)).all():
        return BadRow("holds a token id that cannot be one")
    return Tokens(uuid, numbers.astype(np.int64), values, logprobs.count(None) if nulls is None else nulls)


def _row(line: bytes) -> Row | BadRow:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:  # bare NaN and lone surrogates need the slow reader
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            return BadRow(f"is no JSON ({error})")
    return row if isinstance(row, dict) else BadRow(f"is no JSON object but {type(row).__name__}")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that hold something, with their numbers; they end at \\n only, never at U+2028."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.removeprefix(b"\xef\xbb\xbf")
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path} cannot be read after line {number}: {error}. Nothing was imported.") from error


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    try:
        yield from _parquet(path).iter_batches(batch_size=_BATCH, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path} cannot be read as Parquet: {error}. Nothing was imported.") from error


def _parquet(path: Path) -> pq.ParquetFile:
    if not path.name.endswith(".parquet"):
        raise SourceError(f"{path} is no .jsonl, .jsonl.gz or .parquet file; convert it to one of these.")
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path} cannot be read as Parquet: {error}. Nothing was imported.") from error
