"""Prompts that a release holds out of training: all replies to them, at every temperature and in every stage."""

from typing import Final

import polars as pl

from builder.errors import ReleaseError
from builder.identity import order_key

TRAIN: Final = "train"
HELD_OUT: Final = "validation"
SPLITS: Final = (TRAIN, HELD_OUT)
_DIGITS: Final = 8


def is_held_out(prompt_id: str, share: float, seed: int) -> bool:
    """Whether this prompt is held out: the first 8 hex digits of `md5('held-out:' || prompt_id || ':' || seed)`, as a
    number over 16⁸, are below `share`.

    That hangs on the prompt alone, so prompts that come later move none. Positions, and the prompts of a mix, follow
    `md5(prompt_id || ':' || seed)`: by the same hash the held-out prompts would be the very first of those.
    """
    return int(order_key(f"held-out:{prompt_id}", seed)[:_DIGITS], 16) < share * 16**_DIGITS


def sides(stage: str, rows: pl.DataFrame, share: float, seed: int) -> dict[str, pl.DataFrame]:
    """Rows of a stage by split, by their `prompt_id`; all of them in `train` where nothing is held out.

    Raises ReleaseError where one side of a stage with rows would have none.
    """
    if not share or rows.is_empty():
        return {TRAIN: rows}
    prompts = rows["prompt_id"].drop_nulls().unique()
    held = pl.Series([one for one in prompts if is_held_out(one, share, seed)], dtype=pl.String)
    is_held = pl.col("prompt_id").is_in(held.implode()).fill_null(value=False)
    found = {TRAIN: rows.filter(~is_held), HELD_OUT: rows.filter(is_held)}
    empty = [split for split, part in found.items() if part.is_empty()]
    if empty:
        which = "all" if empty == [TRAIN] else "none"
        lost = "there would be nothing to train on" if empty == [TRAIN] else "no held-out loss could be measured"
        raise ReleaseError(
            f"Stage {stage!r} would have no rows in split {empty[0]!r}: release.held_out = {share:g} holds out {which} "
            f"of its {len(prompts):,} prompts, so {lost}. Select more prompts for it, or change release.held_out; 0 "
            "holds out none."
        )
    return found
