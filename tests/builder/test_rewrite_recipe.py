"""From the packaged recipe to a release of rewrites: both endpoints scripted, all else real."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from endpoint import Ask, endpoint, wait_until
from rewrite_toys import body, faithful, parts_of
from test_pairs_recipe import answer_of, draw
from typer.testing import CliRunner

from builder.cli import app
from builder.recipe import load_recipe
from builder.store import Run

QUESTIONS = 12


def script(ask: Ask) -> bytes:
    """A teacher that is right three times of four, in readable English, and a faithful rewriting model."""
    if ask.question.startswith("["):
        return body(faithful(parts_of(ask)))
    answer = answer_of(ask.question) + (draw(ask) % 4 == 0)
    return body(f"<think>Add the two numbers and look at the sum once more.</think>The answer is {answer}.")


def settings(folder: Path, url: str) -> list[str]:
    lines = [{"prompt": f"{place} + {3 * place}?", "gold": str(4 * place)} for place in range(1, QUESTIONS + 1)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    at = [f"prompts.0.source={folder / 'questions.jsonl'}", f"teacher.endpoints.0.url={url}"]
    return [*at, f"rewrite.endpoints.0.url={url}", "release.license=mit", "--run", str(folder / "run")]


def builder(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_smoke_recipe_runs_to_a_release_of_rewrites_and_pays_nothing_twice(tmp_path: Path) -> None:
    with endpoint(script=script, model=None) as server:
        at = settings(tmp_path, server.url)
        plan = builder("plan", "r1-cold-start-smoke", *at)
        found = builder("run", "r1-cold-start-smoke", *at)
        asked = len(server.asks)
        again = builder("run", "r1-cold-start-smoke", *at)
        assert len(server.asks) == asked
    assert plan["plan"]["rewrites"]["at_most"] == QUESTIONS >= found["rewrite"]["sent"] > QUESTIONS // 2
    assert (again["rewrite"]["sent"], again["release"]["is_new"]) == (0, False)
    assert found["select"]["rewrites"]["changed_answer"] == 0
    run = Run(tmp_path / "run")
    (file,) = (run.releases / "v1" / "data" / "cold-start").glob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    assert len(rows) == found["rewrite"]["sent"] == found["select"]["kept"]
    for row in rows:
        assert row["policy"] == "rewrite"
        assert row["completion"][0]["content"].endswith(f" {answer_of(row['prompt'][-1]['content'])}.")
    page = builder("report", "r1-cold-start-smoke", *at)["report"]
    assert "kept the answer" in Path(page).read_text(encoding="utf-8")


def test_a_killed_rewrite_goes_on_where_it_was(tmp_path: Path) -> None:
    with endpoint(script=script, model=None) as server:
        at = settings(tmp_path, server.url)
        builder("generate", "r1-cold-start-smoke", *at)
        builder("verify", "r1-cold-start-smoke", *at)
        first, server.delay_s = len(server.asks), 0.05
        process = subprocess.Popen(
            [sys.executable, "-m", "builder.cli", "rewrite", "r1-cold-start-smoke", *at, "--quiet",
             "rewrite.endpoints.0.max_in_flight=1"],
        )  # fmt: skip
        wait_until(lambda: len(server.asks) >= first + 5)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        server.delay_s = 0.0
        paid = len(server.asks) - first
        found = builder("rewrite", "r1-cold-start-smoke", *at)
        in_all = len(server.asks) - first
    assert found["rewrite"]["asked"] > paid
    # what was in flight when the process died may have been answered to nobody: one request
    assert found["rewrite"]["asked"] <= in_all <= found["rewrite"]["asked"] + 1
    assert found["rewrite"]["outcomes"] == {"rewritten": found["rewrite"]["asked"]}
    links = Run(tmp_path / "run").read("rewrites").select("response_id", "original_id").rows()
    replies = Run(tmp_path / "run").read("responses").filter(role="rewrite")
    assert sorted(links) == sorted(replies.select("response_id", "prefix_response_id").rows())


def test_the_full_recipe_rewrites_what_its_small_mirror_does() -> None:
    full, smoke = load_recipe("r1-cold-start"), load_recipe("r1-cold-start-smoke")
    assert full.rewrite is not None and smoke.rewrite is not None
    assert full.rewrite.model == "deepseek-ai/DeepSeek-V3"
    assert full.rewrite.prices is not None
    assert full.selection.rules == smoke.selection.rules
    assert full.selection.keep == smoke.selection.keep == 1


def test_rewrite_without_the_section_is_a_usage_error_in_one_message(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["rewrite", "gsm8k-smoke", "--run", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "no `rewrite` section" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("tokens", "usd"), [(None, None), (1000.0, 12 * (1500 * 0.5 + 1000 * 2.0) / 1e6)])
def test_a_plan_says_what_rewriting_may_cost(tmp_path: Path, tokens: float | None, usd: float | None) -> None:
    at = settings(tmp_path, "http://127.0.0.1:9/v1")
    assumed = [] if tokens is None else ["--tokens-per-reply", str(tokens)]
    found = builder("plan", "r1-cold-start-smoke", *at, "rewrite.prices={input: 0.5, output: 2.0}", *assumed)
    planned = found["plan"]["rewrites"]
    assert (planned["at_most"], planned["paid"]) == (12, 0)
    assert planned["cost_usd"] == (usd if usd is None else pytest.approx(usd))
    assert planned["at_most_usd"] == pytest.approx(12 * ((512 + 500) * 0.5 + 1024 * 2.0) / 1e6)
