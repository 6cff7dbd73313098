"""`--engine ray` on a real cluster of three nodes: the same tables as on one machine, whatever dies meanwhile."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import score_toys
import yaml
from endpoint import Ask, Endpoint, endpoint, wait_until

from builder import journal
from builder.release import latest_release
from builder.store import Run

pytest.importorskip("ray", reason="Ray is not installed: pip install 'tempered[ray]'")

CHILD = Path(__file__).with_name("cluster_child.py")
PROMPTS, SAMPLES = 15, 2
KEY = "key-of-the-cluster-tests"


@dataclass
class Cluster:
    process: "subprocess.Popen[str]"
    address: str
    folder: Path

    def order(self, what: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "ok\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    errors = tmp_path_factory.mktemp("cluster") / "stderr"
    with errors.open("w") as said:
        process = started("cluster", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)
    assert process.stdin is not None and process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, errors.read_text()
        found = json.loads(line)
        yield Cluster(process, found["address"], Path(found["folder"]))
    finally:
        process.stdin.close()
        try:
            process.wait(20)
        finally:
            with_children(process, signal.SIGKILL)
            process.stdout.close()
            process.wait()


def started(*arguments: str, address: str | None = None, **streams: Any) -> "subprocess.Popen[str]":
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OPENAI_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    if address:
        environment["RAY_ADDRESS"] = address
    program = [str(CHILD)] if arguments[0] in ("cluster", "devices") else ["-m", "builder.cli"]
    command = [sys.executable, *program, *arguments]
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **streams)


def with_children(process: "subprocess.Popen[str]", number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@dataclass
class Ended:
    code: int
    result: dict[str, Any]
    stderr: str


@contextmanager
def stepping(cluster: Cluster | None, name: str, recipe: Path, root: Path, *more: str) -> Iterator[Any]:
    """The command as a process of its own; call what this gives for its end."""
    engine = "ray" if cluster else "local"
    arguments = (name, str(recipe), "--run", str(root), "--json", "--engine", engine, *more)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = started(*arguments, address=cluster and cluster.address, **pipes)

    def ended() -> Ended:
        out, err = process.communicate(timeout=120)
        return Ended(process.returncode, json.loads(out) if out.strip() else {}, err)

    ended.process = process  # type: ignore[attr-defined]
    try:
        yield ended
    finally:
        with_children(process, signal.SIGKILL)
        process.communicate()


def stepped(cluster: Cluster | None, name: str, recipe: Path, root: Path, *more: str) -> Ended:
    with stepping(cluster, name, recipe, root, *more) as ended:
        return ended()


def written(folder: Path, server: Endpoint, **changes: Any) -> Path:
    """A recipe of 30 requests, three in flight at each worker."""
    folder.mkdir(exist_ok=True)
    questions = folder / "questions.jsonl"
    rows = [{"prompt": f"What is {number} + {number}?", "gold": str(2 * number)} for number in range(PROMPTS)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "name": "toy",
        "prompts": [{"source": str(questions), "prompt": "prompt", "gold": "gold", "gold_type": "number"}],
        "teacher": {"model": "toy", "endpoints": [{"url": server.url, "max_in_flight": 2}]},
        "generation": {"temperatures": [0.6], "samples": SAMPLES, "max_tokens": 64},
        "selection": {"selector": "random", "rules": []},
        **changes,
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def body(ask: Ask) -> str:
    return json.dumps(ask.body, sort_keys=True)


def rowset(root: Path) -> list[str]:
    release = latest_release(Run(root))
    assert release is not None
    return [stage["rowset_hash"] for stage in release.manifest["schedule"]]


def workers_of(root: Path) -> list[int]:
    """Processes that write a shard of this run."""
    states = (json.loads(path.read_text()) for path in (root / "journal").glob("*.live.json"))
    return [state["pid"] for state in states]


def test_a_run_on_a_cluster_asks_each_request_once_and_releases_the_rows_of_a_local_run(
    cluster: Cluster, tmp_path: Path
) -> None:
    with endpoint() as server:
        recipe = written(tmp_path, server)
        spread = stepped(cluster, "run", recipe, tmp_path / "ray")
        assert spread.code == 0, spread.stderr
        asked = Counter(map(body, server.asks))
        assert len(asked) == PROMPTS * SAMPLES and set(asked.values()) == {1}
        assert {ask.authorization for ask in server.asks} == {f"Bearer {KEY}"}
        local = stepped(None, "run", recipe, tmp_path / "local")
    assert local.code == 0, local.stderr
    assert rowset(tmp_path / "ray") == rowset(tmp_path / "local")
    counted = ("total", "replies", "stored_before", "prompt_tokens", "completion_tokens", "cost_usd", "failed")
    assert [spread.result["generate"][name] for name in counted] == [local.result["generate"][name] for name in counted]
    assert spread.result["verify"] == local.result["verify"]
    assert spread.result["ray"]["shards"] == 3 and not spread.result["ray"]["lost"]


def test_no_key_stands_in_what_ray_writes(cluster: Cluster, tmp_path: Path) -> None:
    with endpoint() as server:
        ended = stepped(cluster, "generate", written(tmp_path, server), tmp_path / "run")
        assert server.asks[0].authorization == f"Bearer {KEY}"
    assert ended.code == 0, ended.stderr
    logs = [path for path in cluster.folder.rglob("*") if path.is_file()]
    assert logs and not [path for path in logs if KEY.encode() in path.read_bytes()]


def test_actors_score_as_one_process_does_to_the_last_bit(cluster: Cluster, student: Path, tmp_path: Path) -> None:
    """Five shards for three actors, so that one holds its student for more than one of them."""
    asked = [score_toys.prompt(f"{number:08x}") for number in range(10)]
    replies = [
        score_toys.reply(f"{row['prompt_id']}-{i}", prompt_id=row["prompt_id"], reasoning=reasoning, answer=answer)
        for row in asked
        for i, (reasoning, answer) in enumerate(score_toys.TEXTS)
    ]
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(yaml.safe_dump(score_toys.recipe(student).resolved()), encoding="utf-8")
    one, spread = (score_toys.make_run(tmp_path / name, replies, prompts=asked) for name in ("one", "spread"))
    local = stepped(None, "score", recipe, one.root)
    ended = stepped(cluster, "score", recipe, spread.root, "--shards", "5")
    assert (local.code, ended.code) == (0, 0), local.stderr + ended.stderr
    assert len(spread.parts("scores")) == 5
    for table in ("scores", "sentences"):
        first, other = (run.read(table).sort("response_id") for run in (one, spread))
        assert first.equals(other) and first.height == len(replies)
    assert {name: ended.result["score"][name] for name in local.result["score"]} == local.result["score"]


@pytest.mark.faults
@pytest.mark.parametrize("loss", ["worker", "node"])
def test_a_shard_goes_on_elsewhere_when_its_worker_or_node_dies(cluster: Cluster, tmp_path: Path, loss: str) -> None:
    root = tmp_path / "run"
    with endpoint(delay_s=0.7) as server, stepping(cluster, "generate", written(tmp_path, server), root) as end:
        wait_until(lambda: server.answered >= 9 and len(workers_of(root)) == 3)
        if loss == "worker":
            os.kill(workers_of(root)[-1], signal.SIGKILL)
        else:
            cluster.order("remove")
        ended = end()
        times = Counter(map(body, server.asks))
    if loss == "node":
        cluster.order("add")
    assert ended.code == 0, ended.stderr
    assert len(ended.result["ray"]["lost"]) == 1 and "maybe_billed" in ended.stderr
    counts = journal.counts(root / "journal")
    assert len(times) == counts["reply"] == PROMPTS * SAMPLES
    assert sum(times.values()) - len(times) == counts["maybe_billed"] <= 2  # no more than were in flight
    assert Run(root).rows("responses") == PROMPTS * SAMPLES


@pytest.mark.faults
def test_after_ctrl_c_replies_in_flight_are_stored_and_nothing_more_is_sent(cluster: Cluster, tmp_path: Path) -> None:
    root = tmp_path / "run"
    with endpoint(delay_s=0.7) as server, stepping(cluster, "generate", written(tmp_path, server), root) as end:
        wait_until(lambda: server.answered >= 9)
        end.process.send_signal(signal.SIGINT)
        ended = end()
        assert len(server.asks) == server.answered < PROMPTS * SAMPLES
    assert ended.code == 130, ended.stderr
    assert journal.counts(root / "journal") == {"reply": len(server.asks)}
    assert Run(root).rows("responses") == len(server.asks)


def test_an_error_of_one_shard_is_one_message_with_its_node(cluster: Cluster, tmp_path: Path) -> None:
    with endpoint(model="another") as server:
        ended = stepped(cluster, "generate", written(tmp_path, server), tmp_path / "run")
    assert ended.code == 1
    assert ended.stderr.count("serves another, not") == 1 and "shards 0, 1, 2 of 3 on" in ended.stderr
    assert ended.stderr.startswith("EndpointError: ") and "Traceback" not in ended.stderr


def test_an_address_where_no_cluster_answers_is_refused_at_once(tmp_path: Path) -> None:
    with endpoint() as server:
        nobody = Cluster(None, "127.0.0.1:1", tmp_path)  # type: ignore[arg-type]
        ended = stepped(nobody, "generate", written(tmp_path, server), tmp_path / "run")
        assert not server.asks
    assert ended.code == 2 and "127.0.0.1:1" in ended.stderr and "Traceback" not in ended.stderr


def test_a_score_actor_gets_the_gpu_of_its_node_and_there_are_as_many_as_gpus(cluster: Cluster, tmp_path: Path) -> None:
    local = {"student": {"model": "org/student", "revision": "0" * 40}}
    with endpoint() as server:
        recipe = written(tmp_path, server, **local)
    cluster.order("remove")
    cluster.order("gpus")
    child = started("devices", str(recipe), str(tmp_path / "run"), address=cluster.address, stdout=subprocess.PIPE)
    said, _ = child.communicate(timeout=60)
    cluster.order("remove")
    cluster.order("add")
    assert json.loads(said) == {"places": [1, 1, 1], "devices": "0"}
