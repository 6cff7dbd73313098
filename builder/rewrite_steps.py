"""Rewrites in a selection: they stand in the place of the replies that they rewrite, and are counted against them."""

from dataclasses import dataclass
from typing import Final

import duckdb

from builder.sqlrun import Step
from builder.store import Run

IN_PLACE: Final = Step(
    "rewrites in place of replies",
    """
    select numbers.* replace (
        case when numbers.role = 'teacher' then 'original'
            when rewrites.response_id is not null then 'teacher'
            else numbers.role end as role
    )
    from reply_numbers as numbers
    left join (select response_id from stg_rewrites where outcome in ('unchanged', 'rewritten')) as rewrites
        using (response_id)
    order by numbers.reply
    """,
    "reply_numbers",
)
"""All that follows ranks, counts and keeps the replies of role teacher; here those are the rewrites."""


@dataclass(frozen=True)
class RewriteCounts:
    """What became of the replies that `builder rewrite` asked for last: `rewrites` of them can be released, `unusable`
    are no rewrite.

    By the verdicts that decide, `kept_answer` rewrites say what their original says, `changed_answer` do not, for
    `unknown_answer` nobody can tell. `prompts` have a reply that was rewritten; `prompts_without` of them no rewrite
    that breaks no rule, so they give no row.
    """

    rewrites: int
    unusable: int
    unchanged: int
    kept_answer: int
    changed_answer: int
    unknown_answer: int
    prompts: int
    prompts_without: int

    def answers(self) -> str:
        """What verdicts say of the answers, in words."""
        same = f" ({self.unchanged:,} word for word)" if self.unchanged else ""
        useless = f"; {self.unusable:,} more are no rewrite" if self.unusable else ""
        return (
            f"rewrites: {self.rewrites:,}; {self.kept_answer:,} kept the answer{same}, {self.changed_answer:,} changed "
            f"it, {self.unknown_answer:,} not known{useless}"
        )

    def line(self) -> str:
        """All of it in words."""
        return f"{self.answers()}; {self.prompts_without:,} of {self.prompts:,} prompts have none that breaks no rule"


def rewrite_counts(run: Run) -> RewriteCounts:
    """The counts by the tables as they are staged; `prompts_without` goes by the rejections of the latest select."""
    with duckdb.connect(str(run.database), read_only=True) as connection:
        answer = connection.sql(COUNTS)
        return RewriteCounts(**dict(zip(answer.columns, answer.fetchall()[0], strict=True)))


# The same extracted answer, or two verdicts of correct: kept. One correct and the other wrong: changed.
COUNTS: Final = """
with verdicts as (select response_id, verdict, extracted from stg_verdicts where decides),

compared as (
    select
        rewrites.prompt_id,
        rewrites.outcome,
        rewrites.outcome in ('unchanged', 'rewritten') as is_rewrite,
        rewrites.outcome = 'unchanged' or before.extracted = after.extracted
            or (before.verdict = 'correct' and after.verdict = 'correct') as is_kept,
        [before.verdict, after.verdict] in (['correct', 'wrong'], ['wrong', 'correct']) as is_changed,
        broken.response_id is not null as is_broken
    from stg_rewrites as rewrites
    left join verdicts as before on before.response_id = rewrites.original_id
    left join verdicts as after on after.response_id = rewrites.response_id
    left join (select distinct response_id from stg_rejections) as broken
        on broken.response_id = rewrites.response_id
)

select
    count(*) filter (is_rewrite) as rewrites,
    count(*) filter (not is_rewrite) as unusable,
    count(*) filter (outcome = 'unchanged') as unchanged,
    count(*) filter (is_rewrite and coalesce(is_kept, false) and not coalesce(is_changed, false)) as kept_answer,
    count(*) filter (is_rewrite and coalesce(is_changed, false)) as changed_answer,
    count(*) filter (is_rewrite and not coalesce(is_kept, false) and not coalesce(is_changed, false))
        as unknown_answer,
    count(distinct prompt_id) as prompts,
    count(distinct prompt_id) - count(distinct prompt_id) filter (is_rewrite and not is_broken) as prompts_without
from compared
"""
COUNT_STEP: Final = Step("counts of the rewrites", COUNTS, "rewrite_counts", fetch=True)
