"""Harmony ids over raw completions on a real vLLM: the toy teacher, taught gpt-oss's form of a reply."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from builder.config import MixedPolicy, Recipe
from builder.continuation import Harmony, continuing
from builder.generate import send
from builder.identity import prompt_id, request_key
from builder.prefix import Prefix
from builder.requests import Request
from builder.section import Endpoint
from builder.store import Run
from builder.text import split_reasoning
from builder.toy.task import Problem, problems, reply
from builder.toy.train import TEACHER, fit
from builder.vllm_server import running_vllm

pytestmark = pytest.mark.vllm

MARKERS = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"]
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
STEPS = 200


def harmony(problem: Problem, rng: random.Random) -> str:
    reasoning, answer, _ = split_reasoning(reply(problem, rng))
    opened = f"<|channel|>analysis<|message|>{reasoning}<|end|><|start|>assistant"
    return f"{opened}<|channel|>final<|message|>{answer}<|return|>"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harmony") / "teacher"
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS}, replace_extra_special_tokens=False)
    tokenizer.eos_token, tokenizer.chat_template = "<|return|>", TEMPLATE
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TEACHER)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    fit(model, tokenizer, harmony, steps=STEPS, batch=16, lr=3e-3, seed=0, threads=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(teacher: Path) -> Iterator[str]:
    with running_vllm(teacher, model_name="toy-oss") as base:
        yield base


def prefixes(problem: Problem) -> list[Prefix]:
    """A third of the thinking, and the beginning of the answer."""
    reasoning, answer, _ = split_reasoning(reply(problem, random.Random(1)))
    assert reasoning and answer
    return [Prefix(reasoning[: reasoning.index(" ", len(reasoning) // 3)], None), Prefix(reasoning, "The answer")]


def test_a_harmony_teacher_goes_on_while_thinking_and_inside_an_answer(url: str, teacher: Path, tmp_path: Path) -> None:
    asked = {"model": "toy-oss", "tokenizer": str(teacher), "endpoints": [Endpoint(url=url)]}
    recipe = Recipe.model_validate({"name": "oss", "teacher": asked, "generation": {"max_tokens": 160}})
    found = continuing(recipe, MixedPolicy(temperature=0.0))
    assert (found.adapter, found.answers) == (Harmony.name_of_adapter, True)
    questions = problems(10, seed=11, carries=False)
    wanted = []
    for problem in questions:
        messages = [{"role": "user", "content": problem.question}]
        for begun in prefixes(problem):
            key = request_key(
                model="toy-oss",
                revision=None,
                messages=messages,
                prefix=begun.text,
                sampling={},
                seed=0,
                sample_index=0,
            )
            wanted.append(Request(key, prompt_id(messages), messages, 0.0, 0, 0, 160, begun.text, problem.gold))
    run = Run(tmp_path)
    assert send(run, recipe, found.wire, wanted, len(wanted)).done == 20
    rows = run.read("responses")
    assert set(rows["finish_reason"]) == {"stop"}
    assert set(rows["reasoning_format"]) == {"tags"}
    texts = rows["reasoning"] + rows["answer"]
    assert not texts.str.contains("<|", literal=True).any()
    right = rows["answer"] == "The answer is " + rows["prefix_response_id"] + "."
    assert right.sum() >= 16
    begun = [request.prefix for request in wanted]
    whole = [f"<think>\n{r}\n</think>\n\n{a}" for r, a in rows.select("reasoning", "answer").iter_rows()]
    assert all(any(text.startswith(prefix or "-") for prefix in begun) for text in whole)
    assert sorted(rows["prefix_chars"]) == sorted(len(prefix or "") for prefix in begun)
