"""Which requests a recipe means: prompts × temperatures × samples, lazily, each with its identity."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from builder.config import Generation, Recipe
from builder.identity import Message, normalize_messages, request_key, request_seed
from builder.prompts import Prompts


@dataclass(frozen=True, slots=True)
class Request:
    """One request of one choice. `key` is its identity; `messages` are what is sent.

    With a `prefix` the reply goes on where that text ends: the beginning of reply `prefix_response_id`, in the form in
    which a release writes completions.
    """

    key: str
    prompt_id: str
    messages: list[dict[str, str]]
    temperature: float
    sample_index: int
    seed: int
    max_tokens: int
    prefix: str | None = None
    prefix_response_id: str | None = None


@dataclass(frozen=True)
class Need:
    """How much of a recipe is paid for already."""

    total: int
    stored: int

    @property
    def missing(self) -> int:
        return self.total - self.stored


def sampling(generation: Generation, temperature: float) -> dict[str, Any]:
    """Every sampling parameter of a request but seed and limit, as sent."""
    body = dict(generation.extra_body)
    if generation.reasoning_effort is not None:
        body["reasoning_effort"] = generation.reasoning_effort
    return {**body, "temperature": temperature, "top_p": generation.top_p}


def messages_of(generation: Generation, messages: Iterable[Message]) -> list[dict[str, str]]:
    """Messages as sent: the recipe's system prompt first, unless the prompt brings its own."""
    own = [dict(message) for message in messages]
    if generation.system_prompt is None or own[0]["role"] in ("system", "developer"):
        return own
    return normalize_messages([{"role": "system", "content": generation.system_prompt}, *own])


def requests(recipe: Recipe, prompts: Prompts, *, shard: tuple[int, int] = (0, 1)) -> Iterator[Request]:
    """All requests of a shard `(index, count)`, prompt after prompt. A shard holds whole prompts, by their hash."""
    teacher = recipe.require_teacher()
    generation = recipe.generation
    for row in prompts.rows:
        prompt = row["prompt_id"]
        if not _in_shard(prompt, shard):
            continue
        messages = messages_of(generation, row["messages"])
        for temperature in generation.temperatures:
            parameters = sampling(generation, temperature)
            for sample_index in range(generation.samples):
                seed = request_seed(generation.seed, prompt, temperature, sample_index)
                key = request_key(
                    model=teacher.model,
                    revision=teacher.revision,
                    messages=messages,
                    prefix=None,
                    sampling=parameters,
                    seed=seed,
                    sample_index=sample_index,
                )
                yield Request(key, prompt, messages, temperature, sample_index, seed, generation.max_tokens)


def total(recipe: Recipe, prompts: Prompts, *, shard: tuple[int, int] = (0, 1)) -> int:
    """Requests of a shard in all, counted without computing a key."""
    rows = sum(_in_shard(row["prompt_id"], shard) for row in prompts.rows)
    return rows * len(recipe.generation.temperatures) * recipe.generation.samples


def _in_shard(prompt: str, shard: tuple[int, int]) -> bool:
    index, count = shard
    return count == 1 or int(prompt[:8], 16) % count == index


def satisfied(stored: dict[bytes, int], request: Request) -> bool:
    """Whether a stored reply answers the request: it stopped by itself, or was cut at no smaller limit."""
    cut = stored.get(bytes.fromhex(request.key))
    return cut is not None and (cut == -1 or cut >= request.max_tokens)


def need(recipe: Recipe, prompts: Prompts, stored: dict[bytes, int], *, shard: tuple[int, int] = (0, 1)) -> Need:
    """Requests in all and those paid for. Without anything stored no key is computed: plans of millions stay quick."""
    if not stored:
        return Need(total(recipe, prompts, shard=shard), 0)
    paid = sum(satisfied(stored, request) for request in requests(recipe, prompts, shard=shard))
    return Need(total(recipe, prompts, shard=shard), paid)
