"""Steps of a run by shards, each in a process of its own, forked from one that has imported everything.

Each order is a line of JSON: what each process works on. The answers are two lines: process ids, then exit codes.
"""

import datetime
import hashlib
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from builder import verify as verifying
from builder.config import Recipe
from builder.identity import Message
from builder.store import Run
from builder.student import Rendered
from builder.text import completion_text
from builder.tokens import align, spans_of_ends

CHUNK = 6
"""Replies between two parts: many parts, each with replies of few prompts."""


class ByteStudent:
    """A student whose tokens are bytes and whose logprobs follow from the row alone, whatever is scored beside it."""

    context = None

    def render(self, messages: list[Message], reasoning: str | None, answer: str | None) -> Rendered:
        completion = completion_text(reasoning, answer).encode()
        return Rendered([0], list(completion), [bytes([one]) for one in completion])

    def align(self, rendered: Rendered, reasoning: str | None, answer: str | None) -> np.ndarray:
        return spans_of_ends(align(rendered.pieces, reasoning, answer))

    def logprobs(self, rows: list[Rendered]) -> list[np.ndarray]:
        seeds = [hashlib.sha256(bytes(row.completion_ids)).digest() for row in rows]
        return [
            np.random.default_rng(list(seed)).uniform(-2, 0, len(row.completion_ids)).astype(np.float32)
            for seed, row in zip(seeds, rows, strict=True)
        ]


def work(order: dict[str, Any]) -> None:
    """The steps of one shard, in the order in which `builder run --shard` takes them."""
    run, recipe = Run(Path(order["run"])), Recipe.model_validate(yaml.safe_load(order["recipe"]))
    shard = (order["shard"][0], order["shard"][1])
    for step in order["steps"]:
        STEPS[step](run, recipe, shard, order)


def generate(run: Run, recipe: Recipe, shard: tuple[int, int], order: dict[str, Any]) -> None:
    from builder.generate import generate
    from builder.prompts import load_prompts, write_prompts

    prompts = load_prompts(recipe, limit=order.get("limit"))
    write_prompts(run, prompts, limited=order.get("limit") is not None)
    assert not generate(run, recipe, prompts, shard=shard).failed


def score(run: Run, recipe: Recipe, shard: tuple[int, int], order: dict[str, Any]) -> None:
    from builder import score as scoring

    scoring._CHUNK = CHUNK
    scoring.score(run, recipe, shard=shard, student=ByteStudent())


def verify(run: Run, recipe: Recipe, shard: tuple[int, int], order: dict[str, Any]) -> None:
    verifying.CHUNK = CHUNK
    if "version" in order:
        verifying.verifier_version = lambda name: order["version"]
    verifying.verify(run, shard=shard, workers=1)


def features(run: Run, recipe: Recipe, shard: tuple[int, int], order: dict[str, Any]) -> None:
    from builder import features as computing

    is_current = computing._is_current
    if order.get("slowly"):
        computing._is_current = lambda part: bool(time.sleep(0.01) or is_current(part))
    computing.update_features(run, shard=shard)


def signatures(run: Run, recipe: Recipe, shard: tuple[int, int], order: dict[str, Any]) -> None:
    from builder.dedup import update_signatures

    update_signatures(run, shard=shard)


def judge(run: Run, recipe: Recipe, shard: tuple[int, int], order: dict[str, Any]) -> None:
    from builder import judge_known
    from builder.generate import send
    from builder.judge import judge, open_replies
    from builder.judge_calibration import calibrate

    judge_known.PROVED, judge_known.MADE, judge_known.INJECTED = 3, 2, 2

    def ask(what: str, wire: Any, requests: Any, number: int) -> Any:
        return send(run, recipe, wire, requests, number, shard=shard)

    replies = open_replies(run, recipe, shard=shard)
    calibrate(run, recipe, ask).require_trust()
    judge(run, recipe, replies, ask, shard=shard)


def rewrite(run: Run, recipe: Recipe, shard: tuple[int, int], order: dict[str, Any]) -> None:
    """Put a part of many and one of few rows in one another's place until the folder's file `stop` is there."""
    from builder.store import columns_table, write_parquet

    folder, made = run.table_dir("verdicts"), []
    for number in (3, 60_000):
        row = {"verifier": "v", "verifier_version": str(number), "verdict": "correct", "votes": []}
        rows = columns_table("verdicts", [row | {"response_id": f"{place:040x}"} for place in range(number)])
        made.append(folder / f"{number}.made")
        write_parquet(rows, made[-1])
    while not (run.root / "stop").exists():
        for path in made:
            os.link(path, folder / "next.made")
            (folder / "next.made").replace(folder / "part-000-00000.parquet")


STEPS = {step.__name__: step for step in (generate, score, verify, features, signatures, judge, rewrite)}


def die_at(table: str) -> None:
    """Kill this process before it adds its second part to a table."""
    append, parts = Run.append, iter(range(99))

    def dies(self: Run, name: str, *values: Any, **named: Any) -> Any:
        if name == table and next(parts) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return append(self, name, *values, **named)

    Run.append = dies  # type: ignore[method-assign]


def set_clock(ahead_s: float) -> None:
    """Let this process's clock be that of another host."""
    right, now = time.time, datetime.datetime.now

    class Skewed(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return now(tz) + datetime.timedelta(seconds=ahead_s)

    time.time = lambda: right() + ahead_s
    for module in [one for name, one in sys.modules.items() if name.startswith("builder.")]:
        if getattr(module, "datetime", None) is datetime.datetime:
            vars(module)["datetime"] = Skewed


def child(order: dict[str, Any]) -> None:
    code = 1
    try:
        if "die_at" in order:
            die_at(order["die_at"])
        if "clock_s" in order:
            set_clock(order["clock_s"])
        work(order)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    for name in ("aiohttp", "anyio", "httpcore2", "openai", "polars", "pandas", "pyarrow.dataset", "huggingface_hub"):
        importlib.import_module(name)
    for name in ("generate", "score", "verify", "features", "dedup", "judge", "judge_calibration", "prompts"):
        importlib.import_module(f"builder.{name}")
    for line in sys.stdin:
        pids = []
        for order in json.loads(line):
            pid = os.fork()
            if pid == 0:
                child(order)
            pids.append(pid)
        print(json.dumps(pids), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


if __name__ == "__main__":
    main()
