"""Continuations joined to their prefix, in the forms in which servers send them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.errors import EmptyReply, EndpointError, FatalReply
from builder.prefix import Prefix, parse
from builder.text import completion_text

THINKING = "<think>\nFirst take 3 plus 4"
ANSWERING = "<think>\nIt is 7.\n</think>\n\nThe answer"


def chat(message: dict[str, Any], pieces: list[str] | None = None, finish: str = "stop") -> bytes:
    entries = [{"token": piece, "logprob": -0.5, "bytes": list(piece.encode())} for piece in pieces or []]
    choice = {"message": message, "finish_reason": finish, "logprobs": {"content": entries} if entries else None}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}).encode()


def text(written: str, finish: str = "stop", **choice: Any) -> bytes:
    usage = {"prompt_tokens": 9, "completion_tokens": 5}
    return json.dumps({"choices": [{"text": written, "finish_reason": finish, **choice}], "usage": usage}).encode()


def parts(body: bytes, prefix: str) -> tuple[str | None, str | None]:
    reply = parse(body, prefix)
    return reply.reasoning, reply.answer


def test_without_a_prefix_a_body_is_an_ordinary_reply() -> None:
    reply = parse(chat({"content": "<think>\na\n</think>\n\nb"}))
    assert (reply.reasoning, reply.answer, reply.reasoning_format) == ("a", "b", "tags")


def test_tags_inside_the_text_end_the_thinking() -> None:
    body = chat({"content": " is 7.\n</think>\n\nThe answer is 7."})
    assert parts(body, THINKING) == ("First take 3 plus 4 is 7.", "The answer is 7.")


def test_a_reasoning_parser_brings_the_rest_of_the_thinking_apart() -> None:
    body = chat({"reasoning": " is 7.\n", "content": "\n\nThe answer is 7."})
    assert parts(body, THINKING) == ("First take 3 plus 4 is 7.", "The answer is 7.")
    older = chat({"reasoning_content": " is 7.\n", "content": "The answer is 7."})
    assert parts(older, THINKING) == ("First take 3 plus 4 is 7.", "The answer is 7.")


def test_white_space_that_a_parser_strips_at_the_seam_comes_back_from_the_tokens() -> None:
    pieces = [" is", " 7", ".", "\n", "</think>", "\n\n", "It is 7."]
    body = chat({"reasoning": "is 7.", "content": "It is 7."}, pieces)
    assert parts(body, THINKING) == ("First take 3 plus 4 is 7.", "It is 7.")


def test_thinking_that_the_continuation_closes_at_once_stays_as_the_student_left_it() -> None:
    body = chat({"reasoning": None, "content": "It is 7."}, ["\n", "</think>", "\n\n", "It is 7."])
    assert parts(body, THINKING) == ("First take 3 plus 4", "It is 7.")


def test_what_a_parser_calls_thinking_inside_an_answer_is_answer() -> None:
    for message in ({"content": " is 7."}, {"reasoning": " is 7.", "content": None}):
        assert parts(chat(message), ANSWERING) == ("It is 7.", "The answer is 7.")


def test_a_continuation_cut_while_thinking_is_unclosed() -> None:
    reply = parse(chat({"content": " is 7, wait"}, finish="length"), THINKING)
    assert (reply.reasoning, reply.answer) == ("First take 3 plus 4 is 7, wait", None)
    assert (reply.reasoning_format, reply.finish_reason) == ("unclosed", "length")


def test_harmony_messages_are_sorted_by_their_channel() -> None:
    written = (
        " is 7.<|end|><|start|>assistant<|channel|>analysis<|message|>Sure.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>The answer is 7.<|return|>"
    )
    assert parts(text(written), THINKING) == ("First take 3 plus 4 is 7.\nSure.", "The answer is 7.")
    assert parts(text(" is 7.<|return|>"), ANSWERING) == ("It is 7.", "The answer is 7.")


def test_a_harmony_tool_call_is_counted_not_read() -> None:
    written = " is…<|end|><|start|>assistant<|channel|>commentary to=functions.sum<|message|>{}<|call|>"
    reply = parse(text(written), THINKING)
    assert (reply.tool_calls, reply.reasoning, reply.answer) == (1, "First take 3 plus 4 is…", None)


def test_text_completions_with_think_tags_are_split_at_the_closing_tag() -> None:
    logprobs = {"tokens": [" is", " 7"], "token_logprobs": [-0.5, None]}
    body = text(" is 7.\n</think>\n\nThe answer is 7.", logprobs=logprobs, token_ids=[5, 6])
    reply = parse(body, THINKING)
    assert (reply.reasoning, reply.answer) == ("First take 3 plus 4 is 7.", "The answer is 7.")
    assert (reply.logprobs, reply.token_ids, reply.pieces) == ([-0.5, None], [5, 6], [b" is", b" 7"])
    assert (reply.prompt_tokens, reply.completion_tokens) == (9, 5)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (chat({"content": ""}), EmptyReply),
        (text(" \n"), EmptyReply),
        (text("x", finish="abort"), EndpointError),
        (b'{"choices": [{"text": "a"}, {"text": "b"}]}', FatalReply),
        (b"<html>", EndpointError),
    ],
)
def test_bodies_that_add_nothing_or_are_no_continuation_are_errors(body: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse(body, THINKING)


def test_lone_surrogates_of_a_continuation_are_replaced_and_counted() -> None:
    reply = parse(b'{"choices": [{"message": {"content": " a\\ud83d b"}, "finish_reason": "length"}]}', THINKING)
    assert (reply.reasoning, reply.replaced_characters) == ("First take 3 plus 4 a\ufffd b", 1)


words = st.text(st.characters(codec="utf-8", exclude_characters="<>|"), min_size=1).filter(
    lambda word: not word[0].isspace() and not word[-1].isspace()
)


@given(words, words, st.none() | words, words)
def test_the_completion_begins_with_the_prefix_to_the_letter(a: str, b: str, answer: str | None, rest: str) -> None:
    for begun in (Prefix(a, None), Prefix(a, answer), Prefix(None, a)):
        written = f" {b}\n</think>\n\n{rest}" if begun.is_thinking else f" {b}"
        for body in (chat({"content": written}), text(written)):
            reply = parse(body, begun.text)
            whole = completion_text(reply.reasoning, reply.answer)
            assert whole == begun.text + written
            assert Prefix.of(begun.text) == begun
