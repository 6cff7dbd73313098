"""A run that is killed with SIGKILL, again and again, ends with the very bits of one that was not."""

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from trainer_toys import stage_rows, write_release

from trainer import plan, train

SETTINGS = (
    "defaults.num_train_epochs=3", "defaults.per_device_train_batch_size=2", "defaults.gradient_accumulation_steps=2",
    "defaults.save_strategy=steps", "defaults.save_steps=2", "defaults.save_total_limit=2", "defaults.logging_steps=3",
    "defaults.lr_scheduler_type=cosine",
)  # fmt: skip
EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.symlink", "os.listdir"}


def go(release: Path, student: Path, output: Path, *overrides: str) -> list[train.Finished]:
    job = plan.Job(str(release), str(student), output, "smoke", (*SETTINGS, *overrides))
    return train.run(job)


def until_killed(paths: tuple[Path, Path, Path], overrides: tuple[str, ...], life: int | None, counted: Path) -> None:
    """Train in a process that kills itself at the `life`-th thing it does to files or to weights; None for never."""
    import torch

    torch.set_num_threads(1)
    left, seen = [life], [0]

    def tick() -> None:
        seen[0] += 1
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: Any) -> None:
        if event in EVENTS and str(paths[2]) in str(arguments[0]):
            tick()

    step = train.ScheduledTrainer.training_step

    def counting(self: Any, *arguments: Any, **more: Any) -> Any:
        tick()
        return step(self, *arguments, **more)

    train.ScheduledTrainer.training_step = counting
    sys.addaudithook(hook)
    go(*paths, *overrides)
    counted.write_text(str(seen[0]))


def live(spawner: Any, *arguments: Any) -> int | None:
    process = spawner.Process(target=until_killed, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode is not None, "a run hangs"
    return int(process.exitcode)


def undisturbed(spawner: Any, student: Path, folder: Path, overrides: tuple[str, ...]) -> tuple[Path, int]:
    """A release below `folder`, the output of a run that nobody disturbs, and how many things that run does."""
    release = write_release(folder / "v1", {"first": stage_rows(0, 14), "second": stage_rows(100, 9)})
    assert live(spawner, (release, student, folder / "whole"), overrides, None, folder / "count") == 0
    return release, int((folder / "count").read_text())


def content(output: Path) -> dict[str, Any]:
    """What a run leaves, less what a restart may change: nothing but the time."""
    found = {path.relative_to(output).as_posix(): path for path in sorted(output.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items()}


@pytest.mark.parametrize(
    ("kills", "epochs", "seed"),
    [(4, 3, 1), *(pytest.param(20, 15, seed, marks=pytest.mark.faults) for seed in range(3))],
)
def test_a_run_killed_again_and_again_equals_one_that_was_not(
    spawner: Any, student: Path, tmp_path: Path, kills: int, epochs: int, seed: int
) -> None:
    overrides = (f"defaults.num_train_epochs={epochs}",)
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
