"""Selectors side by side on the same survivors: what each would keep, and how much of it the others keep too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from builder.console import Progress
from builder.report_replies import Replies
from builder.rules import catalogue
from builder.sqlfile import Value

COMPARED: Final = ("teacher_sentence_count", "random", "longest", "length_matched")
"""Divergence-aware sampling, and the controls of spec and of arXiv:2512.20908."""
_SCORED: Final = frozenset(
    {"teacher_sentence_count", "length_matched", "teacher_share", "mean_delta", "fewest_teacher_sentences"}
)
# Overlap only where there was a choice: of prompts and temperatures with more survivors than are kept.
_CHOSEN: Final = """
with
sizes as (select asked, count(*) > $keep as has_choice from replies where ranks group by asked),

chosen as (
    select replies.*, sizes.has_choice, first_rank.rank <= $keep as is_shared
    from {table} as ranked
    join replies using (response_id)
    join sizes using (asked)
    left join {first} as first_rank on first_rank.response_id = ranked.response_id
    where ranked.rank <= $keep
)

select
    count(*) as rows,
    count(*) filter (where has_choice) as with_choice,
    sum(completion_tokens)::bigint as tokens,
    avg(completion_tokens) as mean_tokens,
    median(completion_tokens) as median_tokens,
    avg(teacher_sentences) as teacher_sentences,
    sum(teacher_sentences) / nullif(sum(counted_sentences), 0) as teacher_share,
    avg(mean_delta) as mean_delta,
    avg((verdict = 'correct')::integer) filter (where verdict in ('correct', 'wrong')) as correct,
    avg(is_shared::integer) filter (where has_choice) as overlap
from chosen
"""


@dataclass(frozen=True)
class Chosen:
    """What one selector keeps: `keep` replies of each prompt and temperature. Means are over replies that have the
    number; `teacher_share` is teacher sentences / counted sentences of all rows; `overlap` with the first selector is
    over rows of prompts that gave it a choice, None where none did."""

    selector: str
    rows: int
    with_choice: int
    tokens: int | None
    mean_tokens: float | None
    median_tokens: float | None
    teacher_sentences: float | None
    teacher_share: float | None
    mean_delta: float | None
    correct: float | None
    overlap: float | None


def selectors(
    replies: Replies, used: str, keep: int, variables: Mapping[str, Value], progress: Progress = lambda *_: None
) -> list[Chosen]:
    """The compared selectors and, where it is a packaged one, the recipe's own, over the survivors of today's
    rejections. Those that read scores are left out where nothing is scored; none where nothing survives."""
    (size,) = replies.ask("select count(*) as survivors, count(teacher_counts) as scored from replies where ranks")
    if not size["survivors"]:
        return []
    names = [name for name in dict.fromkeys([*COMPARED, used]) if name in catalogue("selectors")]
    if not size["scored"]:
        names = [name for name in names if name not in _SCORED]
    found = []
    for place, name in enumerate(names):
        progress(f"selector {name}", place, len(names))
        table = f"ranked_{place}"
        replies.rank(name, variables, table)
        row: dict[str, Any] = replies.ask_named(_CHOSEN.format(table=table, first="ranked_0"), {"keep": keep})[0]
        found.append(Chosen(selector=name, **row))
        if name == used:
            replies.ask(f"create or replace temp view own_ranks as select response_id, rank from {table}")
    return found
