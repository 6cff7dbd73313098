"""What a call of `generate` counts, and how it tells of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

MAX_TRIES = 6
"""Failed tries of one request before it is left for a rerun."""


@dataclass
class Tally:
    """What one call of `generate` did. Tokens and USD count replies received now, not those of earlier runs.

    `failed` requests had all their tries; `set_aside` ones were refused for good; after an interruption some requests
    are neither, and `stored_before` counts only as far as the run had come. `limit` says which one ended the call, if
    one did; `errors` counts failed attempts by kind; `batches` says how the offline batches are that are open.
    """

    total: int = 0
    stored_before: int = 0
    replies: int = 0
    failed: int = 0
    set_aside: int = 0
    retried: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    without_logprobs: int = 0
    without_reasoning: int = 0
    cut: int = 0
    stopped: bool = False
    limit: str | None = None
    last_error: str | None = None
    batches: str = ""
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return self.stored_before + self.replies


Progress = Callable[[Tally], None]
