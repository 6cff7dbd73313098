"""How long `builder plan` takes over 450,000 prompts × 8, cold and with 100,000 replies stored: `python plan.py [N]`.

Beside it, the least that any plan has to do: read the file, decode its lines, hash every question. Goal: under 10 s.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from builder.config import Recipe
from builder.journal import Attempt
from builder.journal_writer import Journal
from builder.prompts import load_prompts
from builder.requests import requests
from builder.store import Run

PROMPTS = 450_000
STORED = 100_000
GOAL_S = 10.0
_WORDS = ["number", "clips", "friends", "April", "half", "x + y = 12", "triangle", "compute", "the", "how many"]
_RECIPE = """name: planned
prompts: [{{source: {questions}}}]
teacher: {{model: toy, revision: r1}}
generation: {{samples: 4}}
"""


def write_questions(path: Path, number: int) -> None:
    """Questions of some 35 words, each with a gold."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for index in range(number):
            question = f"Question {index}: {' '.join(draw.choices(_WORDS, k=35))}?"
            file.write(json.dumps({"prompt": question, "gold": str(index % 97)}) + "\n")


def store_replies(run: Run, recipe: Recipe, limit: int) -> None:
    """A journal with a whole reply to each of the first `limit` requests."""
    prompts = load_prompts(recipe, limit=limit // 8 + 1)
    with Journal(run.journal_dir) as journal:
        begun = []
        for request, _ in zip(requests(recipe, prompts), range(limit), strict=False):
            attempt = Attempt(
                model="toy",
                revision="r1",
                request_key=request.key,
                prompt_id=request.prompt_id,
                role="teacher",
                temperature=request.temperature,
                sample_index=request.sample_index,
                seed=request.seed,
                max_tokens=request.max_tokens,
                endpoint="http://127.0.0.1:1/v1",
            )
            begun.append(journal.begin(attempt))
        for attempt_id in begun:
            last = journal.conclude(attempt_id.result(), "reply", "stop")
        last.result()


def least(path: Path) -> float:
    """Seconds to read, decode and hash."""
    started = time.perf_counter()
    with path.open("rb") as file:
        for line in file:
            hashlib.sha256(msgspec.json.decode(line)["prompt"].encode()).digest()
    return time.perf_counter() - started


def plan(recipe: Path, run: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of the command in a process of its own, and what it counted."""
    command = [sys.executable, "-m", "builder.cli", "plan", str(recipe), "--run", str(run), "--json"]
    started = time.perf_counter()
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return time.perf_counter() - started, json.loads(said)


def main() -> None:
    """Measure and print."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else PROMPTS
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        questions, path = Path(folder) / "questions.jsonl", Path(folder) / "planned.yaml"
        write_questions(questions, number)
        path.write_text(_RECIPE.format(questions=questions), encoding="utf-8")
        run = Run(Path(folder) / "run")
        print(f"{number:,} prompts × 8; reading, decoding and hashing alone {least(questions):.1f} s")
        for title in ("cold", f"{STORED:,} stored"):
            if title != "cold":
                recipe = Recipe.model_validate(
                    {
                        "name": "planned",
                        "prompts": [{"source": str(questions)}],
                        "teacher": {"model": "toy", "revision": "r1"},
                        "generation": {"samples": 4},
                    }
                )
                store_replies(run, recipe, min(STORED, number * 8))
            seconds, said = plan(path, run.root)
            need = said["plan"]["need"]
            assert need == {"total": number * 8, "stored": 0 if title == "cold" else min(STORED, number * 8)}, need
            verdict = "met   " if seconds < GOAL_S else "MISSED"
            print(f"  {verdict}  builder plan, {title}: {seconds:.1f} s, goal under {GOAL_S:.0f} s")


if __name__ == "__main__":
    main()
