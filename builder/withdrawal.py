"""What a release leaves out for good: prompts and replies by id, in this version and in all later ones."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import polars as pl

from builder.config import Recipe
from builder.errors import ReleaseError
from builder.store import Run

_IDS: Final = ("prompt_id", "response_id", "grain_id", "chosen_id", "rejected_id", "prefix_response_id")
"""Columns of tables whose row goes where they name what is withdrawn."""


def withdrawn(run: Run, recipe: Recipe, parent: Mapping[str, Any] | None) -> tuple[list[str], list[str]]:
    """Ids that this version leaves out, sorted: the recipe's and those of the version before, as `parent` lists them;
    and what to know of them.

    An id that this run does not hold stays on the list: a later import may bring its row. Raises ReleaseError where it
    is nearly an id that the run does hold: misspelt, it would leave that row in.
    """
    before = set(parent.get("withdrawn", [])) if parent else set()
    named = set(recipe.release.withdrawn) - before
    known = (
        run.ids("prompts", "prompt_id") | run.ids("responses", "prompt_id") | run.ids("responses") if named else set()
    )
    unknown = sorted(named - known)
    near = _nearest(unknown, known)
    if near:
        listed = ", ".join(f"{one} (did you mean {other}?)" for one, other in list(near.items())[:5])
        raise ReleaseError(
            f"release.withdrawn names {len(near)} ids that are neither prompts nor replies of this run, but nearly so: "
            f"{listed}. Misspelt, an id leaves its row in the release. Correct it, or take it out."
        )
    warnings = (
        [f"{len(unknown):,} ids of release.withdrawn are not in this run, such as {unknown[0]}"] if unknown else []
    )
    return sorted(before | named), warnings


def _nearest(unknown: Sequence[str], known: Collection[str]) -> dict[str, str]:
    """For each unknown id one that it may stand for: all but a few characters are the same, or it is the beginning."""
    ends: dict[str, list[str]] = {}
    for one in known if unknown else ():
        for end in {f"{one[:4]}…", f"…{one[-4:]}"}:
            ends.setdefault(end, []).append(one)
    found = {}
    for one in unknown:
        alike = ends.get(f"{one[:4]}…", []) + ends.get(f"…{one[-4:]}", [])
        whole = [other for other in alike if other.startswith(one)]
        if near := whole or difflib.get_close_matches(one, alike, n=1, cutoff=0.8):
            found[one] = near[0]
    return found


def without(run: Run, ids: Collection[str]) -> Run:
    """The run as if these prompts and replies had never been, replies that go on from a withdrawn one among them."""
    return _Without(run, ids) if ids else run


class _Without(Run):
    """Reads only: the rows of every table that do not belong to what is withdrawn."""

    def __init__(self, run: Run, ids: Collection[str]) -> None:
        super().__init__(run.root)
        of_these = pl.any_horizontal(
            pl.col(name).is_in(list(ids)) for name in ("prompt_id", "response_id", "prefix_response_id")
        )
        replies = run.scan("responses").filter(of_these.fill_null(value=False)).select("response_id")
        self._gone = pl.concat([pl.Series("id", list(ids)), replies.collect()["response_id"].rename("id")]).unique()

    def scan(self, name: str, *, paths_as: str | None = None) -> pl.LazyFrame:
        frame = super().scan(name, paths_as=paths_as)
        gone = self._gone.to_frame().lazy()
        for column in (one for one in _IDS if one in self.schema(name).names):
            key = pl.col(column)
            if column == "grain_id":  # of a pair: chosen id, colon, rejected id
                frame = frame.with_columns(_parts=key.str.split(":"), _row=pl.int_range(pl.len()))
                hit = frame.explode("_parts").join(gone, left_on="_parts", right_on="id", how="semi").select("_row")
                frame = frame.join(hit, on="_row", how="anti", maintain_order="left").drop("_parts", "_row")
            else:
                frame = frame.join(gone, left_on=key, right_on="id", how="anti", maintain_order="left")
        if name == "selection":  # places without gaps
            frame = frame.with_columns(position=(pl.col("position").rank("ordinal").over("stage") - 1).cast(pl.Int32))
        return frame
