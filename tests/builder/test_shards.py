"""Shards at once over one run directory, each in a process of its own: the tables do not tell how many there were."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import judge_toys
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from endpoint import Ask, Endpoint, endpoint, reply_to, wait_until

from builder.config import Recipe
from builder.identity import prompt_id
from builder.release import release
from builder.schema import FEATURES
from builder.selection import select
from builder.shards import drop_rows, in_shard, of_shard, shard_rows
from builder.store import Run, columns_table

PROMPTS, EACH = 14, 4
"""Prompts, and replies to each: two samples at two temperatures."""
ALL = ["generate", "score", "verify", "features", "signatures"]
KEYS = {
    "responses": ["response_id"],
    "logprobs": ["response_id"],
    "scores": ["response_id", "student_id"],
    "sentences": ["response_id", "student_id"],
    "verdicts": ["response_id", "verifier"],
    "features": ["response_id"],
    "signatures": ["response_id"],
}
WORDS = ["so", "we", "add", "the", "first", "to", "the", "second", "and", "see", "that", "it", "is", "right"]


@dataclass
class Shards:
    """The process that forks shards."""

    process: "subprocess.Popen[str]"

    def start(self, orders: list[dict[str, Any]]) -> list[int]:
        """Process ids."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(orders) + "\n")
        self.process.stdin.flush()
        return self._read()

    def end(self) -> list[int]:
        """Exit codes, minus the signal where one killed it."""
        return self._read()

    def run(self, orders: list[dict[str, Any]]) -> list[int]:
        self.start(orders)
        return self.end()

    def _read(self) -> list[int]:
        assert self.process.stdout is not None
        found: list[int] = json.loads(self.process.stdout.readline())
        return found


@pytest.fixture(scope="module")
def shards() -> Iterator[Shards]:
    command = [sys.executable, str(Path(__file__).with_name("shard_child.py"))]
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "2"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=os.environ | settings, **pipes) as process:
        yield Shards(process)
        process.kill()


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    rows = [{"prompt": f"What is {n} + {n}?", "gold": str(2 * n), "gold_type": "number"} for n in range(PROMPTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def knowing(ask: Ask) -> bytes:
    """Sentences of several tokens each; of every four answers three are right."""
    body = ask.body
    digest = hashlib.sha256(json.dumps([body["messages"], body["seed"], body["temperature"]]).encode()).digest()
    words = [f" {WORDS[byte % len(WORDS)]}" + ("." if place % 5 == 4 else "") for place, byte in enumerate(digest[:20])]
    gold = 2 * int(ask.question.split()[2])
    tokens = ["<think>\n", *words, "\n</think>\n\n", str(gold + (digest[20] % 4 == 0)), "<|im_end|>"]
    said = reply_to(body)
    choice = said["choices"][0]
    choice["message"] = {"role": "assistant", "reasoning": "".join(words), "content": tokens[-2]}
    choice["finish_reason"] = "stop"
    choice["logprobs"] = {
        "content": [
            {"token": token, "logprob": -(byte % 8) / 8, "bytes": list(token.encode())}
            for token, byte in zip(tokens, digest, strict=False)
        ]
    }
    choice.pop("token_ids", None)
    said["usage"]["completion_tokens"] = len(tokens)
    return json.dumps(said).encode()


def recipe_of(questions: Path, server: Endpoint, **more: Any) -> dict[str, Any]:
    return {
        "name": "toy",
        "prompts": [{"source": str(questions)}],
        "teacher": {
            "model": "toy",
            "revision": "r",
            "tokenizer": str(questions.parent),  # a folder without one: no Hub is asked
            "endpoints": [{"url": server.url, "max_in_flight": 3}],
        },
        "generation": {"temperatures": [0.6, 1.0], "samples": 2, "max_tokens": 64},
        "student": {"model": "org/student", "revision": "5" * 40},
        "selection": {"rules": ["answer_wrong", "response_near_duplicate", "score_missing"]},
        "stages": {"sft": {}},
        "release": {"license": "mit"},
        **more,
    }


def orders(run: Run, recipe: dict[str, Any], count: int, steps: list[str] = ALL, **more: Any) -> list[dict[str, Any]]:
    given = {"run": str(run.root), "recipe": yaml.safe_dump(recipe), "steps": steps, **more}
    return [given | {"shard": [index, count]} for index in range(count)]


def hashes(run: Run, recipe: dict[str, Any]) -> tuple[str, str]:
    """Of the run's release: build_id and rowset_hash; nothing stands twice in any table on the way."""
    for name, key in KEYS.items():
        rows = run.read(name, key)
        assert rows.height == rows.unique().height, f"{name} holds rows twice"
        assert rows.select("response_id").n_unique() == PROMPTS * EACH, f"{name} lacks rows"
    given = Recipe.model_validate(recipe)
    manifest = release(run, given, select(run, given)).manifest
    (stage,) = manifest["schedule"]
    assert 0 < stage["rows"] < PROMPTS * EACH
    return manifest["build_id"], stage["rowset_hash"]


@pytest.fixture(scope="module")
def alone(shards: Shards, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What one process makes."""
    run = Run(tmp_path_factory.mktemp("alone"))
    with endpoint(script=knowing) as server:
        recipe = recipe_of(questions, server)
        assert shards.run(orders(run, recipe, 1)) == [0]
        return hashes(run, recipe)


@pytest.mark.parametrize("counts", [[2], [7], [2, 7, 3]], ids=str)
def test_any_number_of_shards_makes_one_release_and_pays_for_each_reply_once(
    shards: Shards, questions: Path, alone: tuple[str, str], tmp_path: Path, counts: list[int]
) -> None:
    """With several counts, the next one goes on where the one before had done a part of the prompts."""
    run = Run(tmp_path / "run")
    with endpoint(script=knowing) as server:
        recipe = recipe_of(questions, server)
        for done, count in enumerate(counts, start=1):
            limit = None if done == len(counts) else PROMPTS * done // len(counts)
            assert shards.run(orders(run, recipe, count, limit=limit)) == [0] * count
        assert len(server.asks) == PROMPTS * EACH
        assert not any(ask.before for ask in server.asks)
        assert hashes(run, recipe) == alone
        assert len(server.asks) == PROMPTS * EACH


def test_hosts_whose_clocks_differ_by_days_make_the_same_release(
    shards: Shards, questions: Path, alone: tuple[str, str], tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    with endpoint(script=knowing) as server:
        recipe = recipe_of(questions, server)
        given = [order | {"clock_s": skew} for order, skew in zip(orders(run, recipe, 3), (-1e6, 0, 1e6), strict=True)]
        assert shards.run(given) == [0] * 3
        assert len(server.asks) == PROMPTS * EACH
        received = run.read("responses", ["received_at"])["received_at"]
        assert (received.max() - received.min()).total_seconds() > 1e6  # type: ignore[operator, union-attr]
        assert hashes(run, recipe) == alone


def test_shards_that_are_killed_lose_nothing_and_others_notice_nothing(
    shards: Shards, questions: Path, alone: tuple[str, str], tmp_path: Path
) -> None:
    """One of three is killed amid its replies, another before a second part of verdicts; then one of scores."""
    run = Run(tmp_path / "run")
    with endpoint(script=knowing, delay_s=0.02) as server:
        recipe = recipe_of(questions, server)
        given = orders(run, recipe, 3)
        given[2]["die_at"] = "verdicts"
        pids = shards.start(given)
        wait_until(lambda: len(server.asks) >= 15)
        os.kill(pids[1], signal.SIGKILL)
        assert shards.end() == [0, -9, -9]
        given = orders(run, recipe, 3)
        given[1]["die_at"] = "scores"
        assert shards.run(given) == [0, -9, 0]
        assert shards.run(orders(run, recipe, 2)) == [0, 0]
        assert len(server.asks) <= PROMPTS * EACH + 3, "more than what was in flight was asked again"
        assert hashes(run, recipe) == alone


def filled(questions: Path, shards: Shards, root: Path, steps: list[str]) -> tuple[Run, dict[str, Any]]:
    """A run with all replies, and what one process made of them."""
    run = Run(root)
    with endpoint(script=knowing) as server:
        recipe = recipe_of(questions, server)
        assert shards.run(orders(run, recipe, 1, ["generate", *steps])) == [0]
    return run, recipe


def test_a_new_verifier_replaces_verdicts_that_shards_share_in_one_part(
    shards: Shards, questions: Path, tmp_path: Path
) -> None:
    """All parts are the first process's, so each shard takes its rows out of the parts of the others."""
    run, recipe = filled(questions, shards, tmp_path / "run", ["verify"])
    for number in range(3):
        version = f"v{number}"
        assert shards.run(orders(run, recipe, 3 + number, ["verify"], version=version)) == [0] * (3 + number)
        rows = run.read("verdicts")
        assert rows.select("response_id", "verifier").unique().height == rows.height == PROMPTS * EACH
        assert set(rows["verifier_version"]) == {version}


def test_features_of_another_version_are_dropped_once_by_shards_that_start_together(
    shards: Shards, questions: Path, tmp_path: Path
) -> None:
    run, recipe = filled(questions, shards, tmp_path / "run", ["features"])
    rows = run.columns("features")
    old = rows.replace_schema_metadata({**(FEATURES.schema.metadata or {}), b"version": b"another"})
    for index in range(rows.num_rows):
        path = run.table_dir("features") / f"part-{index % 3:03d}-{index:05d}.parquet"
        pq.write_table(old.slice(index, 1), path)
    assert shards.run(orders(run, recipe, 3, ["features"], slowly=True)) == [0, 0, 0]
    found = run.columns("features")
    assert sorted(found["response_id"].to_pylist()) == sorted(rows["response_id"].to_pylist())
    for part in run.parts("features"):
        assert pq.read_schema(part).equals(FEATURES.schema, check_metadata=True)


def test_a_part_that_another_process_replaces_is_read_as_it_was_or_as_it_is(
    shards: Shards, questions: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    part = run.table_dir("verdicts") / "part-000-00000.parquet"
    with endpoint(script=knowing) as server:
        shards.start(orders(run, recipe_of(questions, server), 1, ["rewrite"]))
    seen: Counter[int] = Counter()
    try:
        wait_until(part.exists)
        for _ in range(60):
            rows = run.read("verdicts", ["response_id", "verifier_version"])
            assert set(rows["verifier_version"]) == {str(rows.height)}
            assert rows["response_id"].n_unique() == rows.height
            seen[rows.height] += 1
    finally:
        (run.root / "stop").touch()
        assert shards.end() == [0]
    assert seen.keys() == {3, 60_000}


def test_shards_pay_for_no_judge_vote_twice_calibration_included(
    shards: Shards, questions: Path, tmp_path: Path
) -> None:
    """What each shard tries the judge on is of the whole run, so all three want the same votes."""
    run = judge_toys.run_of(tmp_path)
    with endpoint(script=judge_toys.judging(judge_toys.honest), delay_s=0.02) as server:
        recipe = judge_toys.recipe_of(server, votes=3).model_dump(mode="json", exclude_unset=True)
        assert shards.run(orders(run, recipe, 1, ["verify"])) == [0]
        assert shards.run(orders(run, recipe, 3, ["judge"])) == [0, 0, 0]
        assert not any(ask.before for ask in server.asks)
    verdicts = {name: verdict for name, (verdict, _) in judge_toys.judge_verdicts(run).items()}
    assert verdicts == {"a-essay": "correct", "b-essay": "wrong", "c-named": "correct", "d-broken": "wrong"}
    assert judge_toys.judge_replies(run) == len(server.asks)
    ids = run.read("responses", ["response_id"])["response_id"]
    assert ids.n_unique() == ids.len()


def ids_of(number: int) -> list[str]:
    return [prompt_id([{"role": "user", "content": str(one)}]) for one in range(number)]


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_every_prompt_is_in_one_shard_however_it_is_asked(count: int) -> None:
    ids = ids_of(200)
    frame = pl.DataFrame({"prompt_id": ids})
    table = pa.table({"prompt_id": ids})
    found: list[str] = []
    for index in range(count):
        ours = [one for one in ids if in_shard(one, (index, count))]
        assert frame.filter(of_shard((index, count)))["prompt_id"].to_list() == ours
        assert shard_rows(table, (index, count))["prompt_id"].to_pylist() == ours
        found += ours
    assert sorted(found) == sorted(ids)


@pytest.mark.parametrize("step", ["verify", "features"])
def test_a_shard_works_on_its_own_replies_and_leaves_those_of_others(
    shards: Shards, questions: Path, tmp_path: Path, step: str
) -> None:
    run, recipe = filled(questions, shards, tmp_path / "run", [])
    table = {"verify": "verdicts", "features": "features"}[step]
    assert shards.run(orders(run, recipe, 3, [step])[1:2]) == [0]
    replies = run.read("responses", ["response_id", "prompt_id"])
    ours = replies.filter(of_shard((1, 3)))["response_id"]
    assert 0 < ours.len() < replies.height
    assert set(run.read(table, ["response_id"])["response_id"]) == set(ours)


def test_a_new_verifier_of_one_shard_leaves_the_verdicts_of_others(
    shards: Shards, questions: Path, tmp_path: Path
) -> None:
    run, recipe = filled(questions, shards, tmp_path / "run", ["verify"])
    assert shards.run(orders(run, recipe, 3, ["verify"], version="new")[1:2]) == [0]
    replies = run.read("responses", ["response_id", "prompt_id"])
    found = run.read("verdicts", ["response_id", "verifier_version"])
    assert sorted(found["response_id"]) == sorted(replies["response_id"])
    assert set(found.filter(verifier_version="new")["response_id"]) == set(
        replies.filter(of_shard((1, 3)))["response_id"]
    )


def test_what_is_not_dropped_is_not_written_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    rows: Callable[..., dict[str, Any]] = lambda name: {  # noqa: E731
        "response_id": name, "verifier": "v", "verifier_version": "1", "verdict": "wrong", "votes": []
    }  # fmt: skip
    for name in ("a", "b"):
        run.append("verdicts", columns_table("verdicts", [rows(name), rows(f"{name}2")]))
    before = [part.stat().st_ino for part in run.parts("verdicts")]
    drop_rows(run, "verdicts", lambda table: [one == "b" for one in table["response_id"].to_pylist()])
    after = [part.stat().st_ino for part in run.parts("verdicts")]
    assert after[0] == before[0] and after[1] != before[1]
    assert sorted(run.read("verdicts")["response_id"]) == ["a", "a2", "b2"]
