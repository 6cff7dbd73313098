"""A run that is killed with SIGKILL, again and again, ends with the very bits of one that was not."""

import random
import signal
from pathlib import Path
from typing import Any

import pytest
from trainer_lives import content, live
from trainer_toys import stage_rows, write_release

SETTINGS = (
    "defaults.num_train_epochs=3", "defaults.per_device_train_batch_size=2", "defaults.gradient_accumulation_steps=2",
    "defaults.save_strategy=steps", "defaults.save_steps=2", "defaults.save_total_limit=2", "defaults.logging_steps=3",
    "defaults.lr_scheduler_type=cosine",
)  # fmt: skip


def undisturbed(spawner: Any, student: Path, folder: Path, overrides: tuple[str, ...]) -> tuple[Path, int]:
    """A release below `folder`, the output of a run that nobody disturbs, and how many things that run does."""
    release = write_release(folder / "v1", {"first": stage_rows(0, 14), "second": stage_rows(100, 9)})
    assert live(spawner, (release, student, folder / "whole"), overrides, None, folder / "count") == 0
    return release, int((folder / "count").read_text())


@pytest.mark.parametrize(
    ("kills", "epochs", "seed"),
    [(4, 3, 1), *(pytest.param(20, 15, seed, marks=pytest.mark.faults) for seed in range(3))],
)
def test_a_run_killed_again_and_again_equals_one_that_was_not(
    spawner: Any, student: Path, tmp_path: Path, kills: int, epochs: int, seed: int
) -> None:
    overrides = (*SETTINGS, f"defaults.num_train_epochs={epochs}")
    release, things = undisturbed(spawner, student, tmp_path, overrides)
    chance, went_on = random.Random(seed), 0
    for _ in range(kills):
        # Long enough for a checkpoint or two, too short for all of the rest.
        life = chance.randrange(30, things // 3 if kills < 10 else 130)
        code = live(spawner, (release, student, tmp_path / "out"), overrides, life, tmp_path / "count")
        assert code == -signal.SIGKILL, "it ended before it could be killed"
        went_on += any((tmp_path / "out").glob(".*.partial/checkpoint-*"))
    assert went_on >= kills // 3
    assert live(spawner, (release, student, tmp_path / "out"), overrides, None, tmp_path / "count") == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")
