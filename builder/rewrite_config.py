"""Recipe section `rewrite`: the model that makes the teacher's replies readable, and which replies it gets."""

from collections.abc import Iterable
from typing import Any

from pydantic import Field, field_validator, model_validator

from builder.judge_config import OWN_KEYS, Temperature
from builder.section import Endpoint, Prices, Section


class Rewrite(Section):
    """A second model rewrites replies of the teacher that break no rule, `per_prompt` of each prompt at most (default:
    `selection.keep`), chosen by `generation.seed`; stages of kind sft then take its rewrites in their place.

    `samples` are rewrites of one reply, each at its own seed. `license` are the terms under which the model's text may
    be used, as declared; a release compares them with its own, as it does the teacher's.
    """

    model: str
    revision: str | None = None
    endpoints: list[Endpoint] = Field(default=[])
    prices: Prices | None = None
    license: str | None = None
    per_prompt: int | None = Field(default=None, ge=1)
    samples: int = Field(default=1, ge=1, le=99)
    temperature: Temperature = 0.6
    max_tokens: int = Field(default=32768, ge=1)
    reasoning_effort: str | None = None
    extra_body: dict[str, Any] = Field(default={})

    @field_validator("extra_body")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if twice := sorted(OWN_KEYS & set(value)):
            raise ValueError(f"{', '.join(twice)} cannot be set here: the keys of `rewrite` decide it")
        return value

    @model_validator(mode="after")
    def _samples_differ(self) -> "Rewrite":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.samples} samples at temperature 0 are one rewrite paid {self.samples} times; say samples: 1"
            )
        return self

    def check(self, kinds: Iterable[str], *, needs_logprobs: bool, is_mixed: bool) -> None:
        """Raise ValueError where no stage could take a rewrite, or the selection needs what no rewrite has."""
        if (named := list(kinds)) and "sft" not in named:
            raise ValueError("there is a `rewrite`, but no stage of kind sft, which alone takes rewrites; add one")
        if needs_logprobs:
            raise ValueError(
                "rewrites are another model's text and have no logprobs of the teacher, but selection.selector or rule "
                "score_missing needs them, and every rewrite would be paid in vain; say selector: random (or longest) "
                "and drop score_missing"
            )
        if is_mixed:
            raise ValueError(
                "there are `rewrite` and `mixed_policy`: the teacher would finish replies in words that nobody "
                "rewrites; make two recipes"
            )
