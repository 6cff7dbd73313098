"""`teacher.batch` killed with SIGKILL at every operation of net and disk, and gone on with: nothing is billed twice."""

import json
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import HERE, Spawner, in_parallel, line

from builder.rowset import rowset_hash
from builder.store import Run

sys.path.append(str(HERE.parent / "builder"))

from loopback_batches import Batches, batch_server

DIES = 137
WANTED = 8


def order(folder: Path, server: Batches, **fault: Any) -> dict[str, Any]:
    """`builder generate` of two questions, sent in batches of at most four."""
    folder.mkdir(exist_ok=True)
    (folder / "q.jsonl").write_text("".join(json.dumps({"prompt": f"What is {n} + {n}?"}) + "\n" for n in range(2)))
    given = {
        "name": "toy",
        "prompts": [{"source": str(folder / "q.jsonl")}],
        "teacher": {
            "model": "toy",
            "revision": "r1",
            "endpoints": [{"url": server.url}],
            "batch": {"max_requests": 4, "poll_s": 0.01},
        },
        "generation": {"samples": 2, "max_tokens": 64},
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(given))
    argv = ["generate", str(folder / "toy.yaml"), "--run", str(folder / "run"), "--quiet"]
    return {"argv": argv, "folder": str(folder), "log": str(folder / "log"), "out": str(folder / "out"), **fault}


def content(folder: Path) -> dict[str, str]:
    run = Run(folder / "run")
    return {name: rowset_hash(run.read(name), run.content_columns(name)) for name in ("responses", "logprobs")}


def one(folder: Path, spawner: Spawner, calm: dict[str, str], where: str, kind: str, at: int) -> bool:
    """That death in a run of its own, and the run that goes on; whether it came to pass."""
    with batch_server() as server:
        fault = order(folder, server, kind=kind, at=at, disk=where == "disk", net=where == "net")
        code = spawner.run(fault)
        said = (folder / "out").read_text(errors="replace")
        assert code in (0, DIES), f"{where} {kind} at {at}: {said}"
        assert spawner.run(order(folder, server)) == 0, (
            f"{where} {kind} at {at}: {(folder / 'out').read_text(errors='replace')}"
        )
        assert set(server.billed.values()) == {1}, f"{where} {kind} at {at}: {server.billed}"
        assert len(server.billed) == WANTED
        assert content(folder) == calm
    return code == DIES


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("where", "kind", "step"), [("net", "exit", 1), ("net", "exit-after", 1), ("disk", "exit", 2)])
def test_a_kill_at_every_operation_bills_each_request_once_and_makes_the_same_tables(
    spawners: list[Spawner], tmp_path: Path, where: str, kind: str, step: int
) -> None:
    table = line(f"batches, {where}: {kind}, one operation after the other")
    with batch_server() as server:
        assert spawners[0].run(order(tmp_path / "calm", server)) == 0, (tmp_path / "calm" / "out").read_text()
    calm, numbers, through, wrong = content(tmp_path / "calm"), count(1, step), [], []

    def loop(spawner: Spawner) -> Callable[[], None]:
        def act() -> None:
            while not through:
                at = next(numbers)
                try:
                    if not one(tmp_path / f"{at:03d}", spawner, calm, where, kind, at):
                        through.append(at)
                except AssertionError as error:
                    wrong.append(str(error))
                table.more()

        return act

    in_parallel([loop(spawner) for spawner in spawners], len(spawners))
    assert not wrong, "\n\n".join(wrong)
    assert through[0] > 12
