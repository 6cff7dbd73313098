"""Rows of a large table in another order, within bounded memory: one pass over the table, spilled to disk by place.

Ids are hashes, so the rows of a release stand anywhere in the tables of its run. Each wanted row goes to a file that
holds a run of neighbouring places; read in turn, these files give the rows in order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from builder.store import Run

_SPILL_BYTES: Final = 64_000_000
"""Bytes of a spilled file, about: that many, and what is made of them, are in memory at a time."""
_MOST_FILES: Final = 400
"""Spilled files that are open at once; each holds more where that many would not do."""
_KEY: Final = "response_id"


class Gathered:
    """Some columns of a table, for several lists of response ids (`wanted`, by name), each in its order.

    Lists of the same length come in chunks of the same lengths. `folder` must exist; files in it go as they are read.
    `progress` gets the rows of the table that were read, and how many it has.
    """

    def __init__(
        self,
        run: Run,
        table: str,
        columns: Sequence[str],
        wanted: Mapping[str, pl.Series],
        folder: Path,
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self._table, self._wanted, self._folder, self._columns = table, wanted, folder, [_KEY, *columns]
        self._empty = pl.DataFrame(pl.from_arrow(run.schema(table).empty_table())).select(self._columns)
        rows, size = _extent(run.parts(table), self._columns)
        each = size / max(1, rows)
        room = max(_SPILL_BYTES, each * sum(map(len, wanted.values())) / _MOST_FILES)
        self._chunks = {name: max(1, int(room / max(1, each))) for name in wanted}
        self._files: dict[int, Path] = {}
        self._first: dict[str, int] = {}
        batch_size = max(1, int(_SPILL_BYTES / 2 / max(1, each)))
        progress(0, rows)
        self._spill(run.parts(table), self._places(), batch_size, lambda done: progress(done, rows))

    def _places(self) -> pl.DataFrame:
        """Which file each id goes to; an id that several files hold, or one file needs twice, once a file."""
        frames, file = [pl.DataFrame(schema={_KEY: pl.String, "file": pl.Int64})], 0
        for name, ids in self._wanted.items():
            self._first[name] = file
            frames.append(
                pl.DataFrame({_KEY: ids, "file": pl.int_range(len(ids), eager=True) // self._chunks[name] + file})
            )
            file += -(-len(ids) // self._chunks[name])
        return pl.concat(frames).unique()

    def _spill(self, parts: Sequence[Path], places: pl.DataFrame, batch_size: int, seen: Callable[[int], None]) -> None:
        writers: dict[int, Any] = {}
        files: list[Any] = []
        done = 0
        try:
            for part in parts:
                with pq.ParquetFile(part) as source:
                    for batch in source.iter_batches(batch_size=batch_size, columns=self._columns):
                        rows: Any = pl.from_arrow(pa.Table.from_batches([batch]))
                        hits = rows.join(places, on=_KEY, how="inner").select("file", *self._columns)
                        for (file,), found in hits.partition_by("file", as_dict=True, include_key=False).items():
                            table = found.to_arrow(compat_level=pl.CompatLevel.oldest())
                            if file not in writers:
                                self._files[file] = self._folder / f"{self._table}-{file}.arrow"
                                files.append(self._files[file].open("wb"))
                                writers[file] = pa.ipc.new_stream(files[-1], table.schema)
                            writers[file].write_table(table)
                        done += batch.num_rows
                        seen(done)
            for writer in writers.values():
                writer.close()
        finally:
            for open_file in files:
                open_file.close()

    def of(self, name: str) -> Iterator[pl.DataFrame]:
        """The rows of one list in its order, chunk after chunk; null in all columns but the id where there is none."""
        ids = self._wanted[name]
        for number, start in enumerate(range(0, len(ids), self._chunks[name])):
            chunk = ids.slice(start, self._chunks[name]).alias(_KEY).to_frame()
            path = self._files.pop(self._first[name] + number, None)
            found: Any = self._empty
            if path is not None:
                with path.open("rb") as file:
                    found = pl.from_arrow(pa.ipc.open_stream(file).read_all())
                path.unlink()
            yield chunk.join(found, on=_KEY, how="left", maintain_order="left")


def _extent(parts: Sequence[Path], columns: Sequence[str]) -> tuple[int, int]:
    """Rows of parts, and the bytes of some of their columns, by the footers."""
    rows = size = 0
    for part in parts:
        metadata = pq.read_metadata(part)
        rows += metadata.num_rows
        for group in range(metadata.num_row_groups):
            chunks = (metadata.row_group(group).column(index) for index in range(metadata.num_columns))
            size += sum(one.total_uncompressed_size for one in chunks if one.path_in_schema.split(".")[0] in columns)
    return rows, size
