"""What one reply of the local server asks for, what it gets, and how its tokens are drawn."""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Alternative = tuple[int, float, int]  # token id, logprob in nats, rank from 1
GREEDY_BELOW = 1e-5  # vLLM treats smaller temperatures as 0


@dataclass(frozen=True)
class Ask:
    """One sequence to generate from `prompt`; `max_tokens` 0 only scores the prompt."""

    prompt: list[int]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    alternatives: int = 0
    prompt_alternatives: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    ignore_end: bool = False
    skip_special: bool = True


@dataclass
class Generated:
    """Token ids with their raw logprobs: log-softmax in float32, before temperature, top-p and top-k.

    `alternatives` holds the sampled token first, then the best others. `prompt` has the same for every prompt
    token but the first, which nothing predicts.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[list[Alternative]] = field(default_factory=list)
    prompt: list[list[Alternative]] | None = None
    text: str = ""
    finish_reason: str = "length"
    stop_reason: int | str | None = None


def draws_of(asked: Ask) -> "Tensor":
    """One uniform number a token, fixed by the seed alone: the reply does not depend on the batch."""
    import torch

    seed = int.from_bytes(os.urandom(8), "little") if asked.seed is None else asked.seed
    generator = torch.Generator().manual_seed(seed % 2**63)
    draws: Tensor = torch.rand(asked.max_tokens, dtype=torch.float64, generator=generator)
    return draws


class Sampler:
    """Temperature, top-k, top-p and the draw for the rows of one batch."""

    def __init__(self, asked: list[Ask]) -> None:
        import torch

        self._torch = torch
        self._greedy = torch.tensor([row.temperature < GREEDY_BELOW for row in asked])
        self._temperature = torch.tensor(
            [[row.temperature if row.temperature >= GREEDY_BELOW else 1.0] for row in asked],
            dtype=torch.float64,
        )
        self._top_p = torch.tensor([[row.top_p] for row in asked], dtype=torch.float64)
        self._top_k = torch.tensor([[row.top_k] for row in asked])
        self._cuts = any(row.top_p < 1.0 or row.top_k > 0 for row in asked)

    def pick(self, logits: "Tensor", uniform: "Tensor") -> "Tensor":
        """Inverse-CDF sampling in float64: `uniform` in [0, 1) selects one token id a row."""
        torch = self._torch
        probability = torch.softmax(logits.double() / self._temperature, dim=-1)
        if self._cuts:
            probability = self._cut(probability)
        cumulative = probability.cumsum(-1)
        drawn = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
        chosen: Tensor = torch.where(self._greedy, logits.argmax(-1), drawn.clamp(max=logits.shape[-1] - 1))
        return chosen

    def _cut(self, probability: "Tensor") -> "Tensor":
        """Zero what top-k and then top-p leave out; the likeliest token always stays."""
        torch = self._torch
        ordered, order = probability.sort(dim=-1, descending=True, stable=True)
        place = torch.arange(ordered.shape[-1])[None]
        ordered = ordered.masked_fill((self._top_k > 0) & (place >= self._top_k), 0.0)
        ordered = ordered / ordered.sum(-1, keepdim=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill((before >= self._top_p) & (place > 0), 0.0)
        kept: Tensor = torch.zeros_like(probability).scatter(1, order, ordered)
        return kept


def alternatives_of(logprobs: "Tensor", chosen: "Tensor", count: int) -> list[list[Alternative]]:
    """For each row the chosen token and then the `count` best tokens, the chosen one never twice."""
    own = logprobs.gather(1, chosen[:, None])
    ranks = ((logprobs > own).sum(-1) + 1).tolist()
    best, best_ids = logprobs.topk(min(count, logprobs.shape[-1]), dim=-1)
    table = []
    for token, value, rank, ids, values in zip(
        chosen.tolist(), own[:, 0].tolist(), ranks, best_ids.tolist(), best.tolist(), strict=True
    ):
        others = [(i, v, place) for place, (i, v) in enumerate(zip(ids, values, strict=True), 1) if i != token]
        table.append([(token, value, rank), *others])
    return table
