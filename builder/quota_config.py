"""The part of a recipe that says how many rows of each domain a stage takes."""

import math
from decimal import Decimal
from fractions import Fraction

from pydantic import Field, field_validator

from builder.section import Section


class Quotas(Section):
    """How many rows a stage takes: `rows` in all, shared out among domains in proportion to `weights`.

    Weights are any numbers in the right proportion: shares, percentages, or the row counts of a paper. A domain of
    weight 0, or not named, gets no row.
    """

    rows: int = Field(ge=1)
    weights: dict[str, int | float] = Field(min_length=1)

    @field_validator("weights")
    @classmethod
    def _proportions(cls, value: dict[str, int | float]) -> dict[str, int | float]:
        if wrong := {name: weight for name, weight in value.items() if not (math.isfinite(weight) and weight >= 0)}:
            raise ValueError(f"{wrong} cannot be shares: a weight is 0 or more")
        if not any(value.values()):
            raise ValueError(f"{value} gives every domain nothing: at least one weight must be above 0")
        return value

    def counts(self) -> dict[str, int]:
        """Rows of each domain, which add up to `rows`: shares rounded down, then one more each by largest remainder.

        Equal remainders go to the domain that is named first. Weights count as the decimals that they are written as.
        """
        exact = {name: Fraction(Decimal(repr(weight))) for name, weight in self.weights.items()}
        whole = sum(exact.values())
        shares = {name: self.rows * weight / whole for name, weight in exact.items()}
        counts = {name: math.floor(share) for name, share in shares.items()}
        by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name])
        for name in by_remainder[: self.rows - sum(counts.values())]:
            counts[name] += 1
        return counts
