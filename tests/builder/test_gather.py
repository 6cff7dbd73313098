"""Rows in another order than the table's: whatever the parts, the lists and the size of what is spilled."""

from pathlib import Path

import polars as pl
import pytest
from score_toys import reply

from builder import gather
from builder.gather import Gathered
from builder.store import Run, columns_table

NAMES = [f"r{number:02d}" for number in range(23)]
LISTS = {"all": NAMES[::-1], "some": ["r07", "none", "r03", "r22"], "twice": ["r01", "r02", "r01", "r01"], "": []}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Replies in three parts, in an order of their own."""
    made = Run(tmp_path / "run")
    rows = [reply(name, "p", reasoning=f"Why {name}?", answer=None if name == "r03" else name) for name in NAMES]
    for shard in range(3):
        made.append("responses", columns_table("responses", rows[shard::3]), shard=shard)
    return made


@pytest.mark.parametrize("spill_bytes", [1, 500, 10**9])
@pytest.mark.parametrize("most_files", [1, 3, 400])
def test_every_list_comes_in_its_order_with_its_rows(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spill_bytes: int, most_files: int
) -> None:
    monkeypatch.setattr(gather, "_SPILL_BYTES", spill_bytes)
    monkeypatch.setattr(gather, "_MOST_FILES", most_files)
    wanted = {name: pl.Series(ids, dtype=pl.String) for name, ids in LISTS.items()}
    rows = Gathered(run, "responses", ["prompt_id", "reasoning", "answer"], wanted, tmp_path)
    assert len(list(tmp_path.glob("*.arrow"))) <= max(most_files, 1) + len(LISTS)
    for name, ids in LISTS.items():
        found = [row for part in rows.of(name) for row in part.iter_rows()]
        assert found == [
            (one, None, None, None) if one == "none" else (one, "p", f"Why {one}?", None if one == "r03" else one)
            for one in ids
        ]
    assert list(tmp_path.glob("*.arrow")) == []


def test_two_lists_of_one_length_come_in_chunks_of_the_same_lengths(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "_SPILL_BYTES", 300)
    wanted = {"one": pl.Series(NAMES), "two": pl.Series(["r05"] * len(NAMES))}
    rows = Gathered(run, "responses", ["answer"], wanted, tmp_path)
    lengths = [[part.height for part in rows.of(name)] for name in wanted]
    assert lengths[0] == lengths[1] and len(lengths[0]) > 2


def test_a_table_that_was_never_written_gives_nulls(tmp_path: Path) -> None:
    rows = Gathered(Run(tmp_path / "none"), "responses", ["answer"], {"a": pl.Series(["x"])}, tmp_path)
    assert [part.rows() for part in rows.of("a")] == [[("x", None)]]
