"""`--max-cost`, `--max-tokens-total`, and what `builder status` sees of a call that goes on elsewhere."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from endpoint import Endpoint, endpoint, wait_until

from builder.journal_writer import Journal
from builder.live import Live, duration, rate, running
from builder.status import described
from builder.store import Run
from builder.tally import Tally

QUESTIONS = 20


def builder(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "builder.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"prompt": f"What is {index} + {index}?"} for index in range(QUESTIONS)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(folder: Path, server: Endpoint, **teacher: Any) -> None:
    asked = {"model": "toy", "endpoints": [{"url": server.url, "max_in_flight": 4}], **teacher}
    generation = {"temperatures": [1.0], "samples": 2, "max_tokens": 64}
    selection = {"rules": [], "selector": "random"}
    made = {"name": "toy", "prompts": [{"source": "q.jsonl"}], "teacher": asked, "generation": generation}
    (folder / "toy.yaml").write_text(yaml.safe_dump({**made, "selection": selection}))


def used(folder: Path) -> int:
    rows = Run(folder / "runs/toy").read("responses", ["prompt_tokens", "completion_tokens"])
    return int(rows["prompt_tokens"].sum() + rows["completion_tokens"].sum())


def test_a_limit_on_tokens_ends_the_step_below_it_and_a_larger_one_goes_on(folder: Path) -> None:
    with endpoint() as server:
        recipe(folder, server)
        stopped = builder(folder, "generate", "toy.yaml", "--max-tokens-total", "600")
        assert stopped.returncode == 1
        assert "BudgetError: generate stopped at --max-tokens-total 600" in stopped.stderr
        first = used(folder)
        assert 0 < first <= 600
        assert server.answered == Run(folder / "runs/toy").rows("responses") < 2 * QUESTIONS
        again = builder(folder, "generate", "toy.yaml", "--max-tokens-total", str(first))
        assert again.returncode == 1 and used(folder) == first  # earlier replies count
        assert builder(folder, "generate", "toy.yaml", "--max-tokens-total", "100000").returncode == 0
    assert server.answered == 2 * QUESTIONS


def test_shards_at_once_keep_one_limit_and_a_rerun_takes_what_they_left(folder: Path) -> None:
    command = [sys.executable, "-m", "builder.cli", "run", "toy.yaml", "-q", "--max-tokens-total", "900", "--shard"]
    with endpoint() as server:
        recipe(folder, server)
        both = [subprocess.Popen([*command, f"{index}/2"], cwd=folder, stderr=subprocess.PIPE) for index in range(2)]
        said = [one.communicate()[1].decode() for one in both]
        assert [one.returncode for one in both] == [1, 1]
        assert all("this shard's share of it" in each and "a rerun takes what the other" in each for each in said)
        shared = used(folder)
        assert 0 < shared <= 900
        assert builder(folder, "run", "toy.yaml", "--max-tokens-total", "100000", "--shard", "0/2").returncode == 0
        ended = builder(folder, "run", "toy.yaml", "--max-tokens-total", "100000", "--shard", "1/2")
        assert "shard 1 of 2 is done; when all 2 are, builder run without --shard selects and releases" in ended.stdout
        assert not (folder / "runs/toy/releases").exists()
        assert builder(folder, "run", "toy.yaml").returncode == 0
    assert (folder / "runs/toy/releases").exists()
    assert server.answered == 2 * QUESTIONS


def test_a_limit_on_money_counts_by_the_declared_prices(folder: Path) -> None:
    with endpoint() as server:
        recipe(folder, server)
        refused = builder(folder, "generate", "toy.yaml", "--max-cost", "1")
        assert refused.returncode == 2 and "--max-cost 1 needs prices" in refused.stderr
        assert not server.asks
        recipe(folder, server, prices={"input": 1000.0, "output": 1000.0})
        stopped = builder(folder, "generate", "toy.yaml", "--max-cost", "0.6")
        assert stopped.returncode == 1 and "stopped at --max-cost 0.6" in stopped.stderr
    cost = Run(folder / "runs/toy").read("responses")["cost_usd"].sum()
    assert 0 < cost <= 0.6


def test_status_sees_from_another_terminal_what_goes_on_and_that_it_ended(folder: Path) -> None:
    with endpoint(delay_s=0.6) as server:
        recipe(folder, server)
        going = subprocess.Popen([sys.executable, "-m", "builder.cli", "generate", "toy.yaml", "-q"], cwd=folder)
        wait_until(lambda: bool(running(Run(folder / "runs/toy"))))
        seen = json.loads(builder(folder, "status", "toy.yaml", "--json").stdout)
        assert going.wait(60) == 0
    (state,) = seen["running"]
    assert (state["what"], state["pid"], state["total"]) == ("generate", going.pid, 2 * QUESTIONS)
    words = described(state)
    assert f"generate goes on (process {going.pid})" in words and "in flight" in words and "tokens/s" in words
    assert not json.loads(builder(folder, "status", "toy.yaml", "--json").stdout)["running"]


def test_a_call_that_died_is_not_said_to_go_on(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with Journal(run.journal_dir):
        Live.of(run, "generate", 0).update(Tally(total=3, errors={"busy": 2}))
        (state,) = running(run)
        assert state["total"] == 3 and described(state).endswith("2 × busy")
        (path,) = run.journal_dir.glob("*.live.json")
        whole = path.read_text()
        path.write_text("{torn")
        assert running(run) == []
        path.write_text(whole)
        assert running(run) == [state]
    assert running(run) == []  # however new the file is: its journal has no writer


def test_pace_and_time_left() -> None:
    tally = Tally(total=100, stored_before=20, replies=20, completion_tokens=4000)
    assert rate(tally, 10.0) == (400.0, 30.0)
    assert rate(Tally(total=5), 10.0) == (0.0, None)
    assert rate(tally, 0.0) == (0.0, None)
    assert [duration(seconds) for seconds in (5, 89, 600, 9000)] == ["5 s", "89 s", "10 min", "2.5 h"]
