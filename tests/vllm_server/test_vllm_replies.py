"""A real vLLM on the CPU serves the toy teacher as `builder serve --engine vllm` does. Needs `make vllm`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from served import Served
from tokenizers import Tokenizer

from builder.probe import probe
from builder.reply import parse_reply
from builder.store import Run
from builder.text import canonical_text
from builder.tokens import align
from builder.toy.task import problems
from builder.toy.train import TEACHER

pytestmark = pytest.mark.vllm

RECIPE = """
name: words
prompts: [{source: q.jsonl, gold_type: integer, domain: arithmetic, license: apache-2.0}]
teacher: {model: toy-teacher}
generation: {temperatures: [0.6], samples: 1, max_tokens: 160}
"""
OWN_TEMPLATE = (TEACHER / "chat_template.jinja").read_text(encoding="utf-8")
PREFILLED = OWN_TEMPLATE.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'")


def requests(number: int, **more: Any) -> list[dict[str, Any]]:
    asked = {"max_tokens": 160, "logprobs": True, "top_logprobs": 0, "return_token_ids": True, **more}
    found = problems(number, seed=3, carries=False)
    return [
        {"messages": [{"role": "user", "content": problem.question}], "temperature": 1.0, "seed": seed, **asked}
        for seed, problem in enumerate(found)
    ]


def test_probe_sees_every_ability(served: Served) -> None:
    result = probe(served.url)
    lacking = [(finding.name, finding.seen) for finding in [*result.findings, *result.steps] if not finding.works]
    assert lacking == []


@pytest.mark.parametrize("template", [None, PREFILLED], ids=["own", "prefilled"])
def test_reasoning_and_answer_and_their_tokens_come_back_whole(served: Served, template: str | None) -> None:
    tokenizer = Tokenizer.from_file(str(TEACHER / "tokenizer.json"))
    more = {} if template is None else {"chat_template": template}
    for body in served.ask(*requests(12, **more)):
        reply = parse_reply(body)
        said = tokenizer.decode(reply.token_ids, skip_special_tokens=False).removesuffix("<|im_end|>")
        thought, _, answer = said.removeprefix("<think>").partition("</think>")
        assert said.startswith("<think>") == (template is None)
        assert (reply.reasoning, reply.answer) == (thought.strip(), answer.strip())
        assert re.fullmatch(r"The answer is \d+\.", reply.answer or "")
        assert reply.reasoning_format == (served.form if template is None else served.prefilled_form)
        ends = align(reply.pieces, reply.reasoning, reply.answer)
        assert int(ends[-1]) == len(canonical_text(reply.reasoning, reply.answer).encode())
        assert len(ends) == len(reply.logprobs) == len(reply.token_ids) == reply.completion_tokens
        assert None not in reply.logprobs


def test_logprobs_of_any_temperature_are_those_of_the_bare_model(served: Served) -> None:
    for request in requests(4, temperature=0.6):
        (body,) = served.ask(request)
        reply, prompt = parse_reply(body), json.loads(body)["prompt_token_ids"]
        row = {"prompt": prompt + reply.token_ids, "max_tokens": 1, "prompt_logprobs": 0}
        (scored,) = served.ask(row, route="/completions")
        places = json.loads(scored)["choices"][0]["prompt_logprobs"][len(prompt) :]
        bare = [place[str(token)]["logprob"] for place, token in zip(places, reply.token_ids, strict=True)]
        assert reply.logprobs == pytest.approx(bare, abs=1e-4)


def test_the_models_own_sampling_settings_do_not_apply(served: Served) -> None:
    (request,) = requests(1)
    replies = [parse_reply(body) for body in served.ask(*({**request, "seed": seed} for seed in range(8)))]
    assert len({reply.reasoning for reply in replies}) > 1  # top_k 1 would give one
    (unlimited,) = served.ask({"messages": request["messages"], "temperature": 0.0})
    assert json.loads(unlimited)["usage"]["completion_tokens"] > 3  # max_new_tokens


def test_generate_stores_every_reply_and_asks_for_none_twice(served: Served, tmp_path: Path) -> None:
    rows = [{"prompt": problem.question, "gold": problem.gold} for problem in problems(40, carries=False)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "words.yaml").write_text(RECIPE, encoding="utf-8")

    def generate() -> None:
        command = [sys.executable, "-m", "builder.cli", "generate", "words.yaml", "--quiet"]
        environment = os.environ | {"OPENAI_BASE_URL": served.url, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    before = served.answered()
    generate()
    assert served.answered() - before == 40
    run = Run(tmp_path / "runs" / "words")
    assert run.read("responses").height == 40
    logprobs = run.read("logprobs")
    assert logprobs["align_detail"].to_list() == [None] * 40
    assert logprobs["token_end"].null_count() == 0
    generate()
    assert served.answered() - before == 40
