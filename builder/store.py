"""The run directory: the only place that knows its paths and its Parquet options."""

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from builder.columns import column
from builder.errors import TableError
from builder.schema import TABLES, Table

if TYPE_CHECKING:
    import polars as pl

_TOKEN_ENCODINGS: Final = {
    "token_ids": "PLAIN",
    "token_end": "DELTA_BINARY_PACKED",
    "logprob": "BYTE_STREAM_SPLIT",
}
Check = Callable[[Path, Path], None]
_NO_LINKS: Final = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
_PART = re.compile(r"^part-(\d{3})-(\d{5})\.parquet$")


class _TakenError(Exception):
    """Another process has made a part of this name."""


class Run:
    """A run directory (design: recipe.yaml, journal/, tables/, run.duckdb, releases/, eval/, report.html)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def journal_dir(self) -> Path:
        return self.root / "journal"

    @property
    def database(self) -> Path:
        return self.root / "run.duckdb"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def eval_dir(self) -> Path:
        return self.root / "eval"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def table_dir(self, name: str) -> Path:
        return self.root / "tables" / name

    def remember(self, given: str, resolved: Mapping[str, Any]) -> None:
        """Keep the recipe as given and with all defaults, so that the folder explains itself."""
        write_text(given, self.root / "recipe.yaml")
        write_text(yaml.safe_dump(dict(resolved), sort_keys=False, allow_unicode=True), self.root / "resolved.yaml")

    def event(self, step: str, values: Mapping[str, Any]) -> None:
        """Add one line to events.jsonl: when a step ended and with what. Raises TableError when the disk refuses."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"time": now, "step": step, **values}, ensure_ascii=False, default=str)
        path = self.root / "events.jsonl"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                if file.tell() and not _ends_in_newline(file):  # a crash tore the line before
                    line = "\n" + line
                file.write(f"{line}\n".encode("utf-8", "replace"))
        except OSError as error:
            raise _refused(path, error) from error

    def rows(self, name: str) -> int:
        """Rows of a table, from the footers of its parts."""
        return sum(pq.read_metadata(part).num_rows for part in self.parts(name))

    def parts(self, name: str) -> list[Path]:
        """Part files of a table in order of their names; empty where the table was never written."""
        folder = self.table_dir(name)
        return sorted(path for path in folder.glob("part-*.parquet") if _PART.match(path.name))

    def append(self, name: str, rows: pa.Table, *, shard: int = 0, check: Check | None = None) -> Path | None:
        """Add one part. It appears whole, after its bytes are on disk, in no other part's place. No rows, no part.

        Two processes may append under one shard: who comes second takes the next number. `check(temporary, part)` sees
        the finished file under its temporary name, again where the number was taken; what it raises leaves no part.
        """
        if rows.num_rows == 0:
            return None
        rows, number = _cast(rows, TABLES[name].schema), 0
        while True:
            taken = [match for part in self.parts(name) if (match := _PART.match(part.name)) and int(match[1]) == shard]
            number = max([number, *(int(match[2]) + 1 for match in taken)])
            path = self.table_dir(name) / f"part-{shard:03d}-{number:05d}.parquet"
            try:
                write_parquet(rows, path, check, publish=publish_new)
            except _TakenError:
                number += 1
            else:
                return path

    def replace(self, name: str, rows: pa.Table) -> None:
        """Make `rows` the whole table, as one part that takes the old one's place in a single rename.

        For tables that are always replaced: parts that `append` made go after the rename, one by one.
        """
        only = self.table_dir(name) / "part-000-00000.parquet"
        write_parquet(_cast(rows, TABLES[name].schema), only)
        for part in self.parts(name):
            if part != only:
                part.unlink()

    def scan(self, name: str, *, paths_as: str | None = None) -> "pl.LazyFrame":
        """The table, lazily; empty where it was never written. Raises TableError on a foreign schema.

        `paths_as` names a further column: the path of the part that a row stands in.
        """
        import polars as pl  # 44 MB once it was used: not for `generate`

        parts = self.parts(name)
        if not parts:
            empty: Any = pl.from_arrow(TABLES[name].schema.empty_table())
            return pl.LazyFrame(empty).with_columns(*([pl.lit("").alias(paths_as)] if paths_as else []))
        for part in parts:
            check_schema(TABLES[name], part)
        return pl.scan_parquet(parts, glob=False, include_file_paths=paths_as)  # a run may lie in a folder named a[1]

    def schema(self, name: str) -> pa.Schema:
        """Schema of a table."""
        return TABLES[name].schema

    def content_columns(self, name: str) -> list[str]:
        """Columns of a table that enter a row hash."""
        return TABLES[name].content_columns

    def ids(self, name: str, column: str = "response_id") -> set[str]:
        """Distinct values of an id column."""
        return set(self.scan(name).select(column).unique().collect()[column].to_list())

    def columns(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """The table, or some of its columns, as Arrow; empty where it was never written.

        Raises TableError on a foreign schema.
        """
        return pa.concat_tables([self._no_rows(name, columns), *(rows for _, rows in self.by_part(name, columns))])

    def by_part(self, name: str, columns: list[str] | None = None) -> Iterator[tuple[Path, pa.Table]]:
        """Part after part and its rows, or some of their columns, as Arrow. Raises TableError on a foreign schema."""
        schema = self._no_rows(name, columns).schema
        for part in self.parts(name):
            check_schema(TABLES[name], part)
            yield part, _cast(_read_part(part, schema.names).select(schema.names), schema)

    def _no_rows(self, name: str, columns: list[str] | None) -> pa.Table:
        return columns_table(name, []).select(columns or self.schema(name).names)

    def read(self, name: str, columns: Iterable[str] | None = None) -> "pl.DataFrame":
        """The table in memory; `columns` picks some. Each part is read as it was or as it is, where others rewrite it:

        polars opens a path twice when it scans, and panics where the file was replaced in between; this opens it once.
        """
        import polars as pl

        return pl.DataFrame(self.columns(name, None if columns is None else list(columns)))


def check_schema(table: Table, part: Path) -> None:
    """Raise TableError when a part lacks a column, holds it in another type, or has one that the table lacks."""
    try:
        found = pq.read_schema(part)
    except (OSError, pa.ArrowException) as error:
        raise TableError(
            f"{part} cannot be read as Parquet ({error}). Table {table.name} is incomplete without it. "
            "Restore the file from a backup, or delete it and rerun the step that makes the table."
        ) from error
    types = dict(zip(table.schema.names, table.schema.types, strict=True))
    for name in [*types, *found.names]:
        wanted, other = types.get(name), found.field(name).type if name in found.names else None
        if wanted != other:
            raise TableError(
                f"{part} has {other or 'nothing'} where table {table.name} has {wanted or 'nothing'}: column {name}. "
                "It was written by another version; move the table's folder away and rerun the step that makes it. "
                "Replies whose raw bodies are in the journal come back without a request; builder generate names the "
                "parts of the others and stops."
            )


def where(rows: pa.Table, stays: list[bool]) -> pa.Table:
    """The rows that stay."""
    return rows.filter(column(stays, pa.bool_()))


def _read_part(part: Path, columns: list[str] | None = None) -> pa.Table:
    """Rows of a part. Not by `pyarrow.parquet.read_table`, which loads pandas, 50 MB."""
    with pq.ParquetFile(part) as file:
        return file.read(columns=columns)


def _cast(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows in this very schema. What is in it already stays: a cast loads Arrow's library of computations."""
    return rows if rows.schema.equals(schema, check_metadata=True) else rows.cast(schema)


def write_parquet(
    rows: pa.Table, path: Path, check: Check | None = None, *, publish: Callable[[Path, Path], None] | None = None
) -> None:
    """Write beside, sync, rename: the file is whole or not there. Raises TableError when the disk refuses."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            rows, temporary, compression="zstd", compression_level=3, row_group_size=50_000, **_encodings(rows)
        )
        if check is not None:
            check(temporary, path)
        (publish or publish_file)(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _refused(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _encodings(rows: pa.Table) -> dict[str, Any]:
    """Token columns without a dictionary: their numbers hardly repeat. Measured on replies of 16,000 tokens, zstd-3:
    5.2 bytes a token in place of 8.9, at half the time.
    """
    given = {f"{name}.list.element": _TOKEN_ENCODINGS[name] for name in rows.column_names if name in _TOKEN_ENCODINGS}
    others = [name for name in rows.column_names if name not in _TOKEN_ENCODINGS]
    return {"column_encoding": given, "use_dictionary": others} if given else {}


def write_text(text: str, path: Path) -> None:
    """Write a small text file by rename. Raises TableError when the disk refuses."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        publish_file(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _refused(path, error) from error


def _ends_in_newline(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _refused(path: Path, error: OSError) -> TableError:
    """The error for a disk that refuses a write."""
    return TableError(
        f"Writing {path} failed: {error}. Nothing was lost: what was there before is untouched. "
        "Free space or mend the disk, then rerun the same command."
    )


def publish_file(temporary: Path, path: Path) -> None:
    """Sync a finished file and rename it into place, durable across a power cut."""
    _sync(temporary)
    temporary.replace(path)
    sync_directory(path.parent)


def publish_new(temporary: Path, path: Path) -> None:
    """The same, and no file is replaced. Raises _TakenError where there is one.

    A rename would replace a part that another process has made since the look for a free name; a link does not. On a
    disk without links the name is taken by an empty file beside, which a crash may leave: that number is left out then.
    """
    _sync(temporary)
    try:
        os.link(temporary, path)
    except FileExistsError:
        if not path.samefile(temporary):  # else the answer to a network disk's first try was lost
            raise _TakenError from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_new(temporary, path)
    temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def _rename_new(temporary: Path, path: Path) -> None:
    mine = path.with_name(f".{path.name}.taken")
    try:
        os.close(os.open(mine, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        raise _TakenError from None
    try:
        if path.exists():
            raise _TakenError
        temporary.replace(path)
    finally:
        mine.unlink()


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def file_sha256(path: Path) -> str:
    """64 hex digits of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_directory(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Delete a folder and what is in it."""
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            remove_tree(child)
        else:
            child.unlink()
    folder.rmdir()


def columns_table(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of a table as Arrow, in its schema; raises TableError with the value that does not fit.

    A list may be a numpy array; NaN in an array of floats stands for null.
    """
    schema = TABLES[name].schema
    try:
        return pa.Table.from_arrays(
            [column([row.get(field.name) for row in rows], field.type) for field in schema], schema=schema
        )
    except (pa.ArrowException, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise TableError(
            f"Rows do not fit table {name}: {error}. This is a defect of tempered; please report it."
        ) from error
