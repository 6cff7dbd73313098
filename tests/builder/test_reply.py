import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.errors import BuilderError, EndpointError, FatalReply
from builder.reply import Reply, parse_reply
from builder.text import canonical_text
from builder.tokens import align

DATA = Path(__file__).parents[1] / "data"
WIRE = [json.loads(line) for line in (DATA / "wire_replies.jsonl").read_text(encoding="utf-8").split("\n") if line]
VLLM = [json.loads(line) for line in (DATA / "vllm_replies.jsonl").read_text(encoding="utf-8").split("\n") if line]


def body(message: str, finish: str = '"stop"', more: str = "") -> bytes:
    return f'{{"choices": [{{"message": {message}, "finish_reason": {finish}{more}}}]}}'.encode()


def tokens(*entries: str) -> Reply:
    return parse_reply(body('{"content": "x"}', more=f', "logprobs": {{"content": [{", ".join(entries)}]}}'))


@pytest.mark.parametrize(
    ("message", "reasoning", "answer", "form"),
    [
        ('{"content": "7", "reasoning": "3 + 4"}', "3 + 4", "7", "field"),
        ('{"content": "7", "reasoning_content": " 3 + 4\\n"}', "3 + 4", "7", "field"),
        ('{"content": "7", "reasoning": "<think>\\n3 + 4\\n</think>"}', "3 + 4", "7", "field"),
        ('{"content": "\\n\\n7", "reasoning": null, "reasoning_content": "3 + 4"}', "3 + 4", "7", "field"),
        ('{"content": null, "reasoning": "3 + 4"}', "3 + 4", None, "field"),
        ('{"content": "<think>3 + 4</think>7", "reasoning": ""}', "3 + 4", "7", "tags"),
        ('{"content": "<think>\\n3 + 4\\n</think>\\n\\n7"}', "3 + 4", "7", "tags"),
        ('{"content": "<think></think>7"}', None, "7", "tags"),
        ('{"content": "3 + 4</think>7"}', "3 + 4", "7", "prefilled"),
        ('{"content": "<think>3 + 4"}', "3 + 4", None, "unclosed"),
        ('{"content": "7"}', None, "7", "none"),
        ('{"content": "say <think> aloud"}', None, "say <think> aloud", "none"),
        ('{"content": null, "refusal": "No."}', None, "No.", "none"),
        ('{"role": "assistant", "content": "7", "annotations": [], "audio": null}', None, "7", "none"),
    ],
)
def test_reasoning_and_answer_of_every_dialect(message: str, reasoning: Any, answer: Any, form: str) -> None:
    reply = parse_reply(body(message))
    assert (reply.reasoning, reply.answer, reply.reasoning_format) == (reasoning, answer, form)


@pytest.mark.parametrize(
    "raw",
    [
        body('{"content": null}'),
        body('{"content": " \\n"}'),
        body('{"content": "half a repl"}', '"abort"'),
        body('{"content": "half a repl"}', '"error"'),
        b"",
        b"   ",
        b"<html><body>502 Bad Gateway</body></html>",
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"error": {"message": "overloaded"}}',
        b'{"error": "\\ud800"}',
        b'{"object": "error", "message": "out of memory", "code": 500}',
        b'{"detail": "not found"}',
        b"[1]",
        b"null",
        b'{"choices": [{"message": {"content": "cut in the mid',
        b"\xff\xfe\x00",
    ],
)
def test_a_body_without_a_reply_is_worth_another_try(raw: bytes) -> None:
    with pytest.raises(EndpointError) as caught:
        parse_reply(raw)
    assert not isinstance(caught.value, FatalReply)
    assert str(caught.value).encode()  # no lone surrogate


@pytest.mark.parametrize(
    "raw",
    [
        b'{"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}',
        body('{"content": ""}', '"content_filter"'),
        body('{"content": {"parts": ["a form that is not known here"]}}'),
    ],
)
def test_a_body_that_would_cost_the_same_again_is_fatal(raw: bytes) -> None:
    with pytest.raises(FatalReply):
        parse_reply(raw)


def test_a_reply_of_tool_calls_alone_is_a_reply() -> None:
    assert parse_reply(body('{"content": null, "tool_calls": [{}, {}]}', '"tool_calls"')).tool_calls == 2
    assert parse_reply(body('{"content": null, "function_call": {}}', '"function_call"')).tool_calls == 1


def test_a_reply_cut_before_its_first_word_is_a_fact_not_an_error() -> None:
    reply = parse_reply(body('{"content": ""}', '"length"'))
    assert (reply.reasoning, reply.answer, reply.finish_reason) == (None, None, "length")


def test_logprobs_that_are_not_finite_are_null_and_counted() -> None:
    values = ["-0.5", "NaN", "-Infinity", "Infinity", "-9999.0", "null", "0", "-1e999"]
    reply = tokens(*(f'{{"token": "a", "logprob": {value}}}' for value in values))
    assert reply.logprobs == [-0.5, None, None, None, None, None, 0.0, None]
    assert reply.nonfinite_count == 5


def test_a_character_split_over_tokens_keeps_its_bytes() -> None:
    reply = tokens(
        '{"token": "\\\\xf0\\\\x9f\\\\x92", "logprob": 0, "bytes": [240, 159, 146]}',
        '{"token": "", "logprob": 0, "bytes": [153]}',
        '{"token": "", "logprob": 0, "bytes": []}',
        '{"token": "é", "logprob": 0, "bytes": null}',
        '{"token": "é", "logprob": 0, "bytes": [-61, -87]}',
    )
    assert reply.pieces == ["💙".encode()[:3], "💙".encode()[3:], b"", "é".encode(), "é".encode()]


def test_token_ids_come_from_their_field_or_from_names() -> None:
    named = tokens('{"token": "token_id:5", "logprob": 0, "bytes": [65]}', '{"token": "token_id:60", "logprob": 0}')
    assert (named.token_ids, named.pieces) == ([5, 60], [b"A", b""])
    assert tokens('{"token": "token_id:5", "logprob": 0}', '{"token": "b", "logprob": 0}').token_ids == []
    assert tokens('{"token": "token_id:", "logprob": 0}').token_ids == []
    assert parse_reply(body('{"content": "x"}', more=', "token_ids": [1, 2]')).token_ids == [1, 2]
    assert parse_reply(body('{"content": "x"}', more=', "token_ids": null, "logprobs": {}')).token_ids == []


def test_lone_surrogates_are_replaced_and_counted() -> None:
    reply = parse_reply(body('{"content": "a\\ud83d!", "reasoning": "\\udc99\\ud83d\\udc99"}', '"st\\ud800op"'))
    assert (reply.answer, reply.reasoning, reply.replaced_characters) == ("a\ufffd!", "\ufffd💙", 2)
    assert reply.finish_reason == "st\ufffdop"


def test_missing_usage_is_counted_from_the_tokens_or_unknown() -> None:
    assert parse_reply(body('{"content": "x"}')).completion_tokens is None
    assert tokens('{"token": "x", "logprob": 0}').completion_tokens == 1
    used = b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "3", "completion_tokens": 4.0}}'
    assert (parse_reply(used).prompt_tokens, parse_reply(used).completion_tokens) == (3, 4)


@given(st.one_of(st.binary(max_size=60), st.recursive(st.none() | st.text(max_size=3), st.lists, max_leaves=4)))
def test_no_body_ends_in_anything_but_a_reply_or_our_error(raw: Any) -> None:
    sent = raw if isinstance(raw, bytes) else json.dumps({"choices": [{"message": {"content": raw}}]}).encode()
    try:
        parse_reply(sent)
    except BuilderError as error:
        assert isinstance(error, EndpointError)


FATAL = "fatal"
REAL: dict[str, Any] = {  # id: (format, finish_reason, tool calls, tokens with logprobs) or fatal
    "wire-0015": ("none", "stop", 0, 10),
    "wire-0023": FATAL,  # two choices
    "wire-0027": ("none", "stop", 0, 14),
    "wire-0044": ("field", "stop", 0, 0),
    "wire-0048": ("tags", "stop", 0, 0),
    "wire-0053": ("field", "stop", 0, 0),
    "wire-0054": ("field", "tool_calls", 1, 0),
    "wire-0058": ("field", "stop", 0, 0),
    "wire-0073": ("unclosed", "length", 0, 0),
    "wire-0113": ("none", "", 1, 0),
    "wire-0148": ("none", "function_call", 1, 0),
    "wire-0182": ("none", "stop", 0, 0),
}


@pytest.mark.parametrize("row", [row for row in WIRE if row["status"] == 200], ids=lambda row: row["id"])
def test_real_replies_end_as_the_table_says(row: dict[str, Any]) -> None:
    try:
        reply = parse_reply(row["body"].encode())
    except FatalReply:
        assert REAL[row["id"]] == FATAL
    else:
        shape = (reply.reasoning_format, reply.finish_reason, reply.tool_calls, len(reply.logprobs))
        assert shape == REAL[row["id"]]


def test_the_tokens_of_real_replies_spell_their_text() -> None:
    real = {row["id"]: parse_reply(row["body"].encode()) for row in WIRE if row["id"] in ("wire-0015", "wire-0027")}
    for reply in real.values():
        assert b"".join(reply.pieces).decode().removesuffix("<|im_end|>") == reply.answer
    assert len(real["wire-0015"].token_ids) == 10


OF_VLLM: dict[str, tuple[str, bool, int]] = {  # id: (format, whether an answer follows, tokens)
    "vllm-inline-tags": ("tags", True, 75),
    "vllm-inline-prefilled": ("prefilled", True, 73),
    "vllm-inline-cut": ("unclosed", False, 14),
    "vllm-field": ("field", True, 75),
    "vllm-field-prefilled": ("field", True, 73),
    "vllm-field-cut": ("field", False, 14),
}


@pytest.mark.parametrize("row", VLLM, ids=lambda row: row["id"])
def test_every_dialect_of_vllm_gives_the_same_reply_with_all_its_tokens(row: dict[str, Any]) -> None:
    reply = parse_reply(row["body"].encode())
    form, answered, size = OF_VLLM[row["id"]]
    assert (reply.reasoning_format, reply.completion_tokens) == (form, size)
    assert len(reply.pieces) == len(reply.token_ids) == len(reply.logprobs) == size
    assert (reply.reasoning or "").startswith("We need the number of pens at the end.\nFirst add")
    assert (reply.reasoning or "").endswith("So there are 62 pens." if answered else "First add")
    assert (reply.answer, reply.finish_reason) == (("The answer is 62.", "stop") if answered else (None, "length"))
    ends = align(reply.pieces, reply.reasoning, reply.answer)
    assert int(ends[-1]) == len(canonical_text(reply.reasoning, reply.answer).encode())
