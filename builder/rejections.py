"""Table `rejections`, one part a rule: a rule whose file, parameters and tables are the same is not asked again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from builder.code_rules import CodeFile
from builder.errors import TableError
from builder.evidence import tables_of
from builder.identity import canonical_json, sha256_hex
from builder.schema import TABLES
from builder.selection_steps import Plan
from builder.sqlfile import SqlFile
from builder.staging import STAGED
from builder.store import Run, check_schema, write_parquet

_MADE_FROM: Final = b"made_from"
_TABLE: Final = "rejections"
_FORMAT: Final = 1
_CANDIDATES: Final = "stg_candidates"
# Views read parts when they are asked, and nothing says what these hold; that one reads copied tables alone.
_VIEWS: Final = frozenset(staged.name for staged in STAGED if staged.view) - {_CANDIDATES}
_COPIED: Final = frozenset(staged.name for staged in STAGED if not staged.view)


def made_from(plan: Plan, staged: Mapping[str, Any]) -> dict[str, str]:
    """What decides each rule's rows, as a hash by the rule's name; Python and rules that read other views have none.

    `staged` says what the tables of run.duckdb were made from (`builder.staging.sources`).
    """
    keys = {}
    for rule in plan.rules:
        tables = None if isinstance(rule, CodeFile) else _tables(rule, staged)
        if tables is not None:
            params = {one.name: plan.variables[one.name] for one in rule.parameters if one.name in plan.variables}
            decides = [_FORMAT, duckdb.__version__, rule.name, rule.sha256, params, tables]
            keys[rule.name] = sha256_hex(canonical_json(decides))
    return keys


def _tables(rule: SqlFile, staged: Mapping[str, Any]) -> dict[str, Any] | None:
    read = tables_of(rule) & staged.keys()
    if read & _VIEWS:
        return None
    if _CANDIDATES in read:
        read |= _COPIED
    return {name: staged[name] for name in sorted(read | {"stg_responses"})}  # whose roles say which rows count


def known(run: Run, keys: Mapping[str, str]) -> dict[str, Path]:
    """Parts of the table that hold a rule's rows as they would come again, by the rule's name."""
    wanted = {key: name for name, key in keys.items()}
    found = {}
    for part in run.parts(_TABLE):
        key = _key(part)
        if key in wanted:
            found[wanted[key]] = part
    return found


def drop_foreign(run: Run) -> None:
    """Remove parts that another version wrote with other columns: they are made again by what calls this."""
    for part in run.parts(_TABLE):
        try:
            check_schema(TABLES[_TABLE], part)
        except TableError:
            part.unlink()


def _key(part: Path) -> str | None:
    """What a part was made from. None where it cannot be read: it is made anew."""
    try:
        said = pq.read_schema(part).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    return said[_MADE_FROM].decode() if _MADE_FROM in said else None


def write(run: Run, keys: Mapping[str, str], kept: Mapping[str, Path], fresh: Mapping[str, pa.Table]) -> None:
    """Make the table hold the parts `kept` and a new one of each rule in `fresh`, and nothing else.

    Not in one rename: the caller makes sure that nobody takes a half-changed table for a whole one.
    """
    before = run.parts(_TABLE)
    taken = {int(part.stem.rpartition("-")[2]) for part in before}
    free = (number for number in range(len(taken) + len(fresh)) if number not in taken)
    schema = TABLES[_TABLE].schema
    for name, rows in fresh.items():
        said = {**(schema.metadata or {}), **({_MADE_FROM: keys[name].encode()} if name in keys else {})}
        write_parquet(
            rows.cast(schema).replace_schema_metadata(said),
            run.table_dir(_TABLE) / f"part-000-{next(free):05d}.parquet",
        )
    for part in before:
        if part not in kept.values():
            part.unlink()
