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

OUTCOMES = {
    row["id"]: row
    for row in map(json.loads, (DATA / "wire_outcomes.jsonl").read_text(encoding="utf-8").strip().split("\n"))
}


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


@pytest.mark.parametrize(
    ("message", "reasoning", "answer", "form"),
    [
        # Mistral: content in parts
        ('{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "3 + 4"}]},'
         ' {"type": "text", "text": "7"}]}', "3 + 4", "7", "field"),
        ('{"content": [{"type": "text", "text": "It is"}, {"type": "text", "text": " 7"}]}', None, "It is 7", "none"),
        ('{"content": [{"type": "text", "text": "7"}, {"type": "reference", "ids": [0]}]}', None, "7", "none"),
        ('{"content": ["7"]}', None, "7", "none"),
        ('{"content": [{"type": "thinking", "thinking": "3 + 4"}, {"text": "7"}]}', "3 + 4", "7", "field"),
        # OpenRouter: reasoning_details beside or in place of reasoning
        ('{"content": "7", "reasoning": null, "reasoning_details": [{"type": "reasoning.text", "text": "3 "},'
         ' {"type": "reasoning.text", "text": "+ 4"}]}', "3 + 4", "7", "field"),
        ('{"content": "7", "reasoning": "3 + 4", "reasoning_details": [{"text": "other"}]}', "3 + 4", "7", "field"),
        ('{"content": "7", "reasoning_details": [{"type": "reasoning.summary", "summary": "s"}]}', "s", "7", "field"),
        ('{"content": "7", "reasoning_details": [{"type": "reasoning.encrypted", "data": "gA"}]}', None, "7", "none"),
        # gpt-oss without a parser: harmony's channels in the content
        ('{"content": "<|channel|>analysis<|message|>3 + 4<|end|><|start|>assistant<|channel|>final<|message|>7"}',
         "3 + 4", "7", "tags"),
        ('{"content": "<|start|>assistant<|channel|>final<|message|>7<|return|>"}', None, "7", "tags"),
        ('{"content": "<|channel|>analysis<|message|>3 + 4"}', "3 + 4", None, "unclosed"),
        ('{"content": "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>'
         '<|start|>assistant<|channel|>final <|constrain|>json<|message|>7"}', "a\nb", "7", "tags"),
        ('{"content": "analysis3 + 4assistantfinal7"}', "3 + 4", "7", "tags"),
        ('{"content": "analysis of the final assistant"}', None, "analysis of the final assistant", "none"),
    ],
)  # fmt: skip
def test_reasoning_in_parts_details_and_channels_is_told_apart(
    message: str, reasoning: Any, answer: Any, form: str
) -> None:
    reply = parse_reply(body(message))
    assert (reply.reasoning, reply.answer, reply.reasoning_format) == (reasoning, answer, form)


def test_a_tool_call_in_a_channel_is_counted() -> None:
    called = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"
    reply = parse_reply(
        body(json.dumps({"content": f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant{called}"}))
    )
    assert (reply.reasoning, reply.answer, reply.tool_calls) == ("hm", None, 1)


@pytest.mark.parametrize("part", [{"type": "audio", "data": "x"}, {"type": "text"}, {"type": "text", "text": [[1]]}, 7])
def test_a_part_that_is_not_known_is_fatal_because_it_was_paid_and_is_stored(part: Any) -> None:
    with pytest.raises(FatalReply):
        parse_reply(body(json.dumps({"content": [part]})))


@pytest.mark.parametrize(
    ("said", "finish"),
    [
        *[(said, "stop") for said in ("stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence", "COMPLETE")],
        *[(said, "length") for said in ("length", "max_tokens", "MAX_TOKENS", "model_length", "token_limit")],
        *[(said, said) for said in ("tool_calls", "content_filter", "", "SAFETY", "repetition")],
    ],
)
def test_an_end_has_one_name_in_every_dialect_and_what_is_not_known_stays(said: str, finish: str) -> None:
    assert parse_reply(body('{"content": "x"}', json.dumps(said))).finish_reason == finish


@pytest.mark.parametrize(
    ("given", "counted"),
    [
        ("null", None), ("-3", None), ("1e30", None), ('"many"', None), ("true", None), ("4294967296", None),
        ("2.5", None), ("[4]", None), ('"4"', 4), ("4.0", 4), ("0", 0), ("2147483647", 2147483647),
    ],
)  # fmt: skip
def test_a_count_that_is_none_is_unknown_and_costs_no_reply(given: str, counted: int | None) -> None:
    usage = f'{{"prompt_tokens": {given}, "completion_tokens": {given}}}'
    reply = parse_reply(b'{"choices": [{"message": {"content": "x"}}], "usage": ' + usage.encode() + b"}")
    assert (reply.answer, reply.prompt_tokens, reply.completion_tokens) == ("x", counted, counted)


@pytest.mark.parametrize("usage", ["null", "[]", '"none"', "7", "{}"])
def test_usage_of_any_other_form_is_unknown_and_costs_no_reply(usage: str) -> None:
    reply = parse_reply(b'{"choices": [{"message": {"content": "x"}}], "usage": ' + usage.encode() + b"}")
    assert (reply.answer, reply.prompt_tokens, reply.completion_tokens) == ("x", None, None)


def test_token_ids_that_no_table_holds_are_left_out() -> None:
    for ids in ("[-1, 5]", "[5, 2147483648]"):
        reply = parse_reply(body('{"content": "x"}', more=f', "token_ids": {ids}'))
        assert (reply.answer, reply.token_ids) == ("x", [])


def test_logprobs_in_parallel_lists_are_read_as_tokens() -> None:
    lists = ', "logprobs": {"tokens": ["<think>", "3", "</think>", "7"], "token_logprobs": [-1, null, NaN, -0.5]}'
    reply = parse_reply(body('{"content": "<think>3</think>7"}', more=lists))
    assert (reply.logprobs, reply.nonfinite_count) == ([-1.0, None, None, -0.5], 1)
    assert align(reply.pieces, reply.reasoning, reply.answer).tolist() == [0, 1, 1, 4]


def test_llama_cpp_gives_one_entry_more_than_it_counts_and_no_bytes() -> None:
    entries = [{"token": token, "logprob": -0.5, "bytes": None} for token in ("It", " is", " é", "</s>")]
    choice = {"message": {"content": "It is é"}, "finish_reason": "stop", "logprobs": {"content": entries}}
    given = {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}
    reply = parse_reply(json.dumps(given).encode())
    assert (reply.completion_tokens, len(reply.pieces)) == (3, 4)
    assert align(reply.pieces, reply.reasoning, reply.answer).tolist() == [2, 5, 8, 8]


def test_sglang_is_read_with_its_own_keys_beside() -> None:
    choice = {
        "index": 0, "matched_stop": 151645, "finish_reason": "stop", "hidden_states": None,
        "message": {"role": "assistant", "content": "7", "reasoning_content": "3 + 4", "tool_calls": None},
        "logprobs": {"content": [{"token": "7", "bytes": [55], "logprob": -0.25, "top_logprobs": []}]},
    }  # fmt: skip
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6, "prompt_tokens_details": None}
    given = {"choices": [choice], "usage": usage, "metadata": {"weight_version": "default"}}
    reply = parse_reply(json.dumps(given).encode())
    assert (reply.reasoning, reply.answer, reply.logprobs, reply.prompt_tokens) == ("3 + 4", "7", [-0.25], 5)
    with pytest.raises(EndpointError, match="broke the reply off"):
        parse_reply(json.dumps({"choices": [{**choice, "finish_reason": "abort"}]}).encode())


def stream(*chunks: Any, done: bool = True) -> bytes:
    events = [f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}" for chunk in chunks]
    return "\n\n".join([": keep-alive", *events, *(["data: [DONE]"] if done else []), ""]).encode()


def piece(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}]}


def test_a_stream_that_nobody_asked_for_is_the_reply_that_it_spells() -> None:
    entries = [{"content": [{"token": token, "logprob": -0.5, "bytes": None}]} for token in ("3", "7")]
    reply = parse_reply(
        stream(
            piece({"role": "assistant", "content": ""}),
            piece({"reasoning": "3 "}, logprobs=entries[0], token_ids=[1]),
            piece({"reasoning": "+ 4"}),
            piece({"content": "7"}, logprobs=entries[1], token_ids=[2]),
            piece({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}),
            piece({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}),
            piece({}, "max_tokens"),
            {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}},
        )
    )
    assert (reply.reasoning, reply.answer, reply.reasoning_format) == ("3 + 4", "7", "field")
    assert (reply.finish_reason, reply.tool_calls) == ("length", 1)
    assert (reply.prompt_tokens, reply.completion_tokens, reply.token_ids) == (4, 2, [1, 2])
    assert (reply.pieces, reply.logprobs) == ([b"3", b"7"], [-0.5, -0.5])


def test_a_stream_that_ends_before_its_reply_is_worth_another_try() -> None:
    for raw in (
        stream(piece({"content": "half"}), done=False),
        stream(piece({"content": "half"}), '{"choices": [{"del', done=False),
        stream(piece({"content": "half"}), {"error": {"message": "overloaded"}}),
        stream({"error": "overloaded"}),
        stream(piece({"content": "half"}, "error")),
        stream(),
        json.dumps(piece({"content": "one chunk alone"})).encode(),
    ):
        with pytest.raises(EndpointError) as caught:
            parse_reply(raw)
        assert not isinstance(caught.value, FatalReply)


def test_a_stream_of_two_choices_or_of_an_unknown_form_is_fatal() -> None:
    two = {"choices": [{"index": index, "delta": {"content": "x"}, "finish_reason": "stop"} for index in (0, 1)]}
    for raw in (stream(two), stream({"choices": [{"delta": {"content": 7}}]}), stream({"choices": 7})):
        with pytest.raises(FatalReply):
            parse_reply(raw)


def test_a_body_nested_without_end_is_our_error() -> None:
    deep = b"[" * 50_000 + b"]" * 50_000
    for raw in (deep, b'{"usage": ' + deep + b"}", b'{"choices": [{"message": {"content": ' + deep + b"}}]}"):
        with pytest.raises(EndpointError):
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


@given(
    st.text(st.sampled_from("ab \n\\é中💙\ufffd"), min_size=1, max_size=40),
    st.sets(st.integers(1, 80)),
    st.sampled_from(["replace", "backslashreplace", "ignore"]),
    st.booleans(),
)
def test_pieces_are_the_bytes_whatever_the_texts_of_split_characters_look_like(
    text: str, cuts: set[int], style: str, renamed: bool
) -> None:
    raw = text.encode()
    ends = sorted({cut for cut in cuts if cut < len(raw)} | {len(raw)})
    pieces = [raw[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    texts = [piece.decode(errors=style) for piece in pieces]
    if renamed:  # as a vocabulary spells them
        texts = [each.replace(" ", "Ġ") for each in texts]
    entries = [
        json.dumps({"token": each, "logprob": -1, "bytes": list(piece), "top_logprobs": []})
        for each, piece in zip(texts, pieces, strict=True)
    ]
    said = json.dumps({"content": text})
    reply = parse_reply(
        body(f'{said[:-1]}, "tool_calls": [{{}}]}}', more=f', "logprobs": {{"content": [{", ".join(entries)}]}}')
    )
    assert reply.pieces == pieces


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


NAMES = [
    *("choices", "message", "delta", "text", "content", "type", "thinking", "reasoning", "reasoning_details", "index"),
    *("tool_calls", "usage", "prompt_tokens", "finish_reason", "logprobs", "tokens", "token_logprobs", "token_ids"),
    *("error", "x_groq"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(JSON, min_size=1, max_size=3), st.booleans())
def test_no_json_and_no_stream_ends_in_anything_but_a_reply_or_our_error(chunks: list[Any], streamed: bool) -> None:
    wrapped = [{"choices": [chunk]} for chunk in chunks]
    raw = stream(*wrapped) if streamed else json.dumps(wrapped[0]).encode()
    try:
        parse_reply(raw)
    except BuilderError as error:
        assert isinstance(error, EndpointError)


@given(st.one_of(st.binary(max_size=60), st.recursive(st.none() | st.text(max_size=3), st.lists, max_leaves=4)))
def test_no_body_ends_in_anything_but_a_reply_or_our_error(raw: Any) -> None:
    sent = raw if isinstance(raw, bytes) else json.dumps({"choices": [{"message": {"content": raw}}]}).encode()
    try:
        parse_reply(sent)
    except BuilderError as error:
        assert isinstance(error, EndpointError)


def outcome(body: bytes) -> dict[str, Any]:
    """What a body ends as, in the form of tests/data/wire_outcomes.jsonl."""
    try:
        reply = parse_reply(body)
    except EndpointError as error:
        return {"outcome": "fatal" if isinstance(error, FatalReply) else "retryable"}
    return {
        "outcome": "reply",
        "format": reply.reasoning_format,
        "finish": reply.finish_reason,
        "tool_calls": reply.tool_calls,
        "logprobs": len(reply.logprobs),
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "reasoning_chars": len(reply.reasoning or ""),
        "answer_chars": len(reply.answer or ""),
    }


@pytest.mark.parametrize("row", [row for row in WIRE if row["status"] == 200], ids=lambda row: row["id"])
def test_real_replies_end_as_the_table_says(row: dict[str, Any]) -> None:
    assert {"id": row["id"], **outcome(row["body"].encode())} == OUTCOMES[row["id"]]


def test_the_table_says_how_every_real_reply_ends_and_no_other() -> None:
    assert set(OUTCOMES) == {row["id"] for row in WIRE if row["status"] == 200}


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
