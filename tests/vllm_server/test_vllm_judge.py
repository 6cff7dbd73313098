"""What a judge is asked in, as a real vLLM takes it. Needs `make vllm`."""

import json

import pytest
from served import Served

from builder.judge_prompt import ANSWER, PAIR, Task, parse_vote
from builder.reply import parse_reply

pytestmark = pytest.mark.vllm

REPLIES = 6


@pytest.mark.parametrize("task", [ANSWER, PAIR], ids=["answer", "pair"])
def test_vllm_takes_our_schema_and_what_it_gives_is_a_vote_or_null(served: Served, task: Task) -> None:
    """The toy teacher knows no JSON: only the schema can make it write any. Its context holds no whole task.

    Random text inside a JSON string may hold a think tag, which ends the reasoning where no parser took it out: a null.
    """
    shared = {"messages": [{"role": "user", "content": "What is 2 + 3?"}], "temperature": 1.0, "max_tokens": 400}
    asked = [{**shared, "seed": seed, "response_format": task.response_format} for seed in range(REPLIES)]
    bodies = served.ask(*asked)
    contents = [json.loads(body)["choices"][0]["message"]["content"] for body in bodies]
    written = ["".join(content.split()) for content in contents if content]
    assert written
    assert all('{"nonce":"'.startswith(text[:10]) for text in written)
    for body in bodies:
        vote = parse_vote(parse_reply(body).answer)
        assert vote is None or vote.verdict in task.verdicts
