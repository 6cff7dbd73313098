"""From questions to trained weights, through a real HTTP server and the commands that a user types."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from builder.local_server import running_server
from builder.toy.task import problems
from builder.toy.train import TEACHER, make_student

RECIPE = """
name: words
prompts: [{source: q.jsonl, gold_type: integer, domain: arithmetic, license: apache-2.0}]
teacher: {model: toy-teacher}
generation: {temperatures: [0.6, 1.0], samples: 2, max_tokens: 160}
student: {model: student}
selection: {rules: [response_truncated, reasoning_missing, answer_wrong, score_missing]}
stages:
  low-temperature: {where: "temperature = 0.6"}
  high-temperature: {where: "temperature = 1.0"}
release: {license: apache-2.0}
"""
QUESTIONS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("end-to-end")
    make_student(root / "student", steps=20, threads=1)
    rows = [{"prompt": problem.question, "gold": problem.gold} for problem in problems(QUESTIONS, 0, "train")]
    (root / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (root / "words.yaml").write_text(RECIPE, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    with running_server(TEACHER, model_name="toy-teacher", threads=1) as url:
        yield url


def run(folder: Path, module: str, *arguments: str, url: str = "") -> str:
    environment = {**os.environ, "OPENAI_BASE_URL": url, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", f"{module}.cli", *arguments]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


def served(url: str) -> int:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as answer:
        return int(json.load(answer)["requests"])


def test_questions_become_a_release_and_trained_weights_and_a_rerun_pays_nothing(folder: Path, teacher: str) -> None:
    made = json.loads(run(folder, "builder", "run", "words.yaml", "--json", url=teacher))
    wanted = QUESTIONS * 2 * 2
    assert made["generate"]["replies"] == wanted
    paid = served(teacher)

    tables = folder / "runs" / "words" / "tables"
    rows = {
        name: pl.read_parquet(tables / name / "*.parquet") for name in ("prompts", "responses", "scores", "verdicts")
    }
    assert rows["prompts"].height == QUESTIONS
    assert rows["responses"]["response_id"].n_unique() == wanted == rows["responses"].height
    assert rows["scores"].height == rows["verdicts"].height == wanted
    assert set(rows["scores"]["status"]) == {"ok"}, rows["scores"]["status_detail"].to_list()
    assert rows["verdicts"]["verdict"].value_counts().filter(pl.col("verdict") == "correct")["count"].sum() > wanted / 2

    again = json.loads(run(folder, "builder", "run", "words.yaml", "--json", url=teacher))
    assert again["generate"]["replies"] == 0 and again["score"]["scored"] == 0
    assert served(teacher) == paid
    assert again["release"] == {**made["release"], "is_new": False}

    where = ["--dataset", "runs/words/releases/v1", "--model", "student", "--output", "out", "--recipe", "smoke"]
    run(folder, "trainer", "run", *where)
    stages = sorted(path.name for path in (folder / "out").glob("[0-9]*-*"))
    assert [name.partition("-")[2] for name in stages] == ["low-temperature", "high-temperature"]
    for name in stages:
        assert (folder / "out" / name / "model.safetensors").is_file()
    assert (folder / "out" / "final").resolve().name == stages[-1]

    found = json.loads(run(folder, "builder", "eval", "words.yaml", "--model", "out/final", "--limit", "4", "--json"))[
        "eval"
    ]
    assert found["replies"] == 4 and 0 <= found["low"] <= found["pass_at_1"] <= found["high"] <= 1
    sql = run(folder, "builder", "sql", "words.yaml", "-c", "select count(*) as n from stg_responses", "--json")
    assert json.loads(sql)["rows"] == [{"n": wanted}]
