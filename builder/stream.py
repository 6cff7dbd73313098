"""Streamed bodies (server-sent events) as the one body that the same endpoint gives unstreamed. Pure functions.

Nothing here asks for a stream, but some gateways stream to everybody. Such a reply is whole and paid for: asking again
would cost, and bring, the same.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from builder.errors import EndpointError, FatalReply

_NO_DATA: Final = (":", "event:", "id:", "retry:")


class _Delta(msgspec.Struct):
    content: str | list[Any] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    reasoning_details: list[Any] | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


class _Lists(msgspec.Struct):
    content: list[Any] | None = None
    refusal: list[Any] | None = None
    tokens: list[Any] | None = None
    token_logprobs: list[Any] | None = None


class _Piece(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Lists | None = None
    token_ids: list[Any] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Piece] | None = None
    usage: Any = None
    x_groq: Any = None  # where Groq puts the token counts of a stream
    error: Any = None


@dataclass
class _Choice:
    """One choice as its chunks add up."""

    texts: dict[str, list[Any]] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)  # of a text completion, which has no message
    has_message: bool = False
    calls: dict[Any, Any] = field(default_factory=dict)
    function_call: Any = None
    details: list[Any] = field(default_factory=list)
    logprobs: dict[str, list[Any]] = field(default_factory=dict)
    token_ids: list[Any] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, piece: _Piece) -> None:
        """What one chunk says of this choice."""
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.text.append(piece.text or "")
        delta = piece.delta or piece.message
        if delta is not None:
            self._add_message(delta)
        for name in ("content", "refusal", "tokens", "token_logprobs"):
            self.logprobs.setdefault(name, []).extend(getattr(piece.logprobs, name, None) or [])
        self.token_ids.extend(piece.token_ids or [])

    def _add_message(self, delta: _Delta) -> None:
        self.has_message = True
        for name in ("content", "reasoning", "reasoning_content", "refusal"):
            if said := getattr(delta, name):
                self.texts.setdefault(name, []).append(said)
        self.details.extend(delta.reasoning_details or [])
        self.function_call = delta.function_call or self.function_call
        for call in delta.tool_calls or []:  # its arguments come in many chunks; only their number is told on
            self.calls.setdefault(str(call.get("index")) if isinstance(call, dict) else "", call)

    def whole(self) -> dict[str, Any]:
        """The choice in the form of an unstreamed body."""
        choice: dict[str, Any] = {
            "finish_reason": self.finish_reason,
            "logprobs": {name: entries for name, entries in self.logprobs.items() if entries} or None,
            "token_ids": self.token_ids or None,
        }
        if not self.has_message:
            return {**choice, "text": "".join(self.text)}
        message: dict[str, Any] = {name: _joined(pieces) for name, pieces in self.texts.items()}
        message |= {"tool_calls": list(self.calls.values()), "function_call": self.function_call}
        return {**choice, "message": {**message, "reasoning_details": self.details or None}}


def _joined(pieces: list[Any]) -> Any:
    """Pieces of text as one; as a list of parts where the endpoint sends its content so."""
    if all(isinstance(piece, str) for piece in pieces):
        return "".join(pieces)
    return [part for piece in pieces for part in (piece if isinstance(piece, list) else [piece])]


def assembled(text: str) -> dict[str, Any] | None:
    """The streamed reply in `text` as an unstreamed body; None where `text` is no stream.

    Raises EndpointError for a stream that ends before its reply does: without an end of its own, or with an error;
    FatalReply for chunks of a form that is not known here.
    """
    chunks, ended = _chunks(text)
    if not chunks:
        return None
    choices: dict[Any, _Choice] = {}
    usage = None
    for chunk in chunks:
        over = bool(choices) and all(choice.finish_reason for choice in choices.values())
        if chunk.error and not over:
            said = json.dumps(chunk.error, ensure_ascii=False)[:200]
            raise EndpointError(f"the endpoint broke its stream off with an error: {said}")
        usage = chunk.usage or (chunk.x_groq.get("usage") if isinstance(chunk.x_groq, dict) else None) or usage
        for piece in chunk.choices or []:
            choices.setdefault(piece.index, _Choice()).add(piece)
    if choices and not ended and not all(choice.finish_reason for choice in choices.values()):
        raise EndpointError("the endpoint streamed a reply that breaks off before its end")
    return {"choices": [choice.whole() for choice in choices.values()], "usage": usage}


def _chunks(text: str) -> tuple[list[_Chunk], bool]:
    """The objects of the events, and whether the stream said that it is over. None where the first is no object."""
    chunks: list[_Chunk] = []
    for line in text.split("\n"):
        payload = line.strip()
        if not payload or payload.startswith(_NO_DATA):
            continue
        payload = payload.removeprefix("data:").strip()
        if payload == "[DONE]":
            return chunks, True
        try:
            chunk = json.loads(payload)
        except (ValueError, RecursionError):
            return chunks, False  # cut in the middle of an event, if there was one before
        if not isinstance(chunk, dict):
            return [], False
        try:
            chunks.append(msgspec.convert(chunk, _Chunk, strict=False))
        except (msgspec.ValidationError, RecursionError) as error:
            raise FatalReply(
                f"the endpoint streamed a reply in a form that is not known here ({error}): {payload[:200]}"
            ) from None
    return chunks, False
