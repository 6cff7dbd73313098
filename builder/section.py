"""The base of every part of a recipe, and the parts that several parts share."""

import re
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

COMMIT = re.compile(r"^[0-9a-f]{40}$")


class Section(BaseModel):
    """A part of the recipe. Unknown keys are errors; the loader adds a suggestion."""

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True)


class Gold(Section):
    """Where the reference answer stands, and how to cut it out of a longer solution.

    `entry_point` is the column with the name of the function that HumanEval's tests, which define `check`, are for.
    """

    column: str
    pattern: str | None = None
    entry_point: str | None = None

    @field_validator("pattern")
    @classmethod
    def _one_group(cls, value: str | None) -> str | None:
        if value is not None and re.compile(value).groups != 1:
            raise ValueError(f"pattern {value!r} needs exactly one group: the gold")
        return value


class PromptSource(Section):
    """Questions: a local file, or `hf://datasets/org/name` at a full commit id."""

    source: str
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    prompt: str | None = None
    messages: str | None = None
    gold: Gold | str | None = None
    gold_type: str | None = None
    domain: str | None = None
    language: str | None = None
    license: str | None = None
    verifier: str | None = None
    rows: int | None = Field(default=None, ge=0, description="declared rows, for `plan` before anything is downloaded")

    @property
    def is_hub(self) -> bool:
        return self.source.startswith("hf://")

    @model_validator(mode="after")
    def _check(self) -> "PromptSource":
        if self.is_hub and not re.fullmatch(r"hf://datasets/[^/@]+/[^/@]+", self.source):
            raise ValueError(f"{self.source!r} is not of the form hf://datasets/org/name")
        if self.revision is not None and not COMMIT.fullmatch(self.revision):
            raise ValueError(
                f"revision {self.revision!r} is not a full commit id (40 hex digits): branches and tags can move"
            )
        if self.prompt and self.messages:
            raise ValueError("name a `prompt` column or a `messages` column, not both")
        return self


class Endpoint(Section):
    """One OpenAI-compatible server. The key is read from the environment, from `api_key_env` or OPENAI_API_KEY."""

    url: str
    max_in_flight: int = Field(default=64, ge=1, le=4096)
    api_key_env: str | None = None

    @field_validator("url")
    @classmethod
    def _http(cls, value: str) -> str:
        address = urlsplit(value)
        known = address.scheme in ("http", "https")
        if address.query or "@" in (address.netloc if known else value):
            raise ValueError("the address holds credentials or a query; put the key into the environment instead")
        if not known or not address.hostname:
            raise ValueError(f"{value!r} is not an http:// or https:// address")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError("api_key_env is the name of an environment variable, never the key itself")
        return value


class Prices(Section):
    """USD per million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)

    def times(self, factor: float) -> "Prices":
        """The same at another price level, such as that of offline batches."""
        return self if factor == 1.0 else Prices(input=self.input * factor, output=self.output * factor)
