"""Files that the toy R1 process reads: `python -m builder.toy.materials DIR`. All are made here; none is downloaded."""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from builder.store import write_text
from builder.toy.general import measured_row, prompt_row, stories, tell
from builder.toy.task import problems

QUESTIONS, STORIES, HELD_OUT, ANSWERED = 900, 450, 300, 90


def write_materials(folder: Path, seed: int = 0) -> None:
    """Questions with golds, stories without, both together, both held out, and answers of an earlier fine-tuning."""
    questions = [_question(problem.question, problem.gold) for problem in problems(QUESTIONS, seed, carries=False)]
    held_out = problems(HELD_OUT, seed, "held-out", carries=False)
    asked = stories(STORIES, seed)
    general = [prompt_row(problem) for problem in asked]
    rng = random.Random(seed)
    answered = [(problem.question, tell(problem, rng, clear=0.5, thinks=0)) for problem in asked[:ANSWERED]]
    files: dict[str, list[dict[str, Any]]] = {
        "questions": questions,
        "general": general,
        "prompts": questions + general,
        "held-out-questions": [_question(problem.question, problem.gold) for problem in held_out],
        "held-out-stories": [measured_row(problem) for problem in stories(HELD_OUT, seed, "held-out")],
        "answers": [
            {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": two}], "domain": "general"}
            for one, two in answered
        ],
    }
    for name, rows in files.items():
        write_text("".join(json.dumps(row) + "\n" for row in rows), folder / f"{name}.jsonl")


def _question(text: str, gold: str) -> dict[str, Any]:
    kind = {"gold_type": "integer", "domain": "math", "language": "en", "license": "apache-2.0"}
    return {"prompt": text, "gold": gold} | kind


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m builder.toy.materials", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    write_materials(given.folder, given.seed)


if __name__ == "__main__":
    main()
