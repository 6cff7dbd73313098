"""A run of three questions with literal scores and verdicts, selected, ready to be released."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
from score_toys import logprobs, prompt, reply

from builder.config import Recipe, Selection, Stage, Student, Teacher
from builder.models import student_id
from builder.release import read_manifest
from builder.resources import resource
from builder.section import Endpoint
from builder.selection import SelectionResult, select
from builder.store import Run, columns_table

HOST = "node17.cluster.internal"
STUDENT = Student(model="org/student", revision="5" * 40)
STAGES = {"low-temperature": Stage(where="temperature = 0.6"), "high-temperature": Stage(where="temperature = 1.0")}


def recipe(stages: dict[str, Stage] | None = None, **changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "toy",
            "teacher": Teacher(
                model="org/teacher", revision="7" * 40, endpoints=[Endpoint(url=f"http://{HOST}:8000/v1")]
            ),
            "student": STUDENT,
            "selection": Selection(rules=["response_truncated", "answer_wrong"], params={"teacher_margin": 0.2}),
            "stages": STAGES if stages is None else stages,
            "release": {"license": "mit"},
            **changes,
        }
    )


def replies_of(name: str, temperatures: tuple[float, ...] = (0.6, 1.0)) -> list[dict[str, Any]]:
    """Two replies at each temperature: at 0.6 the second diverges more, at 1.0 the second is wrong."""
    return [
        reply(
            f"{name}-{temperature}-{sample}",
            name,
            temperature=temperature,
            sample_index=sample,
            reasoning=f"Thinking of {name} | at {temperature}, sample {sample}. " + "Step. " * 5,
            latency_s=0.1 * sample,
            cost_usd=0.001,
            received_at=datetime(2026, 11, 22, sample, tzinfo=UTC),
            model_revision="7" * 40,
        )
        for temperature in temperatures
        for sample in (0, 1)
    ]


def score_of(row: dict[str, Any]) -> dict[str, Any]:
    counts = [9 - margin + row["sample_index"] for margin in range(10)]
    return {
        "response_id": row["response_id"], "student_id": student_id(STUDENT), "status": "ok", "sentence_count": 20,
        "short_sentences": 1, "teacher_counts": counts, "student_counts": [1] * 10, "mean_delta": 0.25,
        "log_ratio_nats": 0.5, "student_tokens": 40 + row["sample_index"],
    }  # fmt: skip


def verdict_of(row: dict[str, Any], verifier: str = "number", verdict: str | None = None) -> dict[str, Any]:
    wrong = row["temperature"] == 1.0 and row["sample_index"] == 1
    return {
        "response_id": row["response_id"], "verifier": verifier, "verifier_version": "1",
        "verdict": verdict or ("wrong" if wrong else "correct"), "extracted": "3", "votes": [],
    }  # fmt: skip


def fill(
    run: Run,
    names: tuple[str, ...],
    temperatures: tuple[float, ...] = (0.6, 1.0),
    *,
    backwards: bool = False,
    shard: int = 0,
) -> Run:
    """Rows of these prompts in every table, in one part, or backwards in a part each."""
    replies = [row for name in names for row in replies_of(name, temperatures)]
    tables = {
        "prompts": [prompt(name, f"What is 1 + 2, {name}?") for name in names],
        "responses": replies,
        "logprobs": [logprobs(row) for row in replies],
        "scores": [score_of(row) for row in replies],
        "verdicts": [verdict_of(row) for row in replies],
    }
    for table, rows in tables.items():
        for part in [[row] for row in reversed(rows)] if backwards else [rows]:
            run.append(table, columns_table(table, part), shard=shard)
    return run


def selected(root: Path, names: tuple[str, ...] = ("p", "q", "s"), **changes: Any) -> tuple[Run, SelectionResult]:
    run = fill(Run(root), names)
    return run, select(run, recipe(**changes))


Selected = tuple[Run, SelectionResult]


def rows(path: Path, config: str) -> pa.Table:
    return pq.read_table(path / "data" / config)


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def whole(path: Path) -> dict[str, Any]:
    """The manifest of a release whose files are all there and as it says."""
    manifest = read_manifest(path)
    jsonschema.validate(manifest, json.loads(resource("data_cards", "manifest.schema.json").read_text("utf-8")))
    for entry in manifest["files"]:
        content = (path / entry["path"]).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry["sha256"], entry["bytes"])
        if entry["path"].endswith(".parquet"):
            assert pq.read_metadata(path / entry["path"]).num_rows == entry["rows"]
    return manifest
