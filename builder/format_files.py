"""Files of an export: rows of a release by position, sorted in piles; JSON Lines and Parquet; DASD's companion."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.errors import ReleaseError
from builder.format_rows import Row
from builder.schema import LOGPROBS, RELEASE_KINDS
from builder.store import publish_file

_BATCH: Final = 64
"""Rows in memory at once: one of 65,000 tokens takes half a megabyte of text, three with its targets."""
_DEALT: Final = 256
_PILE_BYTES: Final = 256_000_000
"""Rows that are sorted at once. DuckDB sorts such long texts only where its memory holds them (measured with 2.0)."""
_LINE_ENDS: Final = tuple((end.encode(), f"\\u{ord(end):04x}".encode()) for end in ("\u0085", "\u2028", "\u2029"))
"""Line ends that JSON may hold as they are, but at which some readers of lines cut."""
_TOKENS: Final = ("token_ids", "logprob")
COMPANION: Final = pa.schema(
    [("sample_uuid", pa.string()), ("token_ids", pa.list_(pa.int32())), ("logprobs", pa.list_(pa.float32()))]
)
"""Columns of Alibaba-Apsara/Superior-Reasoning-SFT-gpt-oss-120b-Logprob."""


def ordered_rows(files: Sequence[Path], kind: str, logprobs: Sequence[Path], spill: Path) -> Iterator[list[Row]]:
    """Rows of a stage by position, in batches; with files of `logprobs` their `token_ids` and `logprob` beside them.

    Those two are arrays, shape (tokens,), with NaN for null, and None where config logprobs lacks the reply. What does
    not fit into memory at once is dealt to files in `spill` by position and sorted there, one file after the other.
    Raises ReleaseError for foreign columns.
    """
    schema = RELEASE_KINDS[kind]
    held = pa.schema([LOGPROBS.schema.field(name) for name in ("response_id", *_TOKENS)])
    for path, wanted in [*((path, schema) for path in files), *((path, held) for path in logprobs)]:
        _check_columns(path, wanted)
    rank = _ranks(files)
    size = sum(_bytes(path) for path in [*files, *logprobs])
    piles = max(1, -(-size // _PILE_BYTES))
    spill.mkdir()
    dealt = _deal(files, schema, spill / "rows", lambda batch, start: rank[start : start + batch.num_rows], piles)
    tokens: list[Path] = []
    if logprobs:
        names = [one for path in files for one in pq.read_table(path, columns=["response_id"])[0].to_pylist()]
        known = dict(zip(names, rank.tolist(), strict=True))
        tokens = _deal(
            logprobs,
            held,
            spill / "tokens",
            lambda batch, _: np.array([known.get(one, -1.0) for one in batch.column("response_id").to_pylist()]),
            piles,
        )
    for place, pile in enumerate(dealt):
        yield from _sorted(pile, tokens[place] if tokens else None)
    shutil.rmtree(spill)


def _ranks(files: Sequence[Path]) -> np.ndarray:
    """Place of each row in the order of positions, as a share of all rows: 0 ≤ rank < 1, shape (rows,)."""
    found = [pq.read_table(path, columns=["position"])["position"].to_numpy() for path in files]
    positions = np.concatenate(found)
    rank = np.empty(len(positions))
    rank[np.argsort(positions, kind="stable")] = np.arange(len(positions)) / max(1, len(positions))
    return rank


def _bytes(path: Path) -> int:
    """Uncompressed bytes of a file."""
    metadata = pq.read_metadata(path)
    return sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))


def _deal(
    files: Sequence[Path], schema: pa.Schema, folder: Path, rank_of: Callable[[Any, int], np.ndarray], piles: int
) -> list[Path]:
    """Rows of `files` in as many files by rank; those of negative rank in none."""
    folder.mkdir()
    paths = [folder / f"{pile:05d}.arrow" for pile in range(piles)]
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_file(str(path), schema, options=options)) for path in paths]
        start = 0
        for path in files:
            for batch in pq.ParquetFile(path).iter_batches(_DEALT, columns=schema.names):
                pile = np.floor(rank_of(batch, start) * piles).astype(np.int64)
                start += batch.num_rows
                for place in np.unique(pile[pile >= 0]).tolist():
                    writers[place].write(batch.filter(pa.array(pile == place)).cast(schema))
    return paths


def _sorted(path: Path, tokens: Path | None) -> Iterator[list[Row]]:
    """Rows of one pile by position, with those of its tokens."""
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all().combine_chunks().sort_by("position")
    held: dict[str, tuple[Any, ...]] = {}
    if tokens is not None:
        with pa.memory_map(str(tokens)) as file:
            columns = pa.ipc.open_file(file).read_all().combine_chunks()
        ids = columns["response_id"].to_pylist()
        held = dict(zip(map(str, ids), zip(*(columns[name] for name in _TOKENS), strict=True), strict=True))
    for batch in table.to_batches(max_chunksize=_BATCH):
        rows: list[Row] = batch.to_pylist()
        if tokens is not None:
            for row in rows:
                found = held.get(row["response_id"], (None, None))
                row.update(zip(_TOKENS, map(_values, found), strict=True))
        yield rows


def _values(scalar: Any) -> Any:
    return scalar.values.to_numpy(zero_copy_only=False) if scalar is not None and scalar.is_valid else None


def _check_columns(path: Path, schema: pa.Schema) -> None:
    found = pq.read_schema(path)
    for wanted in schema:
        other = found.field(wanted.name).type if wanted.name in found.names else None
        if other != wanted.type:
            raise ReleaseError(
                f"{path} has {other or 'nothing'} where a release has {wanted.type}: column {wanted.name}. It was "
                "released by another version of tempered; use that one."
            )


class Lines:
    """JSON Lines: UTF-8, one object a line, no line end inside of one for any reader."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")
        self.encoder = msgspec.json.Encoder()

    def put(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        for row in rows:
            line = self.encoder.encode(row)
            for end, escaped in _LINE_ENDS:
                line = line.replace(end, escaped)
            self.file.write(line + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.file.close()
        if kind is None:
            publish_file(self.path, self.path)


class Parquet:
    """Parquet of the given columns, a row group a batch; `table` makes Arrow of rows, which is their list otherwise."""

    def __init__(self, path: Path, schema: pa.Schema, table: Any = None) -> None:
        self.path, self.schema = path, schema
        self.table = table or (lambda rows: pa.Table.from_pylist(rows, schema=schema))
        self.writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=3)

    def put(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        if rows:
            self.writer.write_table(self.table(rows))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.writer.close()
        if kind is None:
            publish_file(self.path, self.path)


def write_companion(files: Sequence[Path], ids: set[str], path: Path) -> int:
    """Teacher tokens of the replies `ids` in DASD's companion columns; of how many there are any.

    Those whose endpoint gave logprobs without token ids have none: the columns are one list beside the other.
    """
    wanted = pa.array(sorted(ids), pa.string())
    held = 0
    with pq.ParquetWriter(path, COMPANION, compression="zstd", compression_level=3) as writer:
        for source in files:
            _check_columns(source, pa.schema([LOGPROBS.schema.field(name) for name in ("response_id", *_TOKENS)]))
            for batch in pq.ParquetFile(source).iter_batches(_BATCH, columns=["response_id", *_TOKENS]):
                tokens, values = (pc.list_value_length(batch.column(name)) for name in _TOKENS)
                whole = pc.and_(pc.equal(tokens, values), pc.greater(tokens, pa.scalar(0)))  # null is dropped, too
                found = batch.filter(pc.and_(whole, pc.is_in(batch.column("response_id"), value_set=wanted)))
                held += found.num_rows
                writer.write_table(pa.table(found.columns, schema=COMPANION))
    publish_file(path, path)
    return held
