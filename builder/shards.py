"""Shards of a run: N processes at once, on any number of hosts, each on whole prompts of its own.

Tables do not depend on N: a part may hold rows of several shards, because N changes from call to call.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from builder.claim import Claim, claimed
from builder.store import Run, where, write_parquet

if TYPE_CHECKING:
    import polars as pl  # 44 MB once it was used: not for `generate`, nor for processes that compute features

Shard = tuple[int, int]
"""Index, from 0, and count."""


def in_shard(prompt_id: str, shard: Shard) -> bool:
    """Whether the shard holds this prompt: by the first 8 hex digits of its id."""
    index, count = shard
    return count == 1 or int(prompt_id[:8], 16) % count == index


def of_shard(shard: Shard) -> "pl.Expr":
    """`in_shard` of a frame's column prompt_id."""
    import polars as pl

    index, count = shard
    if count == 1:
        return pl.lit(value=True)
    return pl.col("prompt_id").str.head(8).str.to_integer(base=16) % count == index


def shard_rows(rows: pa.Table, shard: Shard) -> pa.Table:
    """Rows of the shard, by their column prompt_id."""
    if shard[1] == 1:
        return rows
    prompts: list[Any] = rows["prompt_id"].to_pylist()
    return where(rows, [in_shard(prompt, shard) for prompt in prompts])


def rewriting(run: Run) -> AbstractContextManager[Claim]:
    """Alone with what rewrites parts that are there, while inside; parts that come are everybody's."""
    return claimed(run, "parts", wait=True)


def drop_rows(
    run: Run, table: str, gone: Callable[[pa.Table], Sequence[bool]], columns: Sequence[str] = ("response_id",)
) -> None:
    """Take rows out of a table, part by part, each by rename, while other shards do the same.

    `gone` says for each of some rows whether it goes, from these columns; it must name rows of the own shard alone, so
    that no other shard loses what it has just written. One process rewrites parts at a time, and reads what the one
    before it left: else a row that one took out would come back with the other's copy of its part.
    """
    if not any(any(gone(rows)) for _, rows in run.by_part(table, list(columns))):
        return
    with rewriting(run):
        for part, rows in run.by_part(table):
            goes = gone(rows)
            if any(goes):
                write_parquet(where(rows, [not one for one in goes]), part)
