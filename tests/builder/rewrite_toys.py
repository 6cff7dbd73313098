"""Sums that a teacher has answered in a muddle, and rewriting models of good and bad character."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from endpoint import Ask, Endpoint
from judge_toys import prompt, reply

from builder.config import Recipe
from builder.console import Reporter
from builder.pipeline import Limits, Steps
from builder.store import Run, columns_table
from builder.verify import verify

Character = Callable[[dict[str, str]], str]
"""What a rewriting model replies to the parts of its task."""
_PART = re.compile(r"^\[(?P<name>[A-Z]+) (?P<nonce>[0-9a-f]{16})\]\n(.*?)\n\[END (?P=name) (?P=nonce)\]$", re.M | re.S)
SUMS = [prompt(f"sum{number}", str(10 * number + 7), "number", "math") for number in range(1, 5)]
"""Four sums; each has two right replies of the teacher and a wrong one."""
RULES = ["response_truncated", "reasoning_missing", "answer_missing", "think_tags_broken", "answer_wrong"]


def muddle(name: str, row: dict[str, Any], answer: str, **more: Any) -> dict[str, Any]:
    return reply(name, row, answer, reasoning=f"Hmm 那么 {name} so so.", reasoning_format="tags", **more)


def run_of(folder: Path, *more: dict[str, Any]) -> Run:
    """Verified replies: right-1…4 and also-1…4, wrong-1…4 (5 is never the gold)."""
    run = Run(folder / "run")
    rows = [
        muddle(f"{kind}-{place}", row, f"It is {'5' if kind == 'wrong' else row['gold']}.", sample_index=sample)
        for sample, kind in enumerate(("right", "also", "wrong"))
        for place, row in enumerate(SUMS, 1)
    ]
    run.append("prompts", columns_table("prompts", SUMS))
    run.append("responses", columns_table("responses", [*rows, *more]))
    verify(run)
    return run


def recipe_of(server: Endpoint | None, *, rules: list[str] | None = None, keep: int = 1, **rewrite: Any) -> Recipe:
    at = {"endpoints": [{"url": server.url, "max_in_flight": 4}]} if server else {}
    return Recipe.model_validate(
        {
            "name": "toy",
            "teacher": {"model": "m", "license": "mit"},
            "selection": {"rules": RULES if rules is None else rules, "selector": "random", "keep": keep},
            "rewrite": {"model": "toy", **at, **rewrite},
        }
    )


def steps(run: Run, recipe: Recipe, **more: Any) -> Steps:
    limits = Limits(more.pop("cost", None), more.pop("tokens", None))
    return Steps(run, recipe, run.root, Reporter(quiet=True), limits=limits, **more)


def parts_of(ask: Ask) -> dict[str, str]:
    """The parts of a task as a model that reads its fences sees them."""
    return {match["name"]: match[3] for match in _PART.finditer(ask.question)}


def faithful(parts: dict[str, str]) -> str:
    reasoning = parts["REASONING"].replace("那么", "then")
    return f"<think>\nFirst: {reasoning}\n</think>\n\nAdding up. {parts['ANSWER']}"


def rewriting(character: Character, **message: Any) -> Callable[[Ask], bytes]:
    """The script of a rewriting model of this character; `message` adds fields to its message."""

    def script(ask: Ask) -> bytes:
        return body(character(parts_of(ask)), **message)

    return script


def body(content: str, finish: str = "stop", **message: Any) -> bytes:
    said = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": said, "finish_reason": finish}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return json.dumps({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def rows(run: Run) -> dict[str, dict[str, Any]]:
    """Table rewrites by the reply that was rewritten."""
    return {row["original_id"]: row for row in run.read("rewrites").iter_rows(named=True)}
