"""Statements of a selection that are written for speed: rows of rules and of stages, lengths, funnel and spread."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from builder.config import Stage
from builder.schema import MARGINS, TABLES
from builder.sqlfile import Value
from builder.sqlrun import Step

# What each packaged selector ranks by, as in sql/reports/spread.sql.
_RANKED_BY: Final = {
    "teacher_sentence_count": "{count}",
    "fewest_teacher_sentences": "{count}",
    "length_matched": "{count}",
    "teacher_share": "{count} / nullif(counted_sentences, 0)",
    "mean_delta": "mean_delta",
    "longest": "completion_tokens",
}
_STRING: Final = re.compile(r"'[^']*'")
_WORD: Final = re.compile(r"[^\W\d]\w*|\*")
_HARMLESS: Final = frozenset(
    {"rank", "and", "or", "not", "in", "is", "null", "nulls", "first", "last", "asc", "desc", "between", "like", "true",
     "false"}
)  # fmt: skip
_KEPT: Final = {"response_id", "temperature", "completion_tokens"}
"""Columns that table `kept` has beside the rank."""
LAST: Final = "select ranked.response_id, ranked.rank from ranked;"
"""How every packaged selector ends; its step `ranked` has reply_id as well."""
NO_ROWS: Final = (
    "select null::integer as rule, null::bigint as reply, null::double as observed, null::double as threshold "
    "where false"
)
"""Rows of the rules of a recipe that names none."""
# Teacher replies that break rules, and how many each.
BROKEN_BY: Final = """
select reply, counted.broken, completion_tokens
from (select reply, count(*) as broken from broken group by reply) as counted
join reply_numbers using (reply)
where role = 'teacher'
"""
# As sql/staging/stg_scores_of_survivors.sql, without the join.
SCORES: Final = """
select reply as reply_id, response_id, prompt_id, temperature, asked, completion_tokens, teacher_counts, student_counts,
    counted_sentences, mean_delta
from to_rank
"""
# How many teacher replies there are of each length: all, those that break a rule, those kept. Their medians follow
# from these few rows, where DuckDB's median would sort all replies.
LENGTHS: Final = """
with counted as (
    select completion_tokens, count(*) as replies, 0 as broken, 0 as kept
    from reply_numbers
    where role = 'teacher'
    group by all
    union all
    select completion_tokens, 0, count(*), 0 from broken_by group by all
    union all
    select completion_tokens, 0, 0, count(*) from kept group by all
)

select completion_tokens, sum(replies)::bigint as replies, sum(broken)::bigint as broken, sum(kept)::bigint as kept
from counted
group by completion_tokens
order by completion_tokens
"""
# What sql/reports/funnel.sql says of all domains and temperatures, by place of the rule.
FUNNEL: Final = """
select
    rule,
    count(*) as breaks,
    count(*) filter (broken_by.broken = 1) as breaks_alone,
    coalesce(sum(completion_tokens), 0)::bigint as tokens
from broken
join broken_by using (reply)
group by rule
"""
_SPREAD: Final = """
with graded as (
    -- a single candidate, a tie, a spread; a missing value beside a known one is a difference
    select min(prompt) as prompt, case
        when count(*) = 1 then 1
        when count({value}) = 0 or (count({value}) = count(*) and min({value}) = max({value})) then 2
        else 3 end as grade
    from {rows}
    group by asked
),

best as (select prompt, max(grade) as grade from graded group by prompt),

prompts as (select count(distinct prompt) as prompts from reply_numbers where role = 'teacher')

select
    null::double as temperature,
    min(prompts) as prompts,
    min(prompts) - count(grade) as none,
    count(*) filter (grade = 1) as single,
    if({is_known}, count(*) filter (grade = 2), null) as tied,
    if({is_known}, count(*) filter (grade = 3), null) as spread
from prompts
left join best on true
"""
# At a margin that scores hold no counts of.
_RECOUNTED: Final = """to_rank
    left join (
        select reply_id as reply, count(*) filter (where delta > '{margin!r}'::double) as teacher_sentences
        from stg_sentences_of_survivors
        group by reply_id
    ) as recounted using (reply)"""


def margin_slot(variables: Mapping[str, Value]) -> int | None:
    """1-based place of the recipe's margin among those that scores hold counts of; None where it is another."""
    margin = float(variables.get("teacher_margin", 0.1))
    return next((place for place, known in enumerate(MARGINS, 1) if abs(margin - known) < 1e-6), None)


def spread_step(variables: Mapping[str, Value]) -> Step:
    """The line of sql/reports/spread.sql for all temperatures."""
    value, rows, slot = _RANKED_BY.get(str(variables["ranked_by"]), "null"), "to_rank", margin_slot(variables)
    if slot is None and "{count}" in value:
        rows = _RECOUNTED.format(margin=float(variables["teacher_margin"]))
    count = "recounted.teacher_sentences" if slot is None else f"teacher_counts[{slot}]"
    is_known = str(value != "null").lower()
    return Step(
        "spread", _SPREAD.format(value=value.format(count=count), rows=rows, is_known=is_known), "spread", fetch=True
    )


def kept_rows(stages: Iterable[Stage]) -> str:
    """SELECT of the kept replies with their rank, from which stages pick: rows of stg_candidates.

    Where stages name few columns, from a table that has those alone: four joins of millions of ids cost as much as all
    rules. A word that is not known here to be harmless gets the joins.
    """
    said = " ".join(text.lower() for stage in stages for text in (stage.where, stage.order_by) if text)
    words = set(_WORD.findall(_STRING.sub("", said))) - _HARMLESS
    if words <= _KEPT:
        return "select * from kept"
    rows = "stg_responses" if words <= set(TABLES["responses"].schema.names) else "stg_candidates"
    return f"select c.*, kept.rank from {rows} as c join kept using (response_id)"
