"""Recipe section `evaluation`: which benchmarks a model is measured on, and how it is sampled there."""

import re

from pydantic import Field, field_validator, model_validator

from builder.section import PromptSource, Section

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")


class EvaluationBenchmark(PromptSource):
    """Questions with golds: a local file, such as one of a release, or a Hub dataset at a full commit id."""

    split: str = "test"

    @model_validator(mode="after")
    def _pinned(self) -> "EvaluationBenchmark":
        if self.is_hub and self.revision is None:
            raise ValueError(f"{self.source!r} has no `revision`: without a full commit id it can move unnoticed")
        return self


class EvaluationSection(Section):
    """Benchmarks by name, and the sampling of `builder eval`, whose options go first.

    `samples` are replies a question; `top_p` and `max_tokens` are those of `generation` where they are not given. It
    decides no row of a release, so it is no part of what identifies one.
    """

    benchmarks: dict[str, EvaluationBenchmark] = Field(default_factory=dict)
    samples: int = Field(default=1, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)

    @field_validator("benchmarks")
    @classmethod
    def _names(cls, value: dict[str, EvaluationBenchmark]) -> dict[str, EvaluationBenchmark]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"benchmark {name!r} must be letters, digits, dots, dashes and underscores, at most 64, and begin "
                    "with a letter or digit: it is a column of tables and a part of names of files"
                )
        return value
