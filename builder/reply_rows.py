"""A reply as rows of `responses` and `logprobs`."""

from datetime import UTC, datetime
from typing import Any

import numpy as np

from builder.batch_config import price_factor_of
from builder.config import Recipe
from builder.identity import response_id
from builder.journal import Stored
from builder.reply import Reply
from builder.tokens import AlignError, align

_OF_TEACHER = ("teacher", "mixed", "eval")


def reply_rows(recipe: Recipe, stored: Stored, reply: Reply) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """One reply as a row of `responses`, and as a row of `logprobs` where the endpoint gave any."""
    attempt = stored.attempt
    teacher = recipe.require_teacher() if attempt.role in _OF_TEACHER else None  # for prices and logprobs mode
    priced = {"judge": recipe.judge, "rewrite": recipe.rewrite}.get(attempt.role, teacher)
    identity = response_id(attempt.request_key, finish_reason=reply.finish_reason, max_tokens=attempt.max_tokens)
    prices = priced.prices.times(price_factor_of(attempt.endpoint)) if priced and priced.prices else None
    cost = (
        (prices.input * (reply.prompt_tokens or 0) + prices.output * (reply.completion_tokens or 0)) / 1e6
        if prices
        else None
    )
    response = {
        "response_id": identity,
        "prompt_id": attempt.prompt_id,
        "role": attempt.role,
        "model": attempt.model,
        "model_revision": attempt.revision,
        "sample_index": attempt.sample_index,
        "temperature": attempt.temperature,
        "seed": attempt.seed,
        "max_tokens": attempt.max_tokens,
        "reasoning": reply.reasoning,
        "answer": reply.answer,
        "reasoning_format": reply.reasoning_format,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "tool_calls": reply.tool_calls,
        "replaced_characters": reply.replaced_characters,
        "logprobs_mode": (teacher.logprobs_mode if teacher else "unknown") if reply.logprobs else None,
        "prefix_response_id": attempt.prefix_response_id,
        "prefix_chars": len(attempt.prefix or ""),
        "latency_s": stored.latency_s,
        "cost_usd": cost,
        "received_at": datetime.fromtimestamp(stored.received_at, UTC),
    }
    if not reply.logprobs:
        return response, None
    ends: np.ndarray | None = None
    detail = None
    if attempt.prefix is not None:
        detail = "the tokens cover the continuation only; the text begins with another model's"
    else:
        try:
            ends = align(reply.pieces, reply.reasoning, reply.answer)
        except AlignError as error:
            detail = str(error)
    return response, {
        "response_id": identity,
        "token_ids": np.asarray(reply.token_ids, dtype=np.int32),
        "token_end": ends,
        "logprob": np.asarray(reply.logprobs, dtype=np.float32),  # NaN for what is missing; a null in the table
        "nonfinite_count": reply.nonfinite_count,
        "align_detail": detail,
    }
