"""What makes two prompts or two requests the same. Pure functions; changing one changes what is paid."""

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from json.encoder import encode_basestring as _quoted
from typing import Any

import numpy as np

KEY_FORMAT = 1
"""Version of the request key. A new number means that nothing stored before answers a request of today."""

# Flags that change what comes back beside the text, never the text: asking for logprobs later is the same request.
_REPORTING_FLAGS = frozenset(
    {
        "logprobs",
        "top_logprobs",
        "prompt_logprobs",
        "return_token_ids",
        "return_tokens_as_token_ids",
        "stream",
        "stream_options",
        "user",
        "metadata",
    }
)

Message = Mapping[str, str]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. 1.0 is written as 1."""
    return json.dumps(_plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_hex(text: str | bytes) -> str:
    """64 hex digits of the UTF-8 text or of the bytes."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def normalize_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as hashed, stored and sent: content in NFC without outer white space, roles kept."""
    return [
        {"role": message["role"], "content": unicodedata.normalize("NFC", message["content"]).strip()}
        for message in messages
    ]


def prompt_id(messages: Sequence[Message]) -> str:
    """32 hex digits of the normalised messages: the same question from two sources is one prompt."""
    return normalized_prompt_id(normalize_messages(messages))


def normalized_prompt_id(messages: Sequence[Message]) -> str:
    """`prompt_id` of messages that `normalize_messages` has given already."""
    return sha256_hex(_messages_json(messages))[:32]


def request_seed(seed: int, prompt: str, temperature: float, sample_index: int) -> int:
    """Seed of one request, 0 … 2³¹ − 1, from what identifies it; never from how many samples were asked."""
    digest = hashlib.sha256(canonical_json([seed, prompt, temperature, sample_index]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def request_key(
    *,
    model: str,
    revision: str | None,
    messages: Sequence[Message],
    prefix: str | None,
    sampling: Mapping[str, Any],
    seed: int | None,
    sample_index: int,
) -> str:
    """64 hex digits: identity of what is paid for.

    `sampling` holds every sampling parameter as sent; reporting flags and `max_tokens` are left out here, so that a
    caller may pass the request's parameters whole. Endpoint, row position and shard are no part of it.
    """
    return sha256_hex(
        canonical_json(
            {
                "key_format": KEY_FORMAT,
                "model": model,
                "revision": revision,
                "messages": normalize_messages(messages),
                "prefix": prefix,
                "sampling": _deciding(sampling),
                "seed": seed,
                "sample_index": sample_index,
            }
        )
    )


class RequestKeys:
    """`request_key` and `request_seed` of all requests of a prompt, the same bytes at a tenth of the time.

    Canonical JSON sorts its names, so the messages come before what differs between the requests of a prompt (sample
    index, sampling, seed): that beginning is hashed once and its hash copied. `sampling` gives for each temperature the
    parameters as sent.
    """

    def __init__(
        self, *, model: str, revision: str | None, seed: int, sampling: Mapping[float, Mapping[str, Any]], samples: int
    ) -> None:
        self._before = f'{{"key_format":{KEY_FORMAT},"messages":'
        self._between = f',"model":{canonical_json(model)},"prefix":null,"revision":{canonical_json(revision)}'
        self._seed_head = f"[{canonical_json(seed)},"
        self._grid = [
            (temperature, index, f",{canonical_json(temperature)},{index}]".encode(), _key_tail(index, parameters))
            for temperature, parameters in sampling.items()
            for index in range(samples)
        ]

    def of(self, prompt: str, messages: Sequence[Message]) -> Iterator[tuple[float, int, int, bytes]]:
        """Temperature, sample index, seed and key (32 bytes) of each request, for a prompt id and messages as sent."""
        sha256 = hashlib.sha256
        shared = sha256(f"{self._before}{_messages_json(normalize_messages(messages))}{self._between}".encode())
        seeded = f"{self._seed_head}{_quoted(prompt)}".encode()
        for temperature, index, seed_tail, key_tail in self._grid:
            seed = int.from_bytes(sha256(seeded + seed_tail).digest()[:4], "big") >> 1
            key = shared.copy()
            key.update(b"%b%d}" % (key_tail, seed))
            yield temperature, index, seed, key.digest()


def _key_tail(sample_index: int, sampling: Mapping[str, Any]) -> bytes:
    return f',"sample_index":{sample_index},"sampling":{canonical_json(_deciding(sampling))},"seed":'.encode()


def _deciding(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that decide what comes back."""
    return {
        name: value
        for name, value in sampling.items()
        if name not in _REPORTING_FLAGS and name not in ("max_tokens", "max_completion_tokens") and value is not None
    }


def _messages_json(messages: Sequence[Message]) -> str:
    """`canonical_json` of normalised messages, which hold two strings each."""
    parts = (f'{{"content":{_quoted(each["content"])},"role":{_quoted(each["role"])}}}' for each in messages)
    return f"[{','.join(parts)}]"


def response_id(key: str, *, finish_reason: str | None, max_tokens: int | None) -> str:
    """32 hex digits. A reply cut at a limit is another reply than the one a larger limit gives."""
    cut_at = max_tokens if finish_reason == "length" else None
    return sha256_hex(f"{key}:{cut_at}")[:32]


def order_key(grain_id: str, seed: int) -> str:
    """md5 of id and seed, in DuckDB `md5(id || ':' || seed)`: sorting by it is a shuffle, the same everywhere."""
    return hashlib.md5(f"{grain_id}:{seed}".encode(), usedforsecurity=False).hexdigest()


def _plain(value: Any) -> Any:  # noqa: PLR0911
    """The value in JSON's own types, so that numpy scalars, tuples and dates hash as what they say."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        if not math.isfinite(value):
            return repr(value)
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray) or hasattr(value, "to_list"):  # a Series, without loading polars
        return [_plain(inner) for inner in value]
    return str(value)
