"""Which requests a recipe means: prompts × temperatures × samples, lazily, each with its identity."""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from builder.config import Generation, Recipe
from builder.identity import Message, RequestKeys, normalize_messages
from builder.prompts import Prompts
from builder.shards import in_shard


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
    keys = _keys(recipe)
    generation = recipe.generation
    for row in prompts.rows:
        prompt = row["prompt_id"]
        if not in_shard(prompt, shard):
            continue
        messages = messages_of(generation, row["messages"])
        for temperature, sample_index, seed, key in keys.of(prompt, messages):
            yield Request(key.hex(), prompt, messages, temperature, sample_index, seed, generation.max_tokens)


def _keys(recipe: Recipe) -> RequestKeys:
    teacher, generation = recipe.require_teacher(), recipe.generation
    return RequestKeys(
        model=teacher.model,
        revision=teacher.revision,
        seed=generation.seed,
        sampling={temperature: sampling(generation, temperature) for temperature in generation.temperatures},
        samples=generation.samples,
    )


def total(recipe: Recipe, prompts: Prompts, *, shard: tuple[int, int] = (0, 1)) -> int:
    """Requests of a shard in all, counted without computing a key."""
    rows = sum(in_shard(row["prompt_id"], shard) for row in prompts.rows)
    return rows * len(recipe.generation.temperatures) * recipe.generation.samples


def satisfied(stored: dict[bytes, int], request: Request) -> bool:
    """Whether a stored reply answers the request: it stopped by itself, or was cut at no smaller limit."""
    return _answers(stored.get(bytes.fromhex(request.key)), request.max_tokens)


def _answers(cut: int | None, max_tokens: int) -> bool:
    return cut is not None and (cut == -1 or cut >= max_tokens)


def need(
    recipe: Recipe,
    prompts: Prompts,
    stored: dict[bytes, int],
    *,
    shard: tuple[int, int] = (0, 1),
    answered: Container[str] | None = None,
) -> Need:
    """Requests in all and those paid for.

    Where `answered` names the prompts that have a stored reply at all, no key of another prompt is computed: plans of
    millions stay quick.
    """
    if not stored:
        return Need(total(recipe, prompts, shard=shard), 0)
    keys = _keys(recipe)
    generation = recipe.generation
    paid = 0
    for row in prompts.rows:
        prompt = row["prompt_id"]
        if in_shard(prompt, shard) and (answered is None or prompt in answered):
            asked = keys.of(prompt, messages_of(generation, row["messages"]))
            for _, _, _, key in asked:
                paid += _answers(stored.get(key), generation.max_tokens)
    return Need(total(recipe, prompts, shard=shard), paid)
