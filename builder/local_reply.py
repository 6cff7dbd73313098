"""Replies of the local server: what the engine generated, in vLLM's chat and completion form.

- Logprobs are raw: natural log, before temperature, top-p and top-k. The end token is in `token_ids`, in the
  logprobs and in `usage`, as in vLLM.
- `bytes` of a token are its true bytes, also where a character is split between tokens (vLLM sends none then), so
  the bytes of all tokens join to the text; `token` shows such a piece with U+FFFD.
- `max_tokens: 0` with `echo` reports 0 completion tokens (vLLM generates and counts one).

Reasoning is split as vLLM's parsers for `<think>` do: the text between the tags, or all text up to `</think>` where
no `<think>` comes, is `reasoning`; the rest is `content`, null when empty; without `</think>` everything is
reasoning. Nothing is stripped: `<think>\\nA\\n</think>\\n\\nB` has the reasoning `\\nA\\n` and the content `\\n\\nB`.
The parser `auto` does this where prompt or reply open a think block, and leaves any other reply as content.
"""

import time
import uuid
from typing import TYPE_CHECKING, Any, Literal

from builder.local_engine import Engine
from builder.local_sampling import Alternative, Ask, Generated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Json = dict[str, Any]
ReasoningParser = Literal["auto", "think", "none"]

THINK_START, THINK_END = "<think>", "</think>"
FLOOR = -9999.0  # vLLM's stand-in for minus infinity, which JSON cannot hold


class Replies:
    """Writes the replies of one engine, served under one model name."""

    def __init__(self, engine: Engine, model_name: str, parser: ReasoningParser = "auto") -> None:
        self._tokenizer: PreTrainedTokenizerBase = engine.tokenizer
        self._model_name = model_name
        self._parser = parser
        self._pieces = token_bytes(self._tokenizer, engine.vocabulary)

    def chat(self, body: Json, asks: list[Ask], done: list[Generated]) -> Json:
        """A `chat.completion` with one choice for every Ask; they share the prompt."""
        choices = [self._chat_choice(body, *pair, index) for index, pair in enumerate(zip(asks, done, strict=True))]
        reply = self._envelope("chat.completion", "chatcmpl-", choices, done, prompt_tokens=len(asks[0].prompt))
        reply["prompt_logprobs"] = self._prompt_logprobs(done[0]) if body.get("prompt_logprobs") is not None else None
        reply["prompt_token_ids"] = asks[0].prompt if body.get("return_token_ids") else None
        return reply

    def completion(self, body: Json, asks: list[Ask], done: list[Generated]) -> Json:
        """A `text_completion` with one choice for every Ask."""
        choices = [self._text_choice(body, *pair, index) for index, pair in enumerate(zip(asks, done, strict=True))]
        prompts = sum(len(ask.prompt) for ask in asks[:: body.get("n") or 1])
        return self._envelope("text_completion", "cmpl-", choices, done, prompt_tokens=prompts)

    def _envelope(self, kind: str, prefix: str, choices: list[Json], done: list[Generated], prompt_tokens: int) -> Json:
        completion_tokens = sum(len(one.ids) for one in done)
        return {
            "id": prefix + uuid.uuid4().hex,
            "object": kind,
            "created": int(time.time()),
            "model": self._model_name,
            "choices": choices,
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }

    def _chat_choice(self, body: Json, ask: Ask, one: Generated, index: int) -> Json:
        reasoning, content = self._split(ask, one)
        return {
            "index": index,
            "message": {"role": "assistant", "content": content, "reasoning": reasoning},
            "logprobs": {"content": self._chat_logprobs(body, one)} if body.get("logprobs") else None,
            "finish_reason": one.finish_reason,
            "stop_reason": one.stop_reason,
            "token_ids": one.ids if body.get("return_token_ids") else None,
        }

    def _split(self, ask: Ask, one: Generated) -> tuple[str | None, str | None]:
        text = one.text
        if self._parser == "none" or (self._parser == "auto" and not self._thinks(ask, text)):
            return None, text
        before, tag, after = text.partition(THINK_START)
        reasoning, end, content = (after if tag else before).partition(THINK_END)
        return reasoning, (content or None) if end else None

    def _thinks(self, ask: Ask, text: str) -> bool:
        """Whether a think block is open where the reply begins, or the reply opens one."""
        if THINK_START in text:
            return True
        prompt = str(self._tokenizer.decode(ask.prompt))
        return prompt.rfind(THINK_START) > prompt.rfind(THINK_END)

    def _chat_logprobs(self, body: Json, one: Generated) -> list[Json]:
        as_ids, top = bool(body.get("return_tokens_as_token_ids")), body.get("top_logprobs") or 0
        entries = []
        for place, (token, logprob) in enumerate(zip(one.ids, one.logprobs, strict=True)):
            entry = self._entry(token, logprob, as_ids)
            others = one.alternatives[place][:top] if top else []
            entry["top_logprobs"] = [self._entry(other, value, as_ids) for other, value, _ in others]
            entries.append(entry)
        return entries

    def _entry(self, token: int, logprob: float, as_ids: bool) -> Json:
        return {
            "token": self._name(token, as_ids),
            "logprob": max(logprob, FLOOR),
            "bytes": list(self._pieces[token]),
        }

    def _name(self, token: int, as_ids: bool) -> str:
        return f"token_id:{token}" if as_ids else self._pieces[token].decode(errors="replace")

    def _text_choice(self, body: Json, ask: Ask, one: Generated, index: int) -> Json:
        echo, ids = bool(body.get("echo")), bool(body.get("return_token_ids"))
        prompt = str(self._tokenizer.decode(ask.prompt, clean_up_tokenization_spaces=False)) if echo else ""
        return {
            "index": index,
            "text": prompt + one.text,
            "logprobs": self._text_logprobs(body, ask, one) if body.get("logprobs") is not None else None,
            "finish_reason": one.finish_reason,
            "stop_reason": one.stop_reason,
            "token_ids": one.ids if ids else None,
            "prompt_token_ids": ask.prompt if ids else None,
            "prompt_logprobs": self._prompt_logprobs(one) if body.get("prompt_logprobs") is not None else None,
        }

    def _text_logprobs(self, body: Json, ask: Ask, one: Generated) -> Json:
        """Parallel lists, with the prompt before the generated tokens where `echo` is set."""
        as_ids, top = bool(body.get("return_tokens_as_token_ids")), int(body["logprobs"])
        tokens, logprobs = list(one.ids), list[float | None](one.logprobs)
        tables: list[list[Alternative] | None] = list(one.alternatives) or [
            [(token, value, 0)] for token, value in zip(one.ids, one.logprobs, strict=True)
        ]
        if body.get("echo") and one.prompt is not None:
            tokens = ask.prompt + tokens
            logprobs = [None, *(table[0][1] for table in one.prompt), *logprobs]
            tables = [None, *one.prompt, *tables]
        names = [self._name(token, as_ids) for token in tokens]
        offsets = [0]
        for name in names[:-1]:
            offsets.append(offsets[-1] + len(name))
        return {
            "tokens": names,
            "token_logprobs": [None if value is None else max(value, FLOOR) for value in logprobs],
            "top_logprobs": [
                table and {self._name(token, as_ids): max(value, FLOOR) for token, value, _ in table[: top + 1]}
                for table in tables
            ],
            "text_offset": offsets[: len(names)],
        }

    def _prompt_logprobs(self, one: Generated) -> list[Json | None]:
        """vLLM's form: null for the first token, then token id to logprob, rank and text, the actual token first."""
        return [
            None,
            *(
                {
                    str(token): {"logprob": max(value, FLOOR), "rank": rank, "decoded_token": self._name(token, False)}
                    for token, value, rank in table
                }
                for table in one.prompt or []
            ),
        ]


def token_bytes(tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> list[bytes]:
    """The bytes that each token id stands for. Byte-level BPE writes bytes as letters, which are mapped back."""
    letters = _byte_of_letter()
    added = tokenizer.get_added_vocab()
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    byte_level = all(letter in letters for name in names if name not in added for letter in name)
    pieces = [
        bytes(letters[letter] for letter in name)
        if byte_level and name not in added
        else (name if name in added else str(tokenizer.decode([token]))).encode()
        for token, name in enumerate(names)
    ]
    return pieces + [b""] * (vocabulary - len(pieces))  # embeddings are often padded beyond the tokenizer


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for the letters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
