"""Rows of one config in two releases: added, removed, changed, moved, and how their numbers shift. Out of core.

Each side becomes a table of a key and one 64-bit hash a column; texts are read once and never held.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import duckdb

from builder.diff_manifest import Row
from builder.errors import ReleaseError

_KEYS: Final = (("response_id",), ("chosen", "rejected"), ("prompt_id",), ("uuid",))
"""Columns that name a row, by what a config has; where it has none of them, the whole row is its name."""
_NUMBERS: Final = (
    "student_tokens", "completion_tokens", "teacher_sentences", "sentence_count", "mean_delta", "gap",
)  # fmt: skip
_GROUPS: Final = ("domain", "temperature", "policy")
_FACTS: Final = ("response_id", "prompt_id", "uuid", "domain", "temperature", "policy", "student_tokens")
_TEXTS: Final = (
    "prompt", "input", "completion", "output", "reasoning", "answer", "solution", "chosen", "rejected",
)  # fmt: skip
_EXCERPT: Final = 300
_SETTINGS: Final[dict[str, str | bool | int | float | list[str]]] = {
    # each thread holds a row group: 8 of them, at 100 MB, run out of 1 GB
    "threads": 2,
    "memory_limit": "1500MB",
    "preserve_insertion_order": False,
    "python_enable_replacements": False,
}


@dataclass(frozen=True)
class RowDiff:
    """How the rows of one config differ. Columns are compared where both sides have them.

    `key`: the columns that say which rows are the same one; none where the whole row does. `schema`: column and its
    SQL type on each side, for those that differ. `moved`: rows of which only `position` changed; `changed`: other
    content. `columns`: rows by column that differs in them. `numbers`: column, mean and median of each side. `groups`:
    column, value, rows of each side. `samples`: rows only in one, the first by md5 of their key.
    """

    key: tuple[str, ...]
    schema: tuple[Mapping[str, Any], ...]
    unchanged: int
    added: int
    removed: int
    changed: int
    moved: int
    columns: Mapping[str, int]
    numbers: tuple[Mapping[str, Any], ...]
    groups: tuple[Mapping[str, Any], ...]
    samples: tuple[Mapping[str, Any], ...]

    @property
    def is_same(self) -> bool:
        """Whether both sides have the same rows in the same columns."""
        return not (self.schema or self.added or self.removed or self.changed or self.moved)


def compare_rows(a: Sequence[Path], b: Sequence[Path], sample: int) -> RowDiff:
    """Rows of these Parquet files against rows of those; `sample` of the added and of the removed ones are quoted.

    Rows of equal keys are paired, equal content first, so that repeated keys are neither lost nor counted twice.
    Takes about 1 GB of memory, at most 2, and spills beyond that. Raises ReleaseError.
    """
    with _opened({"a": a, "b": b}) as connection:
        types = {side: _types(connection, side) for side in "ab"}
        shared = [name for name in types["a"] if name in types["b"]]
        key = _key_columns(shared)
        named_by = _key(key or shared)
        for side in "ab":
            hashes = [_hashed(name, types["a"][name], types["b"][name]) for name in shared]
            columns = [f"{named_by} as key", *(f"{sql} as c{place}" for place, sql in enumerate(hashes))]
            connection.execute(f"create table keys_{side} as select {', '.join(columns)} from rows_{side}")
        for side, other in (("a", "b"), ("b", "a")):
            order = ", ".join(f"c{place}" for place in range(len(shared))) or "key"
            connection.execute(
                f"create table left_{side} as select *, row_number() over (partition by key order by {order}) as place "
                f"from (from keys_{side} except all from keys_{other})"
            )
        return RowDiff(
            key=key,
            schema=tuple(
                {"column": name, "type_a": types["a"].get(name), "type_b": types["b"].get(name)}
                for name in [*types["a"], *(name for name in types["b"] if name not in types["a"])]
                if types["a"].get(name) != types["b"].get(name)
            ),
            **_counts(connection, shared),
            numbers=_numbers(connection, types),
            groups=_groups(connection, types),
            samples=tuple(
                row
                for side, other in (("a", "b"), ("b", "a"))
                for row in _excerpts(connection, side, _unpaired(side, other), named_by, list(types[side]), sample)
            ),
        )


def only_rows(side: str, files: Sequence[Path], sample: int) -> tuple[Mapping[str, Any], ...]:
    """Quotes from a config that only side a or b has. Raises ReleaseError."""
    with _opened({side: files}) as connection:
        names = list(_types(connection, side))
        named_by = _key(_key_columns(names) or names)
        return tuple(_excerpts(connection, side, f"select {named_by} as key from rows_{side}", named_by, names, sample))


@contextmanager
def _opened(sides: Mapping[str, Sequence[Path]]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in a temporary folder with a view `rows_<side>` for each side."""
    try:
        with (
            TemporaryDirectory(prefix="builder-diff-") as folder,
            duckdb.connect(str(Path(folder) / "rows.duckdb"), config=_SETTINGS) as connection,
        ):
            for side, files in sides.items():
                listed = ", ".join(_literal(path) for path in files)
                connection.execute(
                    f"create view rows_{side} as from read_parquet([{listed}], hive_partitioning = false)"
                )
            yield connection
    except (OSError, duckdb.Error) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ReleaseError(
            f"Comparing the rows failed: {reason}. Check that both releases open in builder sql; where the disk is "
            "full, free space or name another folder in TMPDIR; then rerun."
        ) from error


def _literal(path: Path) -> str:
    """A path in SQL; its `[`, `*` and `?` stand for themselves, not for other files."""
    text = re.sub(r"[\[*?]", r"[\g<0>]", str(path.absolute()))
    return "'" + text.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _types(connection: duckdb.DuckDBPyConnection, side: str) -> dict[str, str]:
    found = connection.sql(f"from rows_{side}")
    return {name: str(kind) for name, kind in zip(found.columns, found.types, strict=True)}


def _hashed(name: str, type_a: str, type_b: str) -> str:
    column = _quoted(name)
    if type_a != type_b:
        return f"hash({column}::varchar)"
    # the hash of a list of lists does not depend on where its inner lists end; JSON does
    return f"hash(to_json({column}))" if "(" in type_a or type_a.endswith("]") else f"hash({column})"


def _key_columns(names: Sequence[str]) -> tuple[str, ...]:
    return next((key for key in _KEYS if set(key) <= set(names)), ())


def _key(names: Sequence[str]) -> str:
    """SQL of the text that names a row: the value of one column, or a hash of several."""
    if len(names) == 1:
        return f"coalesce({_quoted(names[0])}::varchar, '')"
    return f"md5(to_json([{', '.join(f'to_json({_quoted(name)})' for name in names)}])::varchar)"


def _ask(connection: duckdb.DuckDBPyConnection, sql: str) -> list[Row]:
    answer = connection.sql(sql)
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]


def _counts(connection: duckdb.DuckDBPyConnection, shared: Sequence[str]) -> dict[str, Any]:
    differs = [f"a.c{place} <> b.c{place}" for place in range(len(shared))]
    content = " or ".join(one for one, name in zip(differs, shared, strict=True) if name != "position") or "false"
    counted = [f"count(*) filter (where {one}) as c{place}" for place, one in enumerate(differs)]
    pairs = _ask(
        connection,
        f"select count(*) as paired, count(*) filter (where {content}) as changed, {', '.join(counted) or '0 as none'} "
        "from left_a as a join left_b as b using (key, place)",
    )[0]
    rows = _ask(
        connection,
        "select (select count(*) from keys_a) as all_a, (select count(*) from left_a) as left_a, "
        "(select count(*) from left_b) as left_b",
    )[0]
    by_column = {name: pairs[f"c{place}"] for place, name in enumerate(shared)}
    return {
        "unchanged": rows["all_a"] - rows["left_a"],
        "added": rows["left_b"] - pairs["paired"],
        "removed": rows["left_a"] - pairs["paired"],
        "changed": pairs["changed"],
        "moved": pairs["paired"] - pairs["changed"],
        "columns": {name: number for name, number in by_column.items() if number},
    }


def _numbers(connection: duckdb.DuckDBPyConnection, types: Mapping[str, Mapping[str, str]]) -> tuple[Row, ...]:
    found: dict[str, Row] = {}
    for side in "ab":
        names = [name for name in _NUMBERS if re.fullmatch(r"\w*INT(EGER)?|FLOAT|DOUBLE", types[side].get(name, ""))]
        if names:
            asked = [f"avg({name}) as {name}_mean, median({name})::double as {name}_median" for name in names]
            row = _ask(connection, f"select {', '.join(asked)} from rows_{side}")[0]
            for name in names:
                numbers = {f"{what}_{side}": row[f"{name}_{what}"] for what in ("mean", "median")}
                found.setdefault(name, {"column": name}).update(numbers)
    empty = dict.fromkeys(("mean_a", "mean_b", "median_a", "median_b"))
    return tuple({"column": name, **empty, **found[name]} for name in _NUMBERS if name in found)


def _groups(connection: duckdb.DuckDBPyConnection, types: Mapping[str, Mapping[str, str]]) -> tuple[Row, ...]:
    groups = []
    for name in _GROUPS:
        sides = [side for side in "ab" if name in types[side]]
        if sides:
            each = " union all ".join(f"select '{side}' as side, {name}::varchar as value from rows_{side}"
                                      for side in sides)  # fmt: skip
            groups += _ask(
                connection,
                f"select '{name}' as column, value, count(*) filter (where side = 'a') as rows_a, "
                f"count(*) filter (where side = 'b') as rows_b from ({each}) group by value "
                "order by count(*) desc, value",
            )
    return tuple(groups)


def _unpaired(side: str, other: str) -> str:
    return f"from left_{side} anti join left_{other} using (key, place) select key"


def _excerpts(
    connection: duckdb.DuckDBPyConnection, side: str, keys: str, named_by: str, names: Sequence[str], sample: int
) -> list[Row]:
    """Rows of the first `sample` keys that the query `keys` gives: which side, what is known, the begin of texts."""
    shown = [name for name in (*_FACTS, *_TEXTS) if name in names] or list(names)
    if not sample or not shown:
        return []
    places = ", ".join(f"c{place}" for place in range(len(shown)))
    found = connection.sql(
        f"with chosen as (select distinct key from ({keys}) order by md5(key), key limit {sample}) "
        f"select {places} from (select {named_by}, {', '.join(map(_quoted, shown))} from rows_{side}) "
        f"as rows(key, {places}) semi join chosen using (key) order by md5(key), key limit {sample}"
    )
    rows = [dict(zip(shown, row, strict=True)) for row in found.fetchall()]
    return [
        {
            "only_in": side,
            "facts": {
                name: value if isinstance(value, int | float) else _begin(value)
                for name, value in row.items()
                if name not in _TEXTS
            },
            "texts": {name: _begin(value) for name, value in row.items() if name in _TEXTS},
        }
        for row in rows
    ]


def _begin(value: Any) -> str | None:
    """The begin of a text, or of the last message of a chat."""
    if isinstance(value, list) and value and isinstance(value[-1], dict) and "content" in value[-1]:
        value = value[-1]["content"]
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…"
