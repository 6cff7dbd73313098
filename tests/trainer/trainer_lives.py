"""Runs in processes of their own: two that train together, one that is killed, and what they leave."""

import faulthandler
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from trainer import cli, plan, train

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.symlink", "os.listdir"}


def rank(argv: list[str], shared: dict[str, str], number: str, said: Path) -> None:
    os.environ |= shared | {"RANK": number, "LOCAL_RANK": number}
    torch.set_num_threads(1)
    sys.argv = ["trainer", *argv]
    with said.open("w", encoding="utf-8") as sys.stdout:
        cli.main()


def launch(spawner: Any, release: Path, student: Path, output: Path, *overrides: str) -> list[Any]:
    """The run in two processes over gloo, as `accelerate launch` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = ["run", "--dataset", release, "--model", student, "--output", output, "--recipe", "smoke", "--json"]
    usual = ("defaults.per_device_train_batch_size=2", "defaults.num_train_epochs=2")
    command = [*map(str, arguments), *usual, *overrides]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    said = [output.with_suffix(f".{number}") for number in "01"]
    ranks = [spawner.Process(target=rank, args=(command, shared, path.suffix[1:], path)) for path in said]
    for process in ranks:
        process.start()
    return ranks


def finish(ranks: list[Any], output: Path) -> str:
    """What the first process prints; the other prints nothing."""
    for process in ranks:
        process.join(200)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert output.with_suffix(".1").read_text() == ""
    return output.with_suffix(".0").read_text()


def until_killed(paths: tuple[Path, Path, Path], overrides: tuple[str, ...], life: int | None, counted: Path) -> None:
    """Train in a process that kills itself at the `life`-th thing it does to files or to weights; None for never."""
    faulthandler.enable()  # a process that ends by another signal says where
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

    step = Trainer.training_step

    def counting(self: Any, *arguments: Any, **more: Any) -> Any:
        tick()
        return step(self, *arguments, **more)

    Trainer.training_step = counting
    sys.addaudithook(hook)
    train.run(plan.Job(str(paths[0]), str(paths[1]), paths[2], "smoke", overrides))
    counted.write_text(str(seen[0]))


def live(spawner: Any, *arguments: Any) -> int | None:
    process = spawner.Process(target=until_killed, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode is not None, "a run hangs"
    return int(process.exitcode)


def content(output: Path) -> dict[str, Any]:
    """What a run leaves, less what a restart may change: nothing but the time."""
    found = {path.relative_to(output).as_posix(): path for path in sorted(output.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items()}
