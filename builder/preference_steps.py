"""What a reward stage takes of the judged pairs, as steps of a selection."""

from dataclasses import dataclass, replace
from typing import Final

from builder.sqlfile import SqlFile
from builder.sqlrun import Check, Step, mix_step

PREFERRED: Final = "preferred_pairs"
"""The rows that the stage picks from: those of stg_pairs that the file returns."""


@dataclass(frozen=True)
class PairCounts:
    """What became of the judged pairs: not taken for their gap, for a reply that breaks a rule today, or `left_out` for
    their lengths or another reason of the file. Completion tokens are means of the pairs taken; None: none is known."""

    judged: int
    under_gap: int
    broken: int
    left_out: int
    taken: int
    chosen_tokens: float | None
    rejected_tokens: float | None

    def line(self) -> str:
        """All of it in words."""
        lengths = ""
        if self.chosen_tokens is not None and self.rejected_tokens is not None:
            lengths = f": {self.chosen_tokens:,.1f} tokens chosen, {self.rejected_tokens:,.1f} rejected on average"
        return (
            f"pairs: {self.judged:,} judged, {self.under_gap:,} under the gap, {self.broken:,} with a reply that "
            f"breaks a rule, {self.left_out:,} left out for lengths; {self.taken:,} taken{lengths}"
        )


def preference_steps(file: SqlFile, stage: str, min_gap: int) -> list[Step]:
    """View `preferred_pairs` and the numbers of `PairCounts`; checks the file's contract: judged pairs, each once."""
    picked = mix_step(file, "preference_rows")
    foreign = "select grain_id from preference_rows anti join stg_pairs on pair_id = grain_id order by 1 limit 1"
    other = f"select grain_id, stage from preference_rows where stage is distinct from '{stage}' order by 1 limit 1"
    checks = (
        picked.checks[0],  # each once
        Check(foreign, "returns grain_id {0}, which is not a judged pair of this run"),
        Check(other, f"returns {{0}} for stage {{1}}; only stage {stage} of this recipe takes its pairs"),
    )
    taken = "select pairs.* from stg_pairs as pairs semi join preference_rows on grain_id = pair_id"
    return [
        replace(picked, checks=checks),
        Step("preferred pairs", taken, PREFERRED, view=True),
        Step("counts of the pairs", _COUNTS.format(min_gap=min_gap), "pair_counts", fetch=True),
    ]


# What becomes of all judged pairs. The packaged file leaves pairs out for their lengths alone once gap and rules agree.
_COUNTS: Final = """
with judged as (
    select
        coalesce(pairs.gap < {min_gap}, true) as under_gap,
        pairs.chosen_id in (select response_id from stg_rejections)
            or pairs.rejected_id in (select response_id from stg_rejections) as broken,
        taken.pair_id is not null as taken,
        chosen.completion_tokens as chosen_tokens,
        rejected.completion_tokens as rejected_tokens
    from stg_pairs as pairs
    left join preferred_pairs as taken using (pair_id)
    left join stg_responses as chosen on chosen.response_id = pairs.chosen_id
    left join stg_responses as rejected on rejected.response_id = pairs.rejected_id
)

select
    count(*) as judged,
    count(*) filter (not taken and under_gap) as under_gap,
    count(*) filter (not taken and not under_gap and broken) as broken,
    count(*) filter (not taken and not under_gap and not broken) as left_out,
    count(*) filter (taken) as taken,
    avg(chosen_tokens) filter (taken) as chosen_tokens,
    avg(rejected_tokens) filter (taken) as rejected_tokens
from judged
"""
