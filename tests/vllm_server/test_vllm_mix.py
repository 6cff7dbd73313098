"""`builder mix` against a real vLLM, which serves the toy teacher and, in the student's place, the same weights."""

import json
from pathlib import Path

import pytest
from served import Served
from tokenizers import Tokenizer

from builder.config import MixedPolicy, Recipe
from builder.console import Reporter
from builder.continuation import continuing
from builder.pipeline import Steps
from builder.store import Run
from builder.text import completion_text
from builder.toy.task import problems
from builder.toy.train import TEACHER

pytestmark = pytest.mark.vllm

QUESTIONS = 8


def recipe(url: str, folder: Path, continuation: str) -> Recipe:
    rows = [{"prompt": problem.question, "gold": problem.gold} for problem in problems(QUESTIONS, 7, carries=False)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Recipe.model_validate(
        {
            "name": "words",
            "prompts": [{"source": str(folder / "q.jsonl"), "gold_type": "integer"}],
            "teacher": {"model": "toy-teacher", "tokenizer": str(TEACHER), "endpoints": [{"url": url}]},
            "generation": {"temperatures": [1.0], "samples": 1, "max_tokens": 160},
            "student": {"model": str(TEACHER)},
            "selection": {"rules": ["think_tags_broken", "answer_wrong"]},
            "mixed_policy": {"length_cap": 0.7, "off_policy_ratio": 1.0, "continuation": continuation},
        }
    )


@pytest.mark.parametrize("continuation", ["think-tag-prefill", "think-tag-completions"])
def test_rollouts_are_continued_to_the_letter_and_released(served: Served, tmp_path: Path, continuation: str) -> None:
    asked = recipe(served.url, tmp_path, continuation)
    steps = Steps(Run(tmp_path / "run"), asked, tmp_path, Reporter(quiet=True))
    steps.everything()
    result = steps.mix(TEACHER, served.url)
    assert result.adapter == continuation
    assert result.questions == result.rollouts == result.hit_cap == result.continued > QUESTIONS // 2
    replies = {row["response_id"]: row for row in steps.run.read("responses").iter_rows(named=True)}
    tokens = dict(steps.run.read("logprobs", ["response_id", "token_ids"]).iter_rows())
    tokenizer = Tokenizer.from_file(str(TEACHER / "tokenizer.json"))
    for row in (row for row in replies.values() if row["role"] == "mixed"):
        rollout = replies[row["prefix_response_id"]]
        prefix = f"<think>\n{rollout['reasoning']}"[: row["prefix_chars"]]
        written = tokenizer.decode(tokens[row["response_id"]], skip_special_tokens=False).removesuffix("<|im_end|>")
        assert prefix + written == completion_text(row["reasoning"], row["answer"])
    release = steps.release()
    found = release.manifest["mixed_policy"]
    assert release.version == "v2" and found["mixed_rows"] >= QUESTIONS // 2
    assert release.manifest["schedule"][-1]["rows"] == found["mixed_rows"] + found["off_policy_rows"]


def test_both_ways_of_going_on_are_found_before_anything_is_asked(served: Served, tmp_path: Path) -> None:
    before = served.answered()
    assert continuing(recipe(served.url, tmp_path, "auto"), MixedPolicy()).answers
    assert served.answered() - before <= 8
