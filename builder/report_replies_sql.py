"""Statements that make table `replies`: one row per candidate reply, without its text, and who reads it by which name.

Columns: response_id, prompt_id, domain, temperature, role, sample_index, completion_tokens, finish_reason,
prefix_chars; verdict (that decides); where the score is ok teacher_counts, student_counts, counted_sentences,
mean_delta, and teacher_sentences (at `slot`); distinct_4gram_share; rules (names of those it breaks, sorted); stages
(where it is kept), position and rank of the first; ranks (whether a selector sees it); is_indexed. Table
`probabilities`: exp of the mean logprob of a reply's tokens, as in sql/reports/temperature.sql, for the index.
"""

from typing import Final

# The index: the first replies by md5 of their id, so that the same run shows the same ones.
_INDEXED: Final = """
    row_number() over (order by md5(response_id), response_id) <= {indexed} as is_indexed,
    row_number() over (order by response_id) - 1 as reply_id,
    dense_rank() over (order by prompt_id, temperature) as asked
"""

FROM_RUN: Final = (
    """
create temp table replies as
with
broken as (select response_id, list_sort(list(distinct rule_name)) as rules from stg_rejections group by response_id),

kept as (
    select
        grain_id as response_id,
        list(stage order by stage) as stages,
        arg_min(position, stage) as position,
        arg_min(rank, stage) as rank
    from stg_selection
    where kind = 'sft'
    group by grain_id
),

decided as (select response_id, verdict from stg_verdicts where decides),

rows as (
    select
        responses.response_id,
        responses.prompt_id,
        coalesce(prompts.domain, 'unknown') as domain,
        responses.temperature,
        responses.role,
        responses.sample_index,
        responses.completion_tokens,
        responses.finish_reason,
        responses.prefix_chars,
        decided.verdict,
        case when scores.status = 'ok' then scores.teacher_counts end as teacher_counts,
        case when scores.status = 'ok' then scores.student_counts end as student_counts,
        case when scores.status = 'ok' then scores.sentence_count - scores.short_sentences end as counted_sentences,
        case when scores.status = 'ok' and isfinite(scores.mean_delta) then scores.mean_delta end as mean_delta,
        case when scores.status = 'ok' then scores.teacher_counts[{slot}] end as teacher_sentences,
        features.distinct_4gram_share,
        coalesce(broken.rules, []) as rules,
        coalesce(kept.stages, []) as stages,
        kept.position,
        kept.rank,
        survivors.response_id is not null as ranks
    from responses
    left join stg_prompts as prompts using (prompt_id)
    left join decided on decided.response_id = responses.response_id
    left join stg_scores as scores on scores.response_id = responses.response_id
    left join stg_features as features on features.response_id = responses.response_id
    left join broken on broken.response_id = responses.response_id
    left join kept on kept.response_id = responses.response_id
    left join survivors on survivors.response_id = responses.response_id
    where responses.role in ('teacher', 'mixed', 'rewrite')
)

select *,"""
    + _INDEXED
    + """
from rows;

create view stg_sentences_of_survivors as select null::bigint as reply_id, null::double as delta where false;
create view texts as select response_id, reasoning, answer, model from responses;
create view questions as select prompt_id, messages, gold from prompts;
create view sentence_lists as
select sentences.* exclude (student_id)
from sentences
where sentences.student_id = getvariable('student_id');

create temp table probabilities as
with
sentence as (
    select
        lists.response_id,
        unnest(lists.teacher_tokens) as tokens,
        unnest(lists.p_teacher)::double as probability
    from sentence_lists as lists
    semi join replies on replies.response_id = lists.response_id and replies.is_indexed
)

select response_id, exp(sum(tokens * ln(greatest(probability, 1e-45))) / sum(tokens)) as probability
from sentence
where tokens > 0
group by response_id
"""
)

FROM_CANDIDATES: Final = (
    """
create temp table replies as
with
kept as (
    select response_id, list(stage order by stage) as stages, arg_min(position, stage) as position
    from kept_rows
    group by response_id
),

rows as (
    select
        candidates.response_id,
        candidates.prompt_id,
        coalesce(candidates.domain, 'unknown') as domain,
        candidates.temperature,
        candidates.role,
        candidates.sample_index,
        candidates.completion_tokens,
        candidates.finish_reason,
        candidates.prefix_chars,
        candidates.verdict,
        case when candidates.score_status = 'ok' then candidates.teacher_counts end as teacher_counts,
        case when candidates.score_status = 'ok' then candidates.student_counts end as student_counts,
        case
            when candidates.score_status = 'ok' then candidates.sentence_count - candidates.short_sentences
        end as counted_sentences,
        case
            when candidates.score_status = 'ok' and isfinite(candidates.mean_delta) then candidates.mean_delta
        end as mean_delta,
        case when candidates.score_status = 'ok' then candidates.teacher_counts[{slot}] end as teacher_sentences,
        candidates.distinct_4gram_share,
        list_sort(coalesce(candidates.rejected_by, [])) as rules,
        coalesce(kept.stages, []) as stages,
        kept.position,
        null::integer as rank,
        candidates.role = 'teacher' and len(coalesce(candidates.rejected_by, [])) = 0 as ranks
    from release.candidates
    left join kept on kept.response_id = candidates.response_id
)

select *,"""
    + _INDEXED
    + """
from rows;

create view texts as select response_id, reasoning, answer, model from release.candidates;
create view questions as
select prompt_id, any_value(prompt) as messages, any_value(gold) as gold from release.candidates group by prompt_id
"""
)

# A release without candidates: what was not chosen is not in it, so there is nothing to rank.
FROM_STAGES: Final = (
    """
create temp table released as
select
    response_id,
    any_value(prompt_id) as prompt_id,
    any_value(domain) as domain,
    any_value(temperature) as temperature,
    any_value(policy) as policy,
    any_value(prefix_chars) as prefix_chars,
    any_value(mean_delta) as mean_delta,
    any_value(teacher_sentences) as teacher_sentences,
    any_value(sentence_count) as sentence_count,
    any_value(teacher) as teacher
from ({rows})
group by response_id;

create temp table replies as
with
kept as (
    select response_id, list(stage order by stage) as stages, arg_min(position, stage) as position
    from kept_rows
    group by response_id
),

rows as (
    select
        released.response_id,
        released.prompt_id,
        coalesce(released.domain, 'unknown') as domain,
        released.temperature,
        released.policy as role,
        null::integer as sample_index,
        null::integer as completion_tokens,
        null::varchar as finish_reason,
        released.prefix_chars,
        null::varchar as verdict,
        null::integer[] as teacher_counts,
        null::integer[] as student_counts,
        released.sentence_count as counted_sentences,
        case when isfinite(released.mean_delta) then released.mean_delta end as mean_delta,
        released.teacher_sentences,
        null::double as distinct_4gram_share,
        []::varchar[] as rules,
        kept.stages,
        kept.position,
        null::integer as rank,
        false as ranks
    from released
    join kept on kept.response_id = released.response_id
)

select *,"""
    + _INDEXED
    + """
from rows;

create view texts as
select response_id, null::varchar as reasoning, completion[1].content as answer, teacher as model
from ({rows});
create view questions as
select prompt_id, any_value(prompt) as messages, null::varchar as gold from ({rows}) group by prompt_id
"""
)

NO_SENTENCES: Final = """
create view stg_sentences_of_survivors as select null::bigint as reply_id, null::double as delta where false;
create view sentences as
select
    null::varchar as response_id, null::integer[] as byte_end, null::integer[] as teacher_tokens,
    null::integer[] as student_tokens, null::float[] as p_teacher, null::float[] as p_student
where false;
create view sentence_lists as from sentences;
create temp table probabilities as select null::varchar as response_id, null::double as probability where false
"""

# How packaged reports and selectors call what they read; sentences are read for the index only.
VIEWS: Final = {
    "stg_responses": "select response_id, prompt_id, role, temperature, sample_index from replies where {where}",
    "stg_prompts": "select distinct prompt_id, domain from replies where {where}",
    "stg_verdicts": ("select response_id, verdict, true as decides from replies where verdict is not null and {where}"),
    "stg_sentences": (
        "select lists.* exclude (byte_end) from sentence_lists as lists "
        "semi join replies on replies.response_id = lists.response_id and {where}"
    ),
    "stg_selection": (
        "select 'sft' as kind, response_id as grain_id, unnest(stages) as stage from replies where {where}"
    ),
    "stg_scores_of_survivors": (
        "select reply_id, response_id, prompt_id, temperature, asked, completion_tokens, teacher_counts, "
        "student_counts, counted_sentences, mean_delta from replies where ranks and {where}"
    ),
}
