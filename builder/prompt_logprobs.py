"""Logprobs of given tokens in the bodies of completions: vLLM's prompt logprobs, and an echoed prompt's. Pure."""

import json
from collections.abc import Sequence
from typing import Final, Literal

import msgspec
import numpy as np

from builder.reply import MISSING_LOGPROB
from builder.student import NoLogprobs
from builder.windows import Row

Way = Literal["prompt_logprobs", "echo"]
"""How a server gives them: vLLM's extension, or `echo` with `logprobs` as OpenAI's first completions had it."""

REQUESTS: Final[dict[Way, dict[str, object]]] = {
    # 0: the token itself and no alternatives. vLLM takes no prefix from its cache for such a request.
    "prompt_logprobs": {"prompt_logprobs": 0, "return_token_ids": True},
    "echo": {"echo": True, "logprobs": 1},  # 1: some servers read 0 as none
}
_ROUNDING: Final = 1e-3
"""Nats above 0 that half precision may give; more is a logit, which vLLM sends under --logprobs-mode raw_logits."""
_SPACES: Final = str.maketrans("▁Ġ", "  ")  # how sentencepiece and GPT-2 write a space before a word


class _Value(msgspec.Struct, gc=False):
    logprob: float | None = None


_Entry = dict[int, _Value] | None


class _Echoed(msgspec.Struct):
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None


class _Choice(msgspec.Struct):
    prompt_logprobs: list[_Entry] | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: _Echoed | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice] | None = None


_decoder = msgspec.json.Decoder(_Body)


def read_logprobs(body: bytes, row: Row) -> np.ndarray | NoLogprobs:
    """Logprobs of the completion tokens in a completion of the row's ids, nats, float32; or why there are none.

    vLLM's form: a list with null for the first token, then `{token id: {logprob, rank, decoded_token}}`.
    """
    choice = _choice(body)
    if isinstance(choice, NoLogprobs):
        return choice
    ids, given, read = row.ids, choice.prompt_logprobs, choice.prompt_token_ids
    if given is None:
        return NoLogprobs("the endpoint gives no prompt logprobs")
    if read is not None and read != ids:
        return NoLogprobs(f"the endpoint reads other tokens, {_difference(read, ids)}")
    if len(given) != len(ids):
        return NoLogprobs(f"the endpoint gives {len(given)} prompt logprobs for {len(ids)} tokens")
    found = zip(given[len(row.prompt_ids) :], row.completion_ids, strict=True)
    return _sound([(entry or {}).get(token, _Value()).logprob for entry, token in found], row.completion_ids)


def read_echo(body: bytes, row: Row, texts: Sequence[str] | None = None, *, lead: int = 0) -> np.ndarray | NoLogprobs:
    """The same of an echoed prompt: `logprobs.tokens` and `.token_logprobs`, prompt first, then the token it adds.

    With `texts`, those of the row's ids, the tokens must be named alike: a server with another vocabulary takes the
    ids too. `lead` tokens that the server put before the prompt are passed over.
    """
    choice = _choice(body)
    if isinstance(choice, NoLogprobs):
        return choice
    ids = row.ids
    values = (choice.logprobs.token_logprobs if choice.logprobs else None) or []
    names = ((choice.logprobs.tokens if choice.logprobs else None) or [])[lead:]
    if not values:
        return NoLogprobs("the endpoint gives no logprobs of an echoed prompt's own tokens")
    values = values[lead:]
    # One value too few and the new token's would look complete, and every logprob stand one place off.
    if not (len(values) == len(ids) + 1 or (len(values) == len(ids) and values[0] is None)):
        return NoLogprobs(f"the endpoint echoes {len(values)} logprobs for {len(ids)} tokens and a new one")
    if texts is not None and (said := _other_texts(names[: len(ids)], texts)):
        return NoLogprobs(said)
    return _sound(values[len(row.prompt_ids) : len(ids)], row.completion_ids)


def _choice(body: bytes) -> _Choice | NoLogprobs:
    """Typed decode; bare NaN and Infinity, which some servers write, need the slow reader."""
    try:
        parsed = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            parsed = msgspec.convert(json.loads(body), _Body, strict=False)
        except (ValueError, RecursionError, msgspec.ValidationError):
            parsed = _Body()
    if not parsed.choices:
        return NoLogprobs(f"the endpoint answers what is no completion: {body[:120].decode(errors='replace')!r}")
    return parsed.choices[0]


def _sound(given: list[float | None], ids: list[int]) -> np.ndarray | NoLogprobs:
    """The values as float32, if each of them is a logprob."""
    values = np.array([np.nan if value is None else value for value in given], np.float32)
    missing = np.flatnonzero(~np.isfinite(values) | (values <= MISSING_LOGPROB))
    if missing.size:
        first = f"first for token {ids[missing[0]]} at place {missing[0]}"
        return NoLogprobs(f"the endpoint gives no logprob for {missing.size} of {len(ids)} tokens, {first}")
    if values.size and values.max() > _ROUNDING:
        return NoLogprobs(f"the endpoint gives {values.max():.3g} nats, which is no logprob (vLLM: --logprobs-mode)")
    return values


def _other_texts(names: Sequence[str], texts: Sequence[str]) -> str | None:
    """Why the names are not those of the tokens sent. Plain words decide: servers write other tokens in many ways."""
    named = [(name.translate(_SPACES).strip(), text.strip()) for name, text in zip(names, texts, strict=False)]
    words = [(name, text) for name, text in named if text.isascii() and text.isalnum()]
    if len(names) < len(texts) or not words:
        return (
            f"the endpoint names {len(names)} of {len(texts)} echoed tokens: whether they are those sent is not known"
        )
    other = next(((name, text) for name, text in words if name != text), None)
    return f"the endpoint reads other tokens: {other[0]!r} where {other[1]!r} was meant" if other else None


def _difference(read: list[int], sent: list[int]) -> str:
    place = next((i for i, (a, b) in enumerate(zip(read, sent, strict=False)) if a != b), min(len(read), len(sent)))
    return f"from place {place} on: {read[place : place + 5]} where {sent[place : place + 5]} were meant"
