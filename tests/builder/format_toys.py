"""Releases of literal rows, as they are downloaded, and what a reader of an export finds in it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder.import_files import BadRow, rows_of
from builder.import_formats import read_row, reader_of
from builder.import_turns import Given
from builder.schema import RELEASE_KINDS
from builder.store import columns_table, file_sha256
from builder.text import completion_text

HOSTILE = [
    ("One\u2028two\u2029three\u0085four.\r\n\n\tFive.", 'A line\n```\n{"a": 1}\n```\x0b\x0c\x1c end'),
    ("It ends </think> here. No, </think>\n\nlater.", "Answer with <think>tags</think> in it."),
    ("每个苹果三元。👩‍👩‍👧", "\ufeff答案\\u2028 是 6\x00."),
    ("2026-01-01", "null"),
]
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CONVERSATION = [SYSTEM, turn("user", "a"), turn("assistant", "b"), turn("user", "c")]


def sft(name: str, position: int, prompt: Sequence[Mapping[str, str]], text: str, **changes: Any) -> dict[str, Any]:
    return {
        "prompt": list(prompt), "completion": [turn("assistant", text)], "position": position, "response_id": name,
        "prompt_id": f"prompt-of-{name}", "domain": "math", "temperature": 0.6, "policy": "teacher",
        "teacher": "org/teacher", "teacher_revision": None, "n_candidates": 4, "teacher_sentences": None,
        "sentence_count": None, "mean_delta": None, "student_tokens": None, "prefix_chars": 0,
        "student_revision": None, "source": "toy.jsonl", "source_license": "cc-by-4.0", **changes,
    }  # fmt: skip


def grpo(name: str, position: int, prompt: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    return {
        "prompt": list(prompt), "solution": "3", "gold_type": "number", "verifier": None, "language": None,
        "domain": None, "position": position, "prompt_id": name,
    }  # fmt: skip


def pair(position: int, prompt: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    sides = {name: [turn("assistant", f"<think>\n{name}\n</think>\n\n3")] for name in ("chosen", "rejected")}
    return {"prompt": list(prompt), **sides, "gap": None, "position": position}


Stages = dict[str, tuple[str, list[dict[str, Any]]]]


def released(root: Path, stages: Stages, held: list[dict[str, Any]] | None = None, **manifest: Any) -> Path:
    """A release as it is downloaded: literal rows by stage, ordered by id and not by position."""
    folder = root / "v3"
    files = []
    tables = {name: pa.Table.from_pylist(rows, schema=RELEASE_KINDS[kind]) for name, (kind, rows) in stages.items()}
    if held is not None:
        tables["logprobs"] = columns_table("logprobs", held)
    for name, table in tables.items():
        path = folder / "data" / name / "train-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table, path)
        entry = {"sha256": file_sha256(path), "bytes": path.stat().st_size, "rows": table.num_rows}
        files.append({"path": path.relative_to(folder).as_posix(), **entry})
    (folder / ".builder").mkdir()
    student = {"model": "org/student", "revision": "5" * 40, "system_prompt": SYSTEM["content"]}
    text = {
        "format": 1, "version": "v3", "build_id": "b" * 64, "recipe_name": "toy", "license": "mit", "student": student,
        "prompts": [], "selection": {}, "files": files,
        "schedule": [{"stage": name, "config": name, "kind": kind, "rows": len(rows)}
                     for name, (kind, rows) in stages.items()], **manifest,
    }  # fmt: skip
    (folder / ".builder" / "manifest.json").write_text(json.dumps(text), encoding="utf-8")
    return folder


def one_turn(texts: Sequence[tuple[str | None, str]] = HOSTILE) -> list[dict[str, Any]]:
    """Rows with the student's system prompt, the later ids first in training."""
    return [
        sft(f"r{place}", len(texts) - 1 - place, [SYSTEM, turn("user", f"Question {place}?\u2028{text[1]}")],
            completion_text(*text))
        for place, text in enumerate(texts)
    ]  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    rows = [row for _, row in rows_of(path)]
    assert not [row for row in rows if isinstance(row, BadRow)]
    return rows  # type: ignore[return-value]


def imported(path: Path, name: str) -> list[Given]:
    found = [given for row in read(path) for given in read_row(reader_of(name), row)]
    assert not [given for given in found if isinstance(given, BadRow)]
    return found  # type: ignore[return-value]
