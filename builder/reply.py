"""Raw bodies of OpenAI-compatible endpoints, parsed into one form. Pure functions on bytes."""

import json
import math
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from builder.errors import EmptyReply, EndpointError, FatalReply
from builder.text import THINK_CLOSE, THINK_OPEN, split_reasoning

MISSING_LOGPROB: Final = -9000.0
"""vLLM writes −9999.0 where it has no logprob (spec DASD 2.7); anything at or below this is missing, not measured."""
_BROKEN_OFF: Final = frozenset({"abort", "error", "insufficient_system_resource"})
"""finish_reason of a server that gave up in the middle (vLLM, OpenRouter, DeepSeek): no end of its own, no limit."""


class TokenLogprob(msgspec.Struct):
    """One token as the endpoint names it, with its logprob in nats."""

    token: str = ""
    logprob: float | None = None
    bytes: list[int] | None = None


class Logprobs(msgspec.Struct):
    """Logprobs of a choice, token by token."""

    content: list[TokenLogprob] | None = None


class Message(msgspec.Struct):
    """The assistant message in the fields that servers use."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None
    refusal: str | None = None

    @property
    def thinking(self) -> str | None:
        """The reasoning field under its name of today or of before."""
        return self.reasoning if self.reasoning is not None else self.reasoning_content


class Choice(msgspec.Struct):
    """One choice of a chat completion. Text completions are read into it too, their text as content."""

    message: Message
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | None = None


class Usage(msgspec.Struct):
    """Tokens by the endpoint's count."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Body(msgspec.Struct):
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


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


_decoder = msgspec.json.Decoder(_Body)


def parse_reply(body: bytes) -> Reply:
    """The reply in a body of status 200. Raises EndpointError (worth another try) or FatalReply (not worth one)."""
    choice, usage = choice_of(body)
    message = choice.message
    content, replaced_content = clean(message.content or message.refusal)
    thinking, replaced_thinking = clean(message.thinking)
    if thinking and thinking.strip():
        reasoning: str | None = _without_tags(thinking)
        answer, form = (content or "").strip() or None, "field"
    else:
        reasoning, answer, form = split_reasoning(content or "")
    reply = bare_reply(choice, usage)
    if reasoning is None and answer is None and not reply.tool_calls and reply.finish_reason != "length":
        if reply.finish_reason == "content_filter":
            raise FatalReply("the endpoint's content filter left nothing of the reply")
        raise EmptyReply("the endpoint answered 200 with an empty reply")
    replaced = replaced_content + replaced_thinking
    return replace(reply, reasoning=reasoning, answer=answer, reasoning_format=form, replaced_characters=replaced)


def choice_of(body: bytes) -> tuple[Choice, Usage]:
    """The one choice of a body and its token counts. Raises as `parse_reply`."""
    parsed = _decode(body)
    if parsed.error is not None and not parsed.choices:
        raise EndpointError(f"the endpoint answered 200 with an error inside: {short(parsed.error)}")
    if not parsed.choices:
        raise EndpointError(f"the endpoint answered 200 without choices: {short(body[:200].decode(errors='replace'))}")
    if len(parsed.choices) > 1:
        raise FatalReply(f"the endpoint gave {len(parsed.choices)} choices where one was asked (is `n` in extra_body?)")
    choice = parsed.choices[0]
    refuse_broken_off(choice.finish_reason)
    return choice, parsed.usage or Usage()


def refuse_broken_off(finish_reason: str | None) -> None:
    """Raise EndpointError for a reply whose server gave up in the middle."""
    if finish_reason in _BROKEN_OFF:
        raise EndpointError(f"the endpoint broke the reply off (finish_reason {finish_reason})")


def bare_reply(choice: Choice, usage: Usage) -> Reply:
    """All of a reply but its texts."""
    message = choice.message
    pieces, logprobs, nonfinite = _tokens(choice.logprobs)
    return Reply(
        reasoning=None,
        answer=None,
        reasoning_format="none",
        finish_reason=clean(choice.finish_reason)[0],
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens if usage.completion_tokens is not None else (len(pieces) or None),
        tool_calls=len(message.tool_calls or []) + (message.function_call is not None),
        replaced_characters=0,
        token_ids=choice.token_ids or _named_ids(choice.logprobs),
        pieces=pieces,
        logprobs=logprobs,
        nonfinite_count=nonfinite,
    )


def _decode(body: bytes) -> _Body:
    """Typed decode; bare NaN and Infinity, which some servers write, and lone surrogates need the slow reader."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    start = short(body[:200].decode(errors="replace"))
    try:
        plain = json.loads(body.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise EndpointError(f"the endpoint answered 200 with a body that is no reply ({error}): {start}") from None
    try:
        return msgspec.convert(plain, _Body, strict=False)
    except msgspec.ValidationError as error:
        if isinstance(plain, dict) and plain.get("choices"):  # asking again would bring, and cost, the same
            raise FatalReply(f"the endpoint's reply has a form that is not known here ({error}): {start}") from None
        raise EndpointError(f"the endpoint answered 200 with a body that is no reply ({error}): {start}") from None


def clean(text: str | None) -> tuple[str | None, int]:
    """Text without lone surrogates, which Arrow and UTF-8 cannot hold, and how many were replaced by U+FFFD."""
    if text is None or text.isascii():
        return text, 0
    count = sum(1 for character in text if "\ud800" <= character <= "\udfff")
    return (text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), count) if count else (text, 0)


def _without_tags(thinking: str) -> str | None:
    """Reasoning from a field of its own, where some servers leave one outer tag on either side."""
    inner = thinking.strip().removeprefix(THINK_OPEN).removesuffix(THINK_CLOSE).strip()
    return inner or None


def _tokens(logprobs: Logprobs | None) -> tuple[list[bytes], list[float | None], int]:
    """Bytes and logprobs of the tokens, and how many logprobs were not finite or the sentinel for missing."""
    entries = (logprobs.content if logprobs else None) or []
    pieces: list[bytes] = []
    values: list[float | None] = []
    nonfinite = 0
    for entry in entries:
        named = entry.token.startswith("token_id:")
        if entry.bytes is not None and (entry.bytes or not entry.token):
            pieces.append(bytes(byte & 0xFF for byte in entry.bytes))
        else:
            pieces.append(b"" if named else entry.token.encode("utf-8", "replace"))
        value = entry.logprob
        if value is not None and (not math.isfinite(value) or value <= MISSING_LOGPROB):
            value = None
            nonfinite += 1
        values.append(value)
    return pieces, values, nonfinite


def _named_ids(logprobs: Logprobs | None) -> list[int]:
    """Ids from `token_id:N` names (vLLM's return_tokens_as_token_ids); empty unless every token has one."""
    entries = (logprobs.content if logprobs else None) or []
    names = [entry.token.removeprefix("token_id:") for entry in entries if entry.token.startswith("token_id:")]
    return [int(name) for name in names] if len(names) == len(entries) and all(map(str.isdecimal, names)) else []


def short(value: Any) -> str:
    """At most 200 characters of a value, for messages."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = clean(text)[0] or ""
    return text if len(text) <= 200 else text[:197] + "..."
