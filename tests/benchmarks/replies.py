"""Bodies as vLLM writes them: reasoning, answer, token ids, a logprob for every token, one alternative where asked."""

import json
import random
from typing import Any

MODEL = "toy"
_WORDS = (" the", " of", " number", " is", ".", " x", "=", " 12", "1", ",", " so", "\n", " therefore", " é", " let")


def body(tokens: int, *, alternatives: bool, seed: int) -> bytes:
    """One reply of that many tokens, 80% of them reasoning; texts and logprobs differ from seed to seed."""
    draw = random.Random(seed)
    words = draw.choices(_WORDS, k=tokens - 3)
    thinking = len(words) * 4 // 5
    words[0], words[thinking], words[-1] = "We", "Answer", "42"
    words[thinking - 1] = words[-2] = " so"
    names = ["<think>", *words[:thinking], "</think>", *words[thinking:], "<|im_end|>"]
    choice = {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": "".join(words[thinking:]),
            "reasoning": "".join(words[:thinking]),
            "tool_calls": [],
        },
        "logprobs": {"content": [_entry(name, -2.0 * draw.random(), alternatives) for name in names]},
        "finish_reason": "stop",
        "token_ids": draw.choices(range(150_000), k=tokens),
    }
    usage = {"prompt_tokens": 50, "completion_tokens": tokens, "total_tokens": tokens + 50}
    reply = {"id": f"chatcmpl-{seed}", "object": "chat.completion", "created": 1_790_000_000, "model": MODEL}
    return json.dumps(reply | {"choices": [choice], "usage": usage}).encode()


def _entry(name: str, logprob: float, alternatives: bool) -> dict[str, Any]:
    one = {"token": name, "logprob": logprob, "bytes": list(name.encode())}
    return one | {"top_logprobs": [one] if alternatives else []}
