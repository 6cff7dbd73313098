"""Questions that a scripted endpoint answers right from a certain sample on."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from endpoint import Ask, Endpoint, reply_to

from builder.config import Recipe
from builder.console import Reporter
from builder.identity import prompt_id, request_seed
from builder.pipeline import Steps
from builder.resample import Resampled
from builder.store import Run

GOLDS = {"easy": "7", "third": "7", "sixth": "7", "never": "7", "open": None, "unreadable": "no letter"}
RIGHT_FROM = {"easy": 0, "third": 2, "sixth": 5}
"""Sample index from which a question is answered right; the others never are."""
PRICES = {"input": 1.0, "output": 10.0}


def sample_index(question: str, temperature: float, seed: int) -> int:
    """Which sample a request is, from its seed."""
    prompt = prompt_id([{"role": "user", "content": question}])
    return next(index for index in range(99) if request_seed(0, prompt, temperature, index) == seed)


def knowing(ask: Ask) -> bytes:
    """The default reply with `7` as its answer where the question is solved by then, else `8`."""
    body = ask.body
    is_right = sample_index(ask.question, body["temperature"], body["seed"]) >= RIGHT_FROM.get(ask.question, 99)
    reply = reply_to(body)
    reply["choices"][0]["message"]["content"] = "7" if is_right else "8"
    reply["choices"][0]["logprobs"] = None
    return json.dumps(reply).encode()


def write_questions(folder: Path) -> Path:
    path = folder / "q.jsonl"
    types = {"unreadable": "choice"}
    rows = [{"prompt": name, "gold": gold, "gold_type": types.get(name, "number")} for name, gold in GOLDS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(questions: Path, url: str, *, correct: int = 2, most: int = 6, **generation: Any) -> Recipe:
    given = {"temperatures": 1.0, "samples": 2, "max_tokens": 64, "logprobs": False}
    return Recipe.model_validate(
        {
            "name": "toy",
            "prompts": [{"source": str(questions)}],
            "teacher": {"model": "toy", "revision": "r", "endpoints": [{"url": url}], "prices": PRICES},
            "generation": {**given, **generation, "until_correct": {"correct": correct, "samples": most}},
            "selection": {"selector": "random", "rules": ["answer_wrong"], "keep": 4},
            "stages": {"sft": {}},
        }
    )


def steps(run: Run, given: Recipe, **options: Any) -> Steps:
    return Steps(run, given, run.root, Reporter(), **options)


def said(run: Run) -> Resampled:
    """What the latest resampling came to, from events.jsonl."""
    events = [json.loads(line) for line in (run.root / "events.jsonl").read_text("utf-8").splitlines()]
    last = [event for event in events if event["step"] == "resample"][-1]
    return Resampled(**{name: value for name, value in last.items() if name not in ("step", "time")})


def asked(server: Endpoint) -> dict[str, int]:
    return dict(Counter(ask.question for ask in server.asks))
