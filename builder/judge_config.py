"""Recipe section `judge`: the model that is asked whether an answer is right where no verifier can tell."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from builder.section import Endpoint, Prices, Section

# What a vote sets itself: said twice, the journal would record another request than the one that is paid.
OWN_KEYS = {"model", "messages", "n", "stream", "stream_options", "temperature", "top_p", "seed", "response_format"}
OWN_KEYS |= {"max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"}
Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Judge(Section):
    """A model that compares an answer with the gold, `votes` times, each at its own seed; the majority of all counts.

    `response_format` asks the endpoint for JSON of our schema (OpenAI, vLLM, SGLang); `none` where it refuses that.
    `max_error_rate` is the share of known answers that it may call wrongly before any of its verdicts is written.
    """

    model: str
    revision: str | None = None
    endpoints: list[Endpoint] = Field(default=[])
    prices: Prices | None = None
    votes: int = Field(default=3, ge=1, le=99)
    temperature: Temperature = 0.6
    max_tokens: int = Field(default=4096, ge=1)
    reasoning_effort: str | None = None
    extra_body: dict[str, Any] = Field(default={})
    response_format: Literal["json_schema", "none"] = "json_schema"
    max_error_rate: float = Field(default=0.1, ge=0, lt=0.5)

    @field_validator("extra_body")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if twice := sorted(OWN_KEYS & set(value)):
            raise ValueError(f"{', '.join(twice)} cannot be set here: the keys of `judge` decide it")
        return value

    @model_validator(mode="after")
    def _votes_differ(self) -> "Judge":
        if self.votes > 1 and self.temperature == 0:
            raise ValueError(f"{self.votes} votes at temperature 0 are one vote paid {self.votes} times; say votes: 1")
        return self
