"""Prompt logprobs in the bodies of completions, as vLLM writes them. Pure functions on bytes."""

import json
from typing import Final

import msgspec
import numpy as np

from builder.reply import MISSING_LOGPROB
from builder.student import NoLogprobs, Rendered

_ROUNDING: Final = 1e-3
"""Nats above 0 that half precision may give; more is a logit, which vLLM sends under --logprobs-mode raw_logits."""


class _Value(msgspec.Struct, gc=False):
    logprob: float | None = None


_Entry = dict[int, _Value] | None


class _Choice(msgspec.Struct):
    prompt_logprobs: list[_Entry] | None = None
    prompt_token_ids: list[int] | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice] | None = None


_decoder = msgspec.json.Decoder(_Body)


def read_logprobs(body: bytes, row: Rendered) -> np.ndarray | NoLogprobs:
    """Logprobs of the completion tokens in a completion of the row's ids, nats, float32; or why there are none.

    vLLM's form: a list with null for the first token, then `{token id: {logprob, rank, decoded_token}}`.
    """
    parsed = _decode(body)
    if parsed is None or not parsed.choices:
        return NoLogprobs(f"the endpoint answers what is no completion: {body[:120].decode(errors='replace')!r}")
    ids = row.prompt_ids + row.completion_ids
    given = parsed.choices[0].prompt_logprobs
    read = parsed.choices[0].prompt_token_ids
    if given is None:
        return NoLogprobs("the endpoint gives no prompt logprobs")
    if read is not None and read != ids:
        return NoLogprobs(f"the endpoint reads other tokens, {_difference(read, ids)}")
    if len(given) != len(ids):
        return NoLogprobs(f"the endpoint gives {len(given)} prompt logprobs for {len(ids)} tokens")
    return _of_completion(given[len(row.prompt_ids) :], row.completion_ids)


def _of_completion(entries: list[_Entry], ids: list[int]) -> np.ndarray | NoLogprobs:
    values = np.full(len(ids), np.nan, np.float32)
    for place, (entry, token) in enumerate(zip(entries, ids, strict=True)):
        found = (entry or {}).get(token)
        if found is not None and found.logprob is not None and found.logprob > MISSING_LOGPROB:
            values[place] = found.logprob
    missing = np.flatnonzero(~np.isfinite(values))
    if missing.size:
        first = f"first for token {ids[missing[0]]} at place {missing[0]}"
        return NoLogprobs(f"the endpoint gives no logprob for {missing.size} of {len(ids)} tokens, {first}")
    if values.size and values.max() > _ROUNDING:
        return NoLogprobs(f"the endpoint gives {values.max():.3g} nats, which is no logprob (vLLM: --logprobs-mode)")
    return values


def _decode(body: bytes) -> _Body | None:
    """Typed decode; bare NaN and Infinity, which some servers write, need the slow reader."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return msgspec.convert(json.loads(body), _Body, strict=False)
    except (ValueError, RecursionError, msgspec.ValidationError):
        return None


def _difference(read: list[int], sent: list[int]) -> str:
    place = next((i for i, (a, b) in enumerate(zip(read, sent, strict=False)) if a != b), min(len(read), len(sent)))
    return f"from place {place} on: {read[place : place + 5]} where {sent[place : place + 5]} were meant"
