"""Sample order: pure, complete, and the same everywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import schedule
from trainer.errors import RecipeError, ReleaseError
from trainer.schedule import Stage


def entry(stage: str, init: str = "previous") -> Stage:
    fields = {"config": stage, "kind": "sft", "rows": 1, "tokens": None, "rowset_hash": "0" * 64, "epochs": None}
    return Stage.model_validate({"stage": stage, "init": init, **fields})


@given(rows=st.integers(0, 200), epoch=st.integers(0, 5), seed=st.integers(-9, 10**9))
def test_every_epoch_takes_every_row_once(rows: int, epoch: int, seed: int) -> None:
    assert sorted(schedule.epoch_order(rows, epoch, seed)) == list(range(rows))


@given(rows=st.integers(0, 200), seed=st.integers())
def test_first_epoch_follows_position(rows: int, seed: int) -> None:
    assert schedule.epoch_order(rows, 0, seed) == list(range(rows))


def test_later_epochs_are_pinned() -> None:
    assert schedule.epoch_order(6, 1, 42) == schedule.epoch_order(6, 1, 42)
    assert schedule.epoch_order(6, 1, 42) == PINNED
    assert schedule.epoch_order(6, 2, 42) != PINNED
    assert schedule.epoch_order(6, 2, 41) == PINNED  # seed + epoch


PINNED = [1, 2, 0, 5, 4, 3]


def test_init_resolves_to_a_stage_or_the_base() -> None:
    entries = [entry("a"), entry("b"), entry("c", "base"), entry("d", "a"), entry("e", "previous")]
    assert [stage.init for stage in schedule.stages(entries)] == ["base", "a", "base", "a", "d"]
    assert [stage.directory for stage in schedule.stages(entries)][:2] == ["1-a", "2-b"]


def test_until_ends_the_schedule() -> None:
    entries = [entry("a"), entry("b"), entry("c")]
    assert [stage.name for stage in schedule.stages(entries, until="b")] == ["a", "b"]
    with pytest.raises(RecipeError, match="a, b, c"):
        schedule.stages(entries, until="d")


@pytest.mark.parametrize("entries", [[entry("a", "b"), entry("b")], [entry("a"), entry("a")]])
def test_init_of_a_later_stage_and_repeated_names_are_refused(entries: list[Stage]) -> None:
    with pytest.raises(ReleaseError):
        schedule.stages(entries)


@pytest.mark.parametrize(
    ("samples", "epochs", "batch", "accumulation", "steps"),
    [(12, 2, 8, 1, 4), (12, 1.5, 4, 1, 5), (100, 1, 2, 16, 4), (100, 1, 8, 16, 1), (1, 3, 64, 8, 3)],
)
def test_steps_are_counted_as_the_trainer_counts_them(
    samples: int, epochs: float, batch: int, accumulation: int, steps: int
) -> None:
    assert schedule.optimizer_steps(samples, epochs, batch, accumulation) == steps
