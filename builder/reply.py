"""Raw bodies of OpenAI-compatible endpoints as replies: reasoning, answer, tokens. Pure functions on bytes.

`builder.dialect` reads what servers write into one form; here that becomes what the tables hold.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from builder.dialect import (
    MOST,
    Choice,
    Logprobs,
    Message,
    TokenLogprob,
    UnreadToken,
    Usage,
    choice_of,
    clean,
    count,
    refuse_broken_off,
    short,
)
from builder.errors import EmptyReply, FatalReply
from builder.text import THINK_CLOSE, THINK_OPEN, split_reasoning

__all__ = [
    "MISSING_LOGPROB",
    "Choice",
    "Logprobs",
    "Message",
    "Reply",
    "TokenLogprob",
    "Usage",
    "bare_reply",
    "choice_of",
    "clean",
    "parse_reply",
    "refuse_broken_off",
    "short",
    "split_channels",
]

MISSING_LOGPROB: Final = -9000.0
"""vLLM writes −9999.0 where it has no logprob (spec DASD 2.7); anything at or below this is missing, not measured."""
_ENDS: Final = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token", "complete"), "stop"),
    **dict.fromkeys(
        ("length", "max_tokens", "max_length", "max_output_tokens", "model_length", "token_limit"), "length"
    ),
}
"""finish_reason in other words (TGI, Together, Anthropic, Cohere; Gemini, Mistral, watsonx), in lower case."""


@dataclass(frozen=True)
class Reply:
    """One reply, whatever dialect it came in. Token lists are parallel; `pieces` holds each token's bytes."""

    reasoning: str | None
    answer: str | None
    reasoning_format: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    tool_calls: int
    replaced_characters: int
    token_ids: list[int]
    pieces: list[bytes]
    logprobs: list[float | None]
    nonfinite_count: int


def parse_reply(body: bytes, role: str = "teacher") -> Reply:
    """The reply in a body of status 200. Raises EndpointError (worth another try) or FatalReply (not worth one).

    The reasoning of role rewrite is what stands between think tags in its content: a field of its own holds what the
    rewriting model thought about its task. An empty reply is an EmptyReply, but not of role eval where the endpoint
    counted tokens: the model ended at once, so it has no right answer.
    """
    choice, usage = choice_of(body)
    message = choice.message
    content, replaced_content = clean(message.content)
    thinking, replaced_thinking = clean(None if role == "rewrite" else message.thinking)
    reply = bare_reply(choice, usage)
    if thinking and thinking.strip():
        reasoning: str | None = _without_tags(thinking)
        answer, form = (content or "").strip() or None, "field"
    elif (channels := split_channels(content or "")) is not None:
        reasoning, answer, calls = channels
        form = "tags" if answer is not None or calls else "unclosed"
        reply = replace(reply, tool_calls=reply.tool_calls + calls)
    else:
        reasoning, answer, form = split_reasoning(content or "")
    if reasoning is None and answer is None and not reply.tool_calls and reply.finish_reason != "length":
        if reply.finish_reason == "content_filter":
            raise FatalReply("the endpoint's content filter left nothing of the reply")
        if role != "eval" or not reply.completion_tokens:
            raise EmptyReply("the endpoint answered 200 with an empty reply")
    replaced = replaced_content + replaced_thinking
    return replace(reply, reasoning=reasoning, answer=answer, reasoning_format=form, replaced_characters=replaced)


def bare_reply(choice: Choice, usage: Usage) -> Reply:
    """All of a reply but its texts."""
    message = choice.message
    pieces, logprobs, nonfinite = _tokens(choice)
    completion_tokens = count(usage.completion_tokens)
    finish = clean(choice.finish_reason)[0]
    return Reply(
        reasoning=None,
        answer=None,
        reasoning_format="none",
        finish_reason=_ENDS.get(finish.lower(), finish) if finish else finish,
        prompt_tokens=count(usage.prompt_tokens),
        completion_tokens=completion_tokens if completion_tokens is not None else (len(pieces) or None),
        tool_calls=len(message.tool_calls or []) + (message.function_call is not None),
        replaced_characters=0,
        token_ids=_sound_ids(choice.token_ids or _named_ids(choice.logprobs)),
        pieces=pieces,
        logprobs=logprobs,
        nonfinite_count=nonfinite,
    )


def _sound_ids(ids: list[int]) -> list[int]:
    """The token ids, or none of them where one cannot be an id."""
    return ids if ids and min(ids) >= 0 and max(ids) <= MOST else []


_CHANNEL: Final = re.compile(
    r"<\|channel\|>([^<]*)(?:<\|constrain\|>[^<]*)?<\|message\|>"
    r"(.*?)(?=<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.DOTALL,
)
_BARE_CHANNELS: Final = re.compile(r"analysis(?=\S)(.*?)(?:assistant)+final(.*)", re.DOTALL)


def split_channels(content: str) -> tuple[str | None, str | None, int] | None:
    """Reasoning, answer and tool calls of a reply that carries harmony's channels inline; None where it does not.

    Markers as openai/harmony docs/format.md has them, or what is left of them where the server drops special tokens:
    `analysis…assistantfinal…`.
    """
    text = content.lstrip()
    if not text.startswith(("<|channel|>", "<|start|>assistant")):
        bare = _BARE_CHANNELS.fullmatch(text)
        return (bare[1].strip() or None, bare[2].strip() or None, 0) if bare else None
    thought: list[str] = []
    said: list[str] = []
    calls = 0
    for header, message in _CHANNEL.findall(text):
        if "to=" in header:
            calls += 1
        elif header.strip() == "final":
            said.append(message.strip())
        elif header.strip() == "analysis":
            thought.append(message.strip())
    return "\n".join(thought) or None, "\n".join(said) or None, calls


def _without_tags(thinking: str) -> str | None:
    """Reasoning from a field of its own, where some servers leave one outer tag on either side."""
    inner = thinking.strip().removeprefix(THINK_OPEN).removesuffix(THINK_CLOSE).strip()
    return inner or None


def _tokens(choice: Choice) -> tuple[list[bytes], list[float | None], int]:
    """Bytes and logprobs of the tokens, and how many logprobs were not finite or the sentinel for missing."""
    entries = (choice.logprobs.content if choice.logprobs else None) or []
    values = [entry.logprob for entry in entries]
    odd = np.flatnonzero(~(np.abs(np.array(values, dtype=np.float64)) < -MISSING_LOGPROB))  # null becomes NaN
    nonfinite = sum(values[place] is not None for place in odd)
    for place in odd:
        values[place] = None
    return _pieces(entries, choice.message), values, nonfinite


def _pieces(entries: Sequence[TokenLogprob | UnreadToken], message: Message) -> list[bytes]:
    """Bytes of each token: its text where the texts hold the reply's own words to the byte, else what `bytes` says.

    A text that is empty, or has U+FFFD or a backslash (`\\xf0`), may stand for part of a character: then its bytes are
    read in any case.
    """
    said = [part.encode("utf-8", "replace") for part in (message.thinking, message.content) if part]
    pieces = [
        _piece(entry)
        if not (text := entry.token) or "\ufffd" in text or "\\" in text
        else text.encode("utf-8", "replace")
        for entry in entries
    ]
    stream = b"".join(pieces)
    return pieces if said and all(part in stream for part in said) else [_piece(entry) for entry in entries]


def _piece(entry: TokenLogprob | UnreadToken) -> bytes:
    """A token's bytes as given, else its text; none where the text is only a name for its id."""
    if isinstance(entry, UnreadToken):
        entry = entry.read()
    if entry.bytes is not None and (entry.bytes or not entry.token):
        return _bytes(entry.bytes)
    return b"" if entry.token.startswith("token_id:") else entry.token.encode("utf-8", "replace")


def _bytes(given: list[int]) -> bytes:
    """A token's bytes; some servers write them as signed."""
    try:
        return bytes(given)
    except (ValueError, OverflowError):
        return bytes(byte & 0xFF for byte in given)


def _named_ids(logprobs: Logprobs | None) -> list[int]:
    """Ids from `token_id:N` names (vLLM's return_tokens_as_token_ids); empty unless every token has one."""
    entries = (logprobs.content if logprobs else None) or []
    names = [entry.token.removeprefix("token_id:") for entry in entries if entry.token.startswith("token_id:")]
    return [int(name) for name in names] if len(names) == len(entries) and all(map(str.isdecimal, names)) else []
