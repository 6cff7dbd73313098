"""Replies that go on where another text ends: the prefix, and how a continuation's body joins it. Pure functions."""

import re
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from builder.errors import EmptyReply, FatalReply
from builder.reply import (
    Choice,
    Logprobs,
    Message,
    Reply,
    TokenLogprob,
    Usage,
    bare_reply,
    choice_of,
    clean,
    parse_reply,
    refuse_broken_off,
)
from builder.text import THINK_CLOSE, THINK_OPEN

_OPENING: Final = f"{THINK_OPEN}\n"
_CLOSING: Final = f"\n{THINK_CLOSE}\n\n"


@dataclass(frozen=True)
class Prefix:
    """The beginning of a completion as a release writes it. Without an answer, its think block is still open."""

    reasoning: str | None
    answer: str | None

    @classmethod
    def of(cls, text: str) -> "Prefix":
        """The prefix that `text` spells."""
        if not text.startswith(_OPENING):
            return cls(None, text)
        reasoning, closed, answer = text.removeprefix(_OPENING).partition(_CLOSING)
        return cls(reasoning, answer if closed else None)

    @property
    def text(self) -> str:
        """The prefix as it stands in the completion."""
        if self.reasoning is None:
            return self.answer or ""
        return _OPENING + self.reasoning + (_CLOSING + self.answer if self.answer is not None else "")

    @property
    def is_thinking(self) -> bool:
        """Whether the think block is open where the prefix ends."""
        return self.answer is None


class _TextLogprobs(msgspec.Struct):
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None


class _TextChoice(msgspec.Struct):
    text: str
    finish_reason: str | None = None
    logprobs: _TextLogprobs | None = None
    token_ids: list[int] | None = None


class _TextBody(msgspec.Struct):
    choices: list[_TextChoice]
    usage: Usage | None = None


_text_decoder: Final = msgspec.json.Decoder(_TextBody)


def parse(body: bytes, prefix: str | None = None, role: str = "teacher") -> Reply:
    """The whole reply in a body of status 200: what `parse_reply` reads, joined to the prefix where there is one.

    Chat completions bring the continuation split into reasoning and answer or in one text; text completions bring it
    as the model wrote it, with think tags or harmony's markers. Of role rewrite what the model itself thought is left
    out. Raises as `parse_reply`.
    """
    if prefix is None:
        return parse_reply(body, role)
    begun = Prefix.of(prefix)
    try:
        given = _text_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _from_chat(*choice_of(body), begun)
    return _from_text(given, begun)


def _from_chat(choice: Choice, usage: Usage, begun: Prefix) -> Reply:
    """The parts as they are: stripped at the seam, the words on either side of it would run together."""
    reply = bare_reply(choice, usage)
    thinking, replaced = clean(choice.message.thinking)
    content, more = clean(choice.message.content)
    reply = replace(reply, replaced_characters=replaced + more)
    written = b"".join(reply.pieces).decode(errors="replace")
    if not begun.is_thinking:  # the server's parser cannot know that the thinking is over: it may call all of it that
        return _joined(begun, reply, None, _with_lead((thinking or "") + (content or ""), written))
    if thinking is None and THINK_CLOSE in (content or ""):
        thinking, _, content = (content or "").partition(THINK_CLOSE)
    elif thinking is None and THINK_CLOSE not in written:
        thinking, content = content, None
    return _joined(begun, reply, _with_lead(thinking or "", written), content)


def _with_lead(text: str, written: str) -> str:
    """The text with the white space of its first token, which some servers strip."""
    lead = written[: len(written) - len(written.lstrip())]
    return lead + text if text and not text[0].isspace() else text


def _from_text(given: _TextBody, begun: Prefix) -> Reply:
    if len(given.choices) != 1:
        raise FatalReply(f"the endpoint gave {len(given.choices)} choices where one was asked (is `n` in extra_body?)")
    choice = given.choices[0]
    refuse_broken_off(choice.finish_reason)
    found = choice.logprobs or _TextLogprobs()
    named = zip(found.tokens or [], found.token_logprobs or [], strict=False)
    logprobs = Logprobs([TokenLogprob(token, logprob) for token, logprob in named])
    plain = Choice(Message(), choice.finish_reason, logprobs, choice.token_ids)
    text, replaced = clean(choice.text)
    thinking, answer, calls = split_written(text or "", begun)
    reply = replace(bare_reply(plain, given.usage or Usage()), tool_calls=calls, replaced_characters=replaced)
    return _joined(begun, reply, thinking, answer)


_MARKER: Final = re.compile(r"<\|(?:start|end|return|call)\|>")


def split_written(text: str, begun: Prefix) -> tuple[str | None, str | None, int]:
    """Continuation as a model wrote it, split: rest of the thinking, (rest of the) answer, number of tool calls.

    Harmony (openai/harmony docs/format.md): the message that the prefix began ends at `<|end|>`, `<|return|>` or
    `<|call|>`; each further one has a header with its channel. Think tags: the thinking ends at the closing tag.
    """
    first, *others = re.split(r"<\|start\|>", text)
    body, *marker = _MARKER.split(first, maxsplit=1)
    if not others and not marker:
        if not begun.is_thinking:
            return None, text, 0
        before, closed, after = text.partition(THINK_CLOSE)
        return before, after if closed else None, 0
    thinking: str | None = body if begun.is_thinking else None
    answer = None if begun.is_thinking else body
    calls = int("<|call|>" in first)
    for message in others:
        header, _, content = message.partition("<|message|>")
        content = _MARKER.split(content, maxsplit=1)[0]
        if "to=" in header or "<|call|>" in message:
            calls += 1
        elif "final" in header:
            answer = (answer + "\n" if answer else "") + content
        elif "analysis" in header:
            thinking = f"{thinking or ''}\n{content}"
    return thinking, answer, calls


def _joined(begun: Prefix, reply: Reply, thinking: str | None, answer: str | None) -> Reply:
    """Prefix and continuation as one reply; the prefix stays as it is to the letter, white space after the end goes."""
    if not (thinking or "").strip() and not (answer or "").strip() and reply.finish_reason != "length":
        raise EmptyReply("the endpoint added nothing to the prefix")
    if begun.is_thinking:
        reasoning: str | None = _ended(begun.reasoning or "", thinking or "")
        final = (answer or "").strip() or None
    else:
        reasoning = begun.reasoning or None
        final = _ended(begun.answer or "", answer or "") or None
    form = "unclosed" if begun.is_thinking and final is None else "tags" if reasoning else "none"
    return replace(reply, reasoning=reasoning, answer=final, reasoning_format=form)


def _ended(begun: str, rest: str) -> str:
    """Both as one text, with no white space at its end but what the prefix had."""
    return begun + rest.rstrip() if rest.strip() else begun
