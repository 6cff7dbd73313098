import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from endpoint import Ask, endpoint
from typer.testing import CliRunner

from builder import plan_disk, seal
from builder.cli import app
from builder.config import Recipe
from builder.plan import make_plan
from builder.recipe import load_recipe
from builder.store import Run, columns_table

TOKENS = 400
PROMPTS = 40
WORDS = [first + second + third for first in "bdklmnrst" for second in "aeiou" for third in ("", "n", "st", "ral")]


def body(ask: Ask) -> bytes:
    """A reply as vLLM writes it: float32 logprobs with all their digits, words as tokens, frequent ones often."""
    draw = np.random.default_rng([ask.body["seed"], len(ask.question)])
    ids = np.minimum(draw.zipf(1.3, TOKENS), len(WORDS)) - 1
    values = np.where(draw.random(TOKENS) < 0.5, -(10.0 ** draw.uniform(-6, -2, TOKENS)), -draw.exponential(1, TOKENS))
    names = ["<think>", *(f" {WORDS[number]}" for number in ids[2:]), "</think>"]
    entries = [
        {"token": name, "logprob": value, "bytes": list(name.encode())}
        for name, value in zip(names, values.astype(np.float32).tolist(), strict=True)
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "reasoning": "".join(names[1:-1]), "content": ""},
        "finish_reason": "stop",
        "logprobs": {"content": entries} if ask.body.get("logprobs") else None,
        "token_ids": [*ids[1:].tolist(), 0] if ask.body.get("logprobs") else None,
    }
    usage = {"prompt_tokens": 11, "completion_tokens": TOKENS, "total_tokens": TOKENS + 11}
    return json.dumps({"id": "c", "model": "toy", "choices": [choice], "usage": usage}).encode()


def recipe(folder: Path, url: str, *, logprobs: bool) -> Path:
    with (folder / "q.jsonl").open("w") as file:
        file.writelines(json.dumps({"prompt": f"What is {n} + {n}?", "license": "mit"}) + "\n" for n in range(PROMPTS))
    made = {
        "name": "toy",
        "prompts": [{"source": str(folder / "q.jsonl")}],
        "teacher": {"model": "toy", "revision": "r1", "endpoints": [{"url": url}]},
        "generation": {"samples": 4, "max_tokens": 1000, "logprobs": logprobs},
        "selection": {"rules": ["sentence_repeated", "response_near_duplicate"], "selector": "random"},
        "stages": {"low": {"where": "temperature = 0.6"}, "high": {"where": "temperature = 1.0"}},
        "release": {"license": "mit"},
    }
    path = folder / "toy.yaml"
    path.write_text(json.dumps(made))  # JSON is YAML
    return path


def planned(run: Run, asked: Recipe, **options: Any) -> float:
    found = make_plan(run, asked, **options).disk_bytes
    assert found is not None
    return found.value


def taken(run: Run) -> int:
    return sum(file.stat().st_size for file in run.root.rglob("*") if file.is_file())


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_plan_is_right_about_disk_within_a_fifth_before_the_first_reply_and_after_a_pilot(
    tmp_path: Path, logprobs: bool
) -> None:
    run = Run(tmp_path / "run")
    with endpoint(script=body) as server:
        path = recipe(tmp_path, server.url, logprobs=logprobs)
        asked = load_recipe(path)
        before = planned(run, asked, tokens_per_reply=TOKENS)
        command(path, run, "generate", "--limit", str(PROMPTS // 4))
        piloted = planned(run, asked)
        for verb in ("generate", "select", "release"):
            command(path, run, verb)
    assert before == pytest.approx(taken(run), rel=0.2)
    assert piloted == pytest.approx(taken(run), rel=0.2)
    assert planned(run, asked) == pytest.approx(taken(run), rel=0.2)  # of the whole run, also when nothing is missing


def command(path: Path, run: Run, *words: str) -> None:
    ended = CliRunner().invoke(app, [words[0], str(path), "--run", str(run.root), "--quiet", *words[1:]])
    assert ended.exit_code == 0, ended.output


def test_raw_replies_are_counted_up_to_two_segments_of_the_journal(tmp_path: Path) -> None:
    asked = load_recipe(recipe(tmp_path, "http://127.0.0.1:9/v1", logprobs=True))
    assert (plan_disk._SEGMENT_REPLIES, plan_disk._SEGMENT_TOKENS) == (seal._SEAL_REPLIES, seal._SEAL_TOKENS)
    few, many, more = (plan_disk.disk_bytes(Run(tmp_path), asked, n, [4000])[0] for n in (1_000, 10_000, 11_000))
    raw = 650 + 20 * 4000
    assert few > 1_000 * raw
    assert more - many < 1_000 * raw / 2  # from 2,000 replies of 4,000 tokens on, one in a thousand stays
    assert more - many > 1_000 * 4000 * 5  # tables grow on


def test_what_the_run_holds_corrects_the_constants(tmp_path: Path) -> None:
    run, asked = Run(tmp_path), load_recipe(recipe(tmp_path, "http://127.0.0.1:9/v1", logprobs=True))
    (expected,) = plan_disk.disk_bytes(run, asked, 1_000, [1000.0])
    run.journal_dir.mkdir()
    (run.journal_dir / "000.sqlite").write_bytes(bytes(2**18 - 1))  # mostly footers: says nothing
    assert plan_disk.disk_bytes(run, asked, 1_000, [1000.0]) == [expected]
    fields = {"response_id": "", "prompt_id": "p", "role": "teacher", "model": "toy", "sample_index": 0,
              "temperature": 1.0, "completion_tokens": 1000, "reasoning_format": "field", "tool_calls": 0,
              "replaced_characters": 0, "prefix_chars": 0}  # fmt: skip
    rows = [
        fields | {"response_id": str(n), "reasoning": np.random.default_rng(n).bytes(2500).hex()} for n in range(99)
    ]
    part = run.append("responses", columns_table("responses", rows))
    assert part is not None
    denser = part.stat().st_size / (99 * (44 + 1.35 * 1000))
    assert denser > 1.5
    (found,) = plan_disk.disk_bytes(run, asked, 1_000, [1000.0])
    assert found - expected > (denser - 1) * 1_000 * 1.35 * 1000 * 3  # responses, run.duckdb and the release hold texts
