"""Stages of kind grpo alone: a recipe without teacher and endpoint goes from a file to a release of prompts."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from endpoint import endpoint
from resample_toys import knowing, recipe, steps, write_questions
from typer.testing import CliRunner

from builder.cli import app
from builder.config import Recipe
from builder.identity import prompt_id
from builder.release_held_out import is_held_out
from builder.schema import RELEASE_GRPO
from builder.store import Run

SUMS = [{"prompt": f"{one} + 2?", "gold": str(one + 2), "gold_type": "number", "domain": "math"} for one in range(8)]
QUESTIONS: list[dict[str, str]] = [*SUMS, *({"prompt": f"Write poem {one}.", "domain": "general"} for one in range(4))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")  # nobody: a request would fail
    lines = "".join(json.dumps(row) + "\n" for row in QUESTIONS)
    Path("questions.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def builder(command: str, *arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [command, *arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def released(run: Path, config: str, split: str = "train", version: str = "v1") -> list[dict[str, Any]]:
    (file,) = (run / "releases" / version / "data" / config).glob(f"{split}-*.parquet")
    table = pq.read_table(file)
    assert table.schema.names == RELEASE_GRPO.names
    rows: list[dict[str, Any]] = table.to_pylist()
    return sorted(rows, key=lambda row: row["position"])


def manifest_of(run: Path, version: str = "v1") -> dict[str, Any]:
    text = (run / "releases" / version / ".builder" / "manifest.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_smoke_recipe_releases_prompts_with_and_without_a_gold(folder: Path) -> None:
    found, again = builder("run", "r1-rl-smoke"), builder("run", "r1-rl-smoke")
    run = folder / "runs" / "r1-rl-smoke"
    assert found["generate"] == {"prompts": 12, "duplicates": 0, "golds": 8}
    assert [(one["name"], one["rows"]) for one in found["select"]["stages"]] == [("rl-rules", 8), ("rl-preference", 12)]
    assert found["release"]["is_new"] and not again["release"]["is_new"]
    rules, preference = released(run, "rl-rules"), released(run, "rl-preference")
    golds = {row["prompt"]: row.get("gold") for row in QUESTIONS}
    assert {row["prompt"][0]["content"]: row["solution"] for row in preference} == golds
    assert {row["solution"] for row in rules} == {gold for gold in golds.values() if gold}
    assert {(row["gold_type"], row["domain"]) for row in rules} == {("number", "math")}
    assert [row["position"] for row in preference] == list(range(12))


def test_manifest_and_card_of_prompts_name_no_teacher_and_no_replies(folder: Path) -> None:
    builder("run", "r1-rl-smoke")
    run = folder / "runs" / "r1-rl-smoke"
    manifest = manifest_of(run)
    assert (manifest["teacher"], manifest["sampling"], manifest["calls"]["replies"]) == (None, None, 0)
    assert [(one["stage"], one["kind"], one["init"]) for one in manifest["schedule"]] == [
        ("rl-rules", "grpo", "base"), ("rl-preference", "grpo", "previous")
    ]  # fmt: skip
    assert {file["path"].split("/")[1] for file in manifest["files"] if file["path"].startswith("data/")} == {
        "rl-rules", "rl-preference"
    }  # fmt: skip
    card = (run / "releases" / "v1" / "README.md").read_text(encoding="utf-8")
    for word in ("eacher", "andidates", "repl", "yan2026dasd", "selector"):
        assert word not in card.replace("verifier that decides replies", ""), word
    assert "Prompts for reinforcement learning: 8 rows for stage `rl-rules`, then 12 rows" in card
    assert "4 of its 12 prompts have none (`solution` is null)" in card


def test_the_steps_one_by_one_do_what_run_does(folder: Path) -> None:
    for command in ("generate", "select", "release"):
        builder(command, "r1-rl-smoke")
    stepwise = manifest_of(folder / "runs" / "r1-rl-smoke")
    builder("run", "r1-rl-smoke", "--run", "other")
    assert manifest_of(folder / "other")["build_id"] == stepwise["build_id"]
    assert [one["rows"] for one in stepwise["schedule"]] == [8, 12]


def test_held_out_prompts_are_in_no_split_train(folder: Path) -> None:
    builder("run", "r1-rl-smoke", "release.held_out=0.3")
    run = folder / "runs" / "r1-rl-smoke"
    held = {
        row["prompt"]
        for row in QUESTIONS
        if is_held_out(prompt_id([{"role": "user", "content": row["prompt"]}]), 0.3, 0)
    }
    for config, number in (("rl-rules", 8), ("rl-preference", 12)):
        train, validation = (released(run, config, split) for split in ("train", "validation"))
        assert len(train) + len(validation) == number
        assert {row["prompt"][0]["content"] for row in validation} <= held
        assert held.isdisjoint(row["prompt"][0]["content"] for row in train)
    assert manifest_of(run)["held_out"]["prompts"] == len(held)


def test_before_its_prompts_are_read_a_run_says_what_reads_them(folder: Path) -> None:
    result = CliRunner().invoke(app, ["select", "r1-rl-smoke"])
    assert result.exit_code == 1
    assert "holds no prompts" in result.stderr and "builder generate" in result.stderr


def test_a_stage_of_replies_still_needs_a_teacher(folder: Path) -> None:
    result = CliRunner().invoke(app, ["run", "r1-rl-smoke", "stages.sft.kind=sft"])
    assert result.exit_code == 2
    assert "has no `teacher` section" in result.stderr


def test_prompts_that_a_benchmark_holds_are_left_out_by_a_condition(folder: Path) -> None:
    Path("bench.jsonl").write_text('{"prompt": "3 + 2?"}\n', encoding="utf-8")
    held = "prompt_id not in (select prompt_id from stg_contaminations where is_whole or shared_words >= 10)"
    given = ["selection.rules=[benchmark_contaminated]", f"stages.rl-rules.where={held}"]
    given.append("decontamination={benchmarks: {b: {source: bench.jsonl, prompt: prompt}}}")
    builder("run", "r1-rl-smoke", *given)
    run = folder / "runs" / "r1-rl-smoke"
    asked = [{row["prompt"][0]["content"] for row in released(run, name)} for name in ("rl-preference", "rl-rules")]
    assert asked[0] - asked[1] == {"3 + 2?"}
    card = (run / "releases" / "v1" / "README.md").read_text(encoding="utf-8")
    assert "1 were hit; rules drop replies, so only a condition `where` leaves such prompts out" in card
    assert "Rows with such a prompt: `rl-rules` 0, `rl-preference` 1." in card


def test_a_report_of_prompts_alone_is_refused_and_says_why(folder: Path) -> None:
    builder("run", "r1-rl-smoke")
    result = CliRunner().invoke(app, ["report", "r1-rl-smoke"])
    assert result.exit_code == 1
    assert "holds no replies" in result.stderr and "names no teacher" in " ".join(result.stderr.split())


def with_stages(given: Recipe, stages: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(given.resolved() | {"stages": stages})


def test_a_teachers_replies_choose_and_order_prompts_by_pass_rate(tmp_path: Path) -> None:
    questions, run = write_questions(tmp_path), Run(tmp_path / "run")
    stages = {
        "between": {"kind": "grpo", "where": "pass_rate between 0.1 and 0.9"},
        "hard-first": {"kind": "grpo", "where": "judged_replies > 0", "order_by": "pass_rate, judged_replies desc"},
        "unrated": {"kind": "grpo", "where": "pass_rate is null"},
    }
    with endpoint(script=knowing) as server:
        given = recipe(questions, server.url)  # easy 2 of 2, third 2 of 4, sixth 1 of 6, never 0 of 6; two are not told
        one = steps(run, with_stages(given, stages))
        one.everything()
    found = {
        config: [row["prompt"][0]["content"] for row in released(run.root, config)]
        for config in ("between", "hard-first", "unrated")
    }
    assert set(found["between"]) == {"third", "sixth"}
    assert found["hard-first"] == ["never", "sixth", "third", "easy"]
    assert set(found["unrated"]) == {"open", "unreadable"}
    assert (run.releases / "v1" / "data" / "candidates").is_dir()
    card = (run.releases / "v1" / "README.md").read_text(encoding="utf-8")
    assert "Replies were sampled to see how hard the prompts are" in card
