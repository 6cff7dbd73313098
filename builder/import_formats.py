"""Rows of published sets and logs → replies as `builder.importing` stores them. One function a format; pure.

A format states what its files state and nothing else: what no file says (temperature, finish_reason) stays None.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from builder.dialect import short
from builder.errors import EndpointError, UsageError
from builder.import_files import BadRow, Row, rows_of
from builder.import_turns import (
    PROMPT_COLUMNS,
    Given,
    facts_of,
    given,
    last_turn,
    list_in,
    messages_of,
    optional,
    prompt_columns,
    text_in,
    turns_of,
)
from builder.reply import parse_reply

_NO_ANSWER: Final = ("", "proof", "notfound", "none")
"""What OpenR1 has in `answer` where the problem has no short one (NuminaMath 1.5)."""
Reader = Callable[[Row], Iterator[Given | BadRow]]


def reader_of(name: str, requests: Path | None = None) -> Reader:
    """The function that reads a row of this format. `requests` is the input file of a vLLM batch."""
    if name == "vllm":
        if requests is None:
            raise UsageError(
                "Outputs of a vLLM batch hold no prompts. Give the file that was sent with --requests FILE: "
                "its custom_id says which prompt each reply is for."
            )
        return partial(_vllm, _requests(requests))
    return _READERS[name]


def read_row(reader: Reader, row: Row) -> Iterator[Given | BadRow]:
    """The replies of a row; a BadRow for each that is none, or one for the whole row."""
    try:
        yield from reader(row)
    except BadRow as error:
        yield error


def _dasd(row: Row) -> Iterator[Given | BadRow]:
    """Alibaba-Apsara/Superior-Reasoning-SFT-gpt-oss-120b: uuid, input, output, domain, meta, all strings.

    `output` is `<think>`, reasoning, `</think>`, answer (dataset card; spec/dasd.md section 8). The temperature is that
    of the config, which only the file's name tells.
    """
    messages = messages_of([{"role": "user", "content": text_in(row, "input")}])
    yield given(messages, text_in(row, "output"), prompt=prompt_columns(row, "domain"), uuid=optional(row, "uuid"))


def _openthoughts(row: Row) -> Iterator[Given | BadRow]:
    """OpenThoughts: `system` and `conversations` [{from, value}], or the columns of its config `metadata`.

    114k marks the parts with `<|begin_of_thought|>` … `<|end_of_solution|>`, the later sets with think tags; `from` is
    user, human, assistant or gpt. `metadata` has problem, deepseek_reasoning, deepseek_solution, domain (data cards of
    open-thoughts/OpenThoughts-114k and OpenThoughts3-1.2M).
    """
    if "conversations" not in row and "deepseek_reasoning" in row:
        messages = messages_of([{"role": "user", "content": text_in(row, "problem")}])
        thinking = text_in(row, "deepseek_reasoning")
        yield given(
            messages, text_in(row, "deepseek_solution"), thinking=thinking, prompt=prompt_columns(row, "domain")
        )
        return
    told = [turn if isinstance(turn, dict) else {} for turn in list_in(row, "conversations")]
    turns = [{"role": turn.get("from"), "content": turn.get("value")} for turn in told]
    if system := optional(row, "system"):
        turns.insert(0, {"role": "system", "content": system})
    yield last_turn(turns, prompt=prompt_columns(row, "domain"))


def _openr1(row: Row) -> Iterator[Given | BadRow]:
    """open-r1/OpenR1-Math-220k: each of `generations` is a reply to `problem`; `answer` is the gold (dataset card).

    `finish_reasons` are the server's, null where it did not say. Its correctness columns are not taken over: `builder
    verify` judges the replies by the gold, at no cost.
    """
    told = row.get("messages") or []  # its last turn is one of the generations
    asked = [turn for turn in told if isinstance(turn, dict) and turn.get("role") != "assistant"]
    messages = messages_of(asked or [{"role": "user", "content": text_in(row, "problem")}])
    gold = optional(row, "answer")
    gold = None if gold is None or gold.strip().lower() in _NO_ANSWER else gold
    is_choice = row.get("question_type") == "MCQ" and gold is not None and gold.strip() in tuple("ABCDEF")
    prompt = {"domain": "math", "gold": gold, "gold_type": gold and ("choice" if is_choice else "latex")}
    ends = row.get("finish_reasons") or []
    for index, content in enumerate(list_in(row, "generations")):
        facts = {"sample_index": index, "finish_reason": ends[index] if index < len(ends) else None}
        try:
            yield given(messages, content, prompt=prompt, facts=facts)
        except BadRow as error:
            yield BadRow(f"generation {index} {error}")


def _messages_format(row: Row) -> Iterator[Given | BadRow]:
    """`messages`, or `prompt` with `completion` or `response` (text or messages): the last turn is the reply.

    Beside them, where there are any: domain, gold, gold_type, verifier, language, license; model, temperature, seed,
    sample_index, max_tokens, finish_reason, prompt_tokens, completion_tokens.
    """
    if "messages" in row:
        turns = list_in(row, "messages")
    else:
        said = row.get("completion", row.get("response"))
        turns = turns_of(row.get("prompt"), "user", "prompt") + turns_of(said, "assistant", "completion or response")
    yield last_turn(turns, prompt=prompt_columns(row, *PROMPT_COLUMNS), facts=facts_of(row))


def _requests(path: Path) -> dict[str, Row]:
    """Body of each request of a batch by its custom_id. Raises UsageError for a file that is not of such requests."""
    found: dict[str, Row] = {}
    for place, row in rows_of(path):
        if isinstance(row, BadRow):
            raise UsageError(f"{path} {place} {row}. Each line must be a request of the batch, as it was sent.")
        name, body = row.get("custom_id"), row.get("body")
        if not isinstance(name, str) or not isinstance(body, dict):
            raise UsageError(f"{path} {place} has no custom_id with a body; is it the file that was sent to the batch?")
        if name in found:
            raise UsageError(f"{path} {place}: custom_id {name!r} was sent before, so its replies have two prompts.")
        found[name] = body
    return found


def _vllm(requests: Mapping[str, Row], row: Row) -> Iterator[Given | BadRow]:
    """Output of `vllm run-batch`: custom_id, response {status_code, body}, error (its openai/run_batch.py).

    Each choice is a reply, its logprobs included. Temperature, seed and limit are those of the request.
    """
    request = requests.get(str(row.get("custom_id")))
    if request is None:
        raise BadRow(f"custom_id {row.get('custom_id')!r} is not in the requests file")
    response = row.get("response")
    response = response if isinstance(response, dict) else {}
    body = response.get("body")
    if row.get("error") or response.get("status_code", 200) != 200 or not isinstance(body, dict):
        raise BadRow(f"is a request that failed: {short(row.get('error') or body or response)}")
    messages = messages_of(list_in(request, "messages"))
    asked = facts_of(request | {"max_tokens": request.get("max_completion_tokens") or request.get("max_tokens")})
    choices = list_in(body, "choices")
    usage = body.get("usage")
    if len(choices) > 1 and isinstance(usage, dict):  # it counts the tokens of all choices together
        body = {**body, "usage": {**usage, "completion_tokens": None}}
    for place, choice in enumerate(choices):
        try:
            reply = parse_reply(json.dumps({**body, "choices": [choice]}).encode())
        except EndpointError as error:
            yield BadRow(f"choice {place}: {error}")
            continue
        facts = {
            **asked,
            "model": optional(body, "model") or asked.get("model"),
            "sample_index": place,
            "finish_reason": reply.finish_reason,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "tool_calls": reply.tool_calls,
            "replaced_characters": reply.replaced_characters,
        }
        tokens = reply if reply.logprobs else None
        yield Given(messages, reply.reasoning, reply.answer, reply.reasoning_format, {}, facts, tokens)


_READERS: Final[dict[str, Reader]] = {
    "dasd": _dasd,
    "openthoughts": _openthoughts,
    "openr1": _openr1,
    "messages": _messages_format,
}
FORMATS: Final = (*_READERS, "vllm")
