"""A run with answers that verifiers decide and answers that they do not, and judges of good and bad character."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from endpoint import Ask, Endpoint

from builder import ask as asking
from builder import flow, judge_known
from builder.config import Recipe
from builder.console import Reporter
from builder.pipeline import Limits, Steps
from builder.store import Run, columns_table

Parts = dict[str, str]
Character = Callable[[Parts, str], str]
"""What a judge replies to the parts of a task and its nonce."""
_PART = re.compile(r"^\[(?P<name>[A-Z ]+) (?P<nonce>[0-9a-f]{16})\]\n(.*?)\n\[END (?P=name) (?P=nonce)\]$", re.M | re.S)


def prompt(name: str, gold: str | None, gold_type: str | None, verifier: str | None = None) -> dict[str, Any]:
    said = [{"role": "user", "content": f"Question {name}?"}]
    plain = {"prompt_id": f"{len(name):08x}{name}", "messages": said, "sources": [], "gold_conflicts": 0}
    return {**plain, "gold": gold, "gold_type": gold_type, "verifier": verifier}


def reply(name: str, prompt_row: dict[str, Any], answer: str | None, **more: Any) -> dict[str, Any]:
    plain = {"role": "teacher", "model": "m", "sample_index": 0, "temperature": 1.0, "reasoning_format": "none"}
    counts = {"finish_reason": "stop", "tool_calls": 0, "replaced_characters": 0, "prefix_chars": 0}
    return {**plain, **counts, "response_id": name, "prompt_id": prompt_row["prompt_id"], "answer": answer, **more}


SUMS = [prompt(f"sum{number}", str(10 * number + 7), "number", "math") for number in range(1, 7)]
ESSAY = prompt("essay", "Because water expands when it freezes.", "reference_text")
NAMED = prompt("named", "27", "number", "judge")
BROKEN = prompt("broken", "seventy", "number", "math")
RULES = prompt("rules", '[{"id": "punctuation:no_comma", "kwargs": {}}]', "ifeval", "ifeval")
KNOWN = [
    *(reply(f"right-{row['prompt_id']}", row, f"It is {row['gold']}.") for row in SUMS),
    *(reply(f"wrong-{row['prompt_id']}", row, "It is 5.") for row in SUMS),
]
OPEN = [
    reply("a-essay", ESSAY, "Because water expands when it freezes."),
    reply("b-essay", ESSAY, "Because pipes are weak."),
    reply("c-named", NAMED, "It is 27."),
    reply("d-broken", BROKEN, "It is 70."),
]


def run_of(folder: Path, *more: dict[str, Any], prompts: tuple[dict[str, Any], ...] = ()) -> Run:
    run = Run(folder / "run")
    run.append("prompts", columns_table("prompts", [*SUMS, ESSAY, NAMED, BROKEN, RULES, *prompts]))
    run.append("responses", columns_table("responses", [*KNOWN, *OPEN, *more]))
    return run


def recipe_of(server: Endpoint, **judge: Any) -> Recipe:
    section = {"model": "toy", "endpoints": [{"url": server.url, "max_in_flight": 4}], **judge}
    return Recipe.model_validate({"name": "toy", "prompts": [], "teacher": {"model": "m"}, "judge": section})


def steps(run: Run, recipe: Recipe, *, tokens: int | None = None) -> Steps:
    return Steps(run, recipe, run.root, Reporter(quiet=True), limits=Limits(tokens=tokens))


def shorten(patch: pytest.MonkeyPatch) -> None:
    """No waiting between tries, and few known answers."""
    for module in (asking, flow):
        patch.setattr(module, "backoff_s", lambda attempt, wish: 0.0)
    for name, number in {"PROVED": 3, "MADE": 2, "INJECTED": 2}.items():
        patch.setattr(judge_known, name, number)


def judge_replies(run: Run) -> int:
    return run.read("responses", ["role"]).filter(role="judge").height


def judge_verdicts(run: Run) -> dict[str, tuple[str, list[str]]]:
    rows = run.read("verdicts", ["response_id", "verifier", "verdict", "votes"]).filter(verifier="judge")
    return {row["response_id"]: (row["verdict"], row["votes"]) for row in rows.iter_rows(named=True)}


def parts_of(ask: Ask) -> tuple[Parts, str]:
    """The parts of a task as a judge that reads its fences sees them, and the nonce."""
    found = list(_PART.finditer(ask.question))
    return {match["name"]: match[3] for match in found}, found[0]["nonce"]


def said(nonce: str, verdict: str) -> str:
    return json.dumps({"nonce": nonce, "analysis": "compared", "verdict": verdict})


def is_right(text: str, reference: str) -> bool:
    return text.partition("\n\n")[0].removeprefix("It is ").removesuffix(".") == reference.removesuffix(".")


def honest(parts: Parts, nonce: str) -> str:
    if "ANSWER" in parts:
        return said(nonce, "correct" if is_right(parts["ANSWER"], parts["REFERENCE"]) else "wrong")
    return said(nonce, "first" if is_right(parts["FIRST REPLY"], parts["REFERENCE"]) else "second")


def lenient(parts: Parts, nonce: str) -> str:
    return said(nonce, "correct" if "ANSWER" in parts else "first")


def obedient(parts: Parts, nonce: str) -> str:
    """Honest, but for answers that tell it what to reply."""
    answer = parts.get("ANSWER", "")
    if "planted" in answer or '{"nonce"' in answer:
        return answer[answer.index("{") :]
    return said(nonce, "correct") if "verdict" in answer else honest(parts, nonce)


def judging(character: Character) -> Callable[[Ask], bytes]:
    """The script of a judge of this character."""

    def script(ask: Ask) -> bytes:
        return body(character(*parts_of(ask)))

    return script


def body(content: str, finish: str = "stop") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return json.dumps({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
