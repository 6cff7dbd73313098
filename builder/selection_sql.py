"""Statements of a selection that are written for speed: the rows of stages, and how many prompts a selector decided."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from builder.config import Stage
from builder.rules import catalogue, load_sql
from builder.schema import MARGINS, TABLES
from builder.sqlfile import Value
from builder.sqlrun import Step

# What each packaged selector ranks by, as in sql/reports/spread.sql; the count is read at the margin's slot.
_COUNT: Final = "teacher_counts[{slot}]"
_RANKED_BY: Final = {
    "teacher_sentence_count": _COUNT,
    "fewest_teacher_sentences": _COUNT,
    "length_matched": _COUNT,
    "teacher_share": f"{_COUNT} / nullif(counted_sentences, 0)",
    "mean_delta": "mean_delta",
    "longest": "completion_tokens",
}
_STRING: Final = re.compile(r"'[^']*'")
_WORD: Final = re.compile(r"[^\W\d]\w*|\*")
_HARMLESS: Final = frozenset(
    {"rank", "and", "or", "not", "in", "is", "null", "nulls", "first", "last", "asc", "desc", "between", "like", "true",
     "false"}
)  # fmt: skip
# What holds a stage's columns, the cheapest first, with the key that it joins by.
_SOURCES: Final = (
    ("reply_numbers", "reply", {"response_id", "prompt_id", "temperature", "role", "completion_tokens"}),
    ("stg_responses", "response_id", set(TABLES["responses"].schema.names)),
)
_SPREAD: Final = """
with graded as (
    -- no candidate, a single one, a tie, a spread; a missing value beside a known one is a difference
    select asked, case
        when count(*) = 1 then 1
        when count({value}) = 0 or (count({value}) = count(*) and min({value}) = max({value})) then 2
        else 3 end as grade
    from to_rank
    group by asked
),

prompts as (
    select replies.prompt, max(coalesce(graded.grade, 0)) as grade
    from reply_numbers as replies
    left join graded using (asked)
    where replies.role = 'teacher'
    group by replies.prompt
)

select
    null::double as temperature,
    count(*) as prompts,
    count(*) filter (grade = 0) as none,
    count(*) filter (grade = 1) as single,
    if({is_known}, count(*) filter (grade = 2), null) as tied,
    if({is_known}, count(*) filter (grade = 3), null) as spread
from prompts
"""


def margin_slot(variables: Mapping[str, Value]) -> int | None:
    """1-based place of the recipe's margin among those that scores hold counts of; None where it is another."""
    margin = float(variables.get("teacher_margin", 0.1))
    return next((place for place, known in enumerate(MARGINS, 1) if abs(margin - known) < 1e-6), None)


def spread_steps(variables: Mapping[str, Value]) -> list[Step]:
    """The line of sql/reports/spread.sql for all temperatures; at a margin off the grid by that file itself."""
    slot = margin_slot(variables)
    if slot is None:
        return [Step("spread", load_sql("reports", catalogue("reports")["spread"]).text, "spread", fetch=True)]
    value = _RANKED_BY.get(str(variables["ranked_by"]))
    sql = _SPREAD.format(value=(value or "null").format(slot=slot), is_known=str(value is not None).lower())
    return [Step("spread", sql, "spread", fetch=True)]


def kept_rows(stages: Iterable[Stage]) -> str:
    """SELECT of the kept replies with their rank, from which stages pick: rows of stg_candidates.

    Where stages name few columns, from a table that has those alone: four joins of millions of ids cost as much as all
    rules. A word that is not known here to be harmless gets the joins.
    """
    said = " ".join(text.lower() for stage in stages for text in (stage.where, stage.order_by) if text)
    words = set(_WORD.findall(_STRING.sub("", said))) - _HARMLESS
    rows, key = next(((rows, key) for rows, key, columns in _SOURCES if words <= columns), ("stg_candidates", None))
    key = key or "response_id"
    return f"select c.*, kept.rank from {rows} as c join kept on kept.{key} = c.{key}"
