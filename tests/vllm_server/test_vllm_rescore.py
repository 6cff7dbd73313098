"""A teacher behind a real vLLM reads its own replies again: the logprobs that it gave while it wrote them."""

from pathlib import Path

import numpy as np
import pytest
from served import Served

from builder.config import Generation, Recipe, Teacher
from builder.identity import prompt_id
from builder.reply import parse_reply
from builder.rescore import rescorable, rescore
from builder.section import Endpoint
from builder.store import Run, columns_table
from builder.tokens import align
from builder.toy.task import problems
from builder.toy.train import TEACHER

pytestmark = pytest.mark.vllm

REPLIES = 12
TOLERANCE = 1e-4
"""Nats a token between sampling, one token at a time in a batch, and one pass over the text; float32 on the CPU."""


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_rescored_logprobs_are_those_that_were_sampled(served: Served, tmp_path: Path, temperature: float) -> None:
    questions = [[{"role": "user", "content": each.question}] for each in problems(REPLIES, seed=9, carries=False)]
    asked = {"max_tokens": 160, "logprobs": True, "top_logprobs": 0, "return_token_ids": True}
    bodies = served.ask(
        *({"messages": m, "temperature": temperature, "seed": i, **asked} for i, m in enumerate(questions))
    )
    replies = [parse_reply(body) for body in bodies]
    run = Run(tmp_path)
    prompts = [{"prompt_id": prompt_id(m), "messages": m, "sources": [], "gold_conflicts": 0} for m in questions]
    run.append("prompts", columns_table("prompts", prompts))
    rows = [
        {
            "response_id": f"r{place:02}", "prompt_id": prompt_id(messages), "role": "teacher", "model": "toy-teacher",
            "sample_index": 0, "temperature": temperature, "reasoning": reply.reasoning, "answer": reply.answer,
            "reasoning_format": reply.reasoning_format, "prompt_tokens": reply.prompt_tokens, "tool_calls": 0,
            "replaced_characters": 0, "logprobs_mode": None, "prefix_chars": 0,
        }
        for place, (messages, reply) in enumerate(zip(questions, replies, strict=True))
    ]  # fmt: skip
    run.append("responses", columns_table("responses", rows))
    teacher = Teacher(model="toy-teacher", tokenizer=str(TEACHER), endpoints=[Endpoint(url=served.url)], rescore=True)
    recipe = Recipe(name="words", teacher=teacher, generation=Generation(temperatures=[temperature]))
    result = rescore(run, recipe, rescorable(run, recipe))
    assert (result.replies, result.failed) == (REPLIES, 0)
    stored = {row["response_id"]: row for row in run.read("logprobs").iter_rows(named=True)}
    largest = 0.0
    for place, reply in enumerate(replies):
        row = stored[f"r{place:02}"]
        assert row["token_ids"] == reply.token_ids[: len(row["token_ids"])], "the same tokens, but for the end"
        assert len(reply.token_ids) - len(row["token_ids"]) <= 1
        sampled = np.array(reply.logprobs[: len(row["token_ids"])], np.float32)
        largest = max(largest, float(np.abs(np.array(row["logprob"]) - sampled).max()))
        ends = align(reply.pieces, reply.reasoning, reply.answer)[: len(row["token_ids"])]
        assert row["token_end"] == ends.tolist()
    assert largest < TOLERANCE
