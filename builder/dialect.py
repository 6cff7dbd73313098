"""What endpoints write into a chat completion, read into one form: one choice, its message, its token counts.

Text completions and streams are read into it too. Pure functions on bytes.
"""

import json
from collections.abc import Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

from builder.errors import EndpointError, FatalReply
from builder.stream import assembled

_BROKEN_OFF: Final = frozenset({"abort", "error", "insufficient_system_resource", "network_error"})
"""finish_reason of a server that gave up in the middle (vLLM, SGLang, OpenRouter, DeepSeek, Z.ai): no end, no limit."""
MOST: Final = 2**31 - 1
"""Largest token count or id that a table holds; anything above is no count."""


class TokenLogprob(msgspec.Struct, gc=False):
    """One token as the endpoint names it, with its logprob in nats."""

    token: str = ""
    logprob: float | None = None
    bytes: list[int] | None = None


class UnreadToken(msgspec.Struct, gc=False):
    """The same with its bytes still JSON: to read them takes as long as all the rest, and texts mostly say the same."""

    token: str = ""
    logprob: float | None = None
    bytes: msgspec.Raw = msgspec.Raw()

    def read(self) -> TokenLogprob:
        """With its bytes; without where they are no list of numbers."""
        try:
            given = _bytes_decoder.decode(self.bytes) if bytes(self.bytes) else None
        except msgspec.DecodeError:
            given = None
        return TokenLogprob(self.token, self.logprob, given)


_bytes_decoder = msgspec.json.Decoder(list[int] | None)


class Logprobs(msgspec.Struct):
    """Logprobs of a choice, token by token."""

    content: Sequence[TokenLogprob | UnreadToken] | None = None


class Message(msgspec.Struct):
    """The assistant message: what it says, what it thinks where the server tells that apart."""

    content: str | None = None
    thinking: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


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


_Token = TypeVar("_Token")


class _WireLogprobs(msgspec.Struct, Generic[_Token]):
    """Token by token (those of a refusal apart), or (text completions, Together) in parallel lists."""

    content: list[_Token] | None = None
    refusal: list[_Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None


class _WireMessage(msgspec.Struct):
    """The message in the fields that servers use."""

    content: str | list[Any] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    reasoning_details: Any = None
    tool_calls: list[Any] | None = None
    function_call: Any = None
    refusal: str | None = None


class _WireChoice(msgspec.Struct, Generic[_Token]):
    message: _WireMessage | None = None
    text: str | None = None
    delta: Any = None
    finish_reason: str | None = None
    logprobs: _WireLogprobs[_Token] | None = None
    token_ids: list[int] | None = None


class _Body(msgspec.Struct, Generic[_Token]):
    choices: list[_WireChoice[_Token]] | None = None
    usage: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Body[UnreadToken])


def choice_of(body: bytes) -> tuple[Choice, Usage]:
    """The one choice of a body and its token counts. Raises as `parse_reply`."""
    parsed = _decode(body)
    if parsed.error is not None and not parsed.choices:
        raise EndpointError(f"the endpoint answered 200 with an error inside: {short(parsed.error)}")
    if not parsed.choices:
        raise EndpointError(f"the endpoint answered 200 without choices: {short(body[:200].decode(errors='replace'))}")
    if len(parsed.choices) > 1:
        raise FatalReply(f"the endpoint gave {len(parsed.choices)} choices where one was asked (is `n` in extra_body?)")
    given = parsed.choices[0]
    refuse_broken_off(given.finish_reason)
    if given.message is None and given.text is None and given.delta is not None:
        raise EndpointError("the endpoint streamed a reply that breaks off after its first chunk")
    choice = Choice(_message(given), given.finish_reason, _one_form(given.logprobs), given.token_ids)
    return choice, _usage(parsed.usage)


def refuse_broken_off(finish_reason: str | None) -> None:
    """Raise EndpointError for a reply whose server gave up in the middle."""
    if finish_reason is not None and finish_reason.lower() in _BROKEN_OFF:
        raise EndpointError(f"the endpoint broke the reply off (finish_reason {finish_reason})")


def _message(given: _WireChoice[Any]) -> Message:
    """What a choice says and thinks, from whichever fields hold it."""
    message = given.message or _WireMessage(content=given.text)
    content, thinking = message.content, message.reasoning
    if thinking is None:
        thinking = message.reasoning_content
    if isinstance(content, list):
        content, inside = _read_parts(content)
        thinking = thinking or inside
    thinking = thinking or _details(message.reasoning_details) or thinking
    call = message.function_call
    if isinstance(call, dict) and call.get("name") == "":  # Snowflake sends every field, those that mean nothing too
        call = None
    return Message(content or message.refusal, thinking, message.tool_calls, call)


def _read_parts(parts: list[Any]) -> tuple[str, str]:
    """Content in parts (Mistral, Anthropic's dialect): text and thinking. Raises FatalReply for parts not known."""
    said: list[str] = []
    thought: list[str] = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind in ("thinking", "reasoning"):
            thought.append(_part_text(part))
        elif kind in ("text", "output_text", "refusal"):
            said.append(_part_text(part))
        elif kind not in ("reference", "redacted_thinking"):  # these hold no text
            raise FatalReply(f"the endpoint's reply has content of a type that is not known here: {short(part)}")
    return "".join(said), "".join(thought)


def _part_text(part: Any) -> str:
    """The text of one part: a string, or (Mistral's thinking) strings and text parts."""
    names = ("text", "thinking", "reasoning", "refusal")
    found = next((part[name] for name in names if part.get(name) is not None), None) if isinstance(part, dict) else part
    pieces = found if isinstance(found, list) else [found]
    texts = [piece.get("text") if isinstance(piece, dict) else piece for piece in pieces]
    if not all(isinstance(text, str) for text in texts):
        raise FatalReply(f"the endpoint's reply has a part without text: {short(part)}")
    return "".join(map(str, texts))


def _details(details: Any) -> str | None:
    """Thinking from OpenRouter's reasoning_details: its text, else its summary; encrypted thinking is none."""
    found = [detail for detail in details if isinstance(detail, dict)] if isinstance(details, list) else []
    for name in ("text", "summary"):
        texts = [detail[name] for detail in found if isinstance(detail.get(name), str)]
        if texts:
            return "".join(texts)
    return None


def _one_form(given: _WireLogprobs[Any] | None) -> Logprobs | None:
    if given is None or given.tokens is None:
        return Logprobs(given.content or given.refusal) if given else None
    values = given.token_logprobs or []
    named = [TokenLogprob(token, value) for token, value in zip(given.tokens, values, strict=False)]
    return Logprobs(given.content or named)


def _usage(given: Any) -> Usage:
    """Token counts; unknown where the endpoint gives none, or something that is no count."""
    counts = given if isinstance(given, dict) else {}
    return Usage(count(counts.get("prompt_tokens")), count(counts.get("completion_tokens")))


def count(value: Any) -> int | None:
    """A token count: a whole number from 0 that a table can hold, also as text or float. None for anything else."""
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        return None
    return int(number) if 0 <= number <= MOST and number.is_integer() else None


def _decode(body: bytes) -> _Body[UnreadToken] | _Body[TokenLogprob]:
    """Typed decode; bare NaN and Infinity, which some servers write, and lone surrogates need the slow reader."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    start = short(body[:200].decode(errors="replace"))
    text = body.decode("utf-8", errors="replace")
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        plain = assembled(text)
        if plain is None:
            raise EndpointError(f"the endpoint answered 200 with a body that is no reply ({error}): {start}") from None
    try:
        return msgspec.convert(plain, _Body[TokenLogprob], strict=False)
    except (msgspec.ValidationError, RecursionError) as error:
        if isinstance(plain, dict) and plain.get("choices"):  # asking again would bring, and cost, the same
            raise FatalReply(f"the endpoint's reply has a form that is not known here ({error}): {start}") from None
        raise EndpointError(f"the endpoint answered 200 with a body that is no reply ({error}): {start}") from None


def clean(text: str | None) -> tuple[str | None, int]:
    """Text without lone surrogates, which Arrow and UTF-8 cannot hold, and how many were replaced by U+FFFD."""
    if text is None or text.isascii():
        return text, 0
    try:
        text.encode()
    except UnicodeEncodeError:
        count = sum(1 for character in text if "\ud800" <= character <= "\udfff")
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), count
    return text, 0


def short(value: Any) -> str:
    """At most 200 characters of a value, for messages."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        text = "nested too deep"
    text = clean(text)[0] or ""
    return text if len(text) <= 200 else text[:197] + "..."
