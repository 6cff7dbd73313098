"""Recipe section `preference`: which replies a judge compares, and which of the judged pairs a reward stage takes."""

from collections.abc import Mapping
from typing import Protocol

from pydantic import Field

from builder.section import Section


class HasKind(Protocol):
    """A stage, as far as pairs go."""

    @property
    def kind(self) -> str: ...


class Preference(Section):
    """Pairs of two replies of the teacher to one prompt that break no rule, chosen by `generation.seed`.

    `pairs_per_prompt` are judged at most. Of all judged pairs, stage `stage` takes those with at least `min_gap` votes
    more for chosen than for rejected; with `equal_lengths` as many leave as it takes for both sides to be equally long
    (sql/mix/preference_pairs.sql). These three decide without a request.
    """

    pairs_per_prompt: int = Field(default=1, ge=1)
    min_gap: int = Field(default=1, ge=1)
    equal_lengths: bool = True
    stage: str = "preference"

    def check(self, stages: Mapping[str, HasKind], votes: int | None) -> None:
        """Raise ValueError where no reward stage is there to take the pairs, or no pair can have so large a gap.

        `votes` are those of the judge, None where the recipe names none.
        """
        if self.stage not in stages or stages[self.stage].kind != "reward":
            raise ValueError(
                f"preference.stage is {self.stage!r}, but no stage of that name is of kind reward, so nothing would "
                f"take the pairs; add stages: {{{self.stage}: {{kind: reward}}}}"
            )
        if votes is not None and self.min_gap > votes:
            raise ValueError(
                f"preference.min_gap is {self.min_gap}, but judge.votes is {votes}: no pair could have such a gap, "
                "and every vote would be paid in vain"
            )
