"""Statements of `builder compare`, over run.duckdb and two selections: selection_a and rejections_a, and those of b.

Ours, and run in this process; what a recipe brings has run in the sandbox before.
"""

from typing import Final

SIDE: Final = """
create temp table kept_{side} as
    select distinct grain_id as response_id from selection_{side} where kind = 'sft';
create temp table broken_{side} as
    select response_id, rule_name, count(*) over (partition by response_id) = 1 as is_alone from rejections_{side};
"""

REPLIES: Final = """
create temp table kept as
    select response_id, bool_or(side = 'a') as in_a, bool_or(side = 'b') as in_b
    from (select 'a' as side, * from kept_a union all select 'b', * from kept_b)
    group by response_id;
create temp table pass_rates as
    select
        prompt_id,
        count(*) filter (where verdict = 'correct')
            / count(*) filter (where verdict in ('correct', 'wrong')) as pass_rate
    from stg_responses
    join stg_verdicts using (response_id)
    where role = 'teacher' and decides
    group by prompt_id
    having count(*) filter (where verdict in ('correct', 'wrong')) > 0;
create temp table replies as
    select
        kept.*,
        responses.role,
        responses.prompt_id,
        responses.temperature,
        responses.completion_tokens,
        coalesce(prompts.domain, 'unknown') as domain,
        scores.mean_delta,
        scores.teacher_counts[{slot}] as teacher_sentences,
        pass_rates.pass_rate
    from kept
    join stg_responses as responses using (response_id)
    left join stg_prompts as prompts using (prompt_id)
    left join pass_rates using (prompt_id)
    left join stg_scores as scores on scores.response_id = kept.response_id and scores.status = 'ok';
"""

RULES: Final = """
select side, rule_name, count(*) as breaks, count(*) filter (where is_alone) as breaks_alone,
    coalesce(sum(completion_tokens), 0)::bigint as tokens
from (select 'a' as side, * from broken_a union all select 'b', * from broken_b)
join stg_responses using (response_id)
where role = 'teacher'
group by side, rule_name
"""

STAGES: Final = """
select stage, kind, count(*) filter (where in_a) as rows_a, count(*) filter (where in_b) as rows_b,
    count(*) filter (where in_a and in_b) as rows_both
from (
    select stage, kind, grain_id, bool_or(side = 'a') as in_a, bool_or(side = 'b') as in_b
    from (select 'a' as side, stage, kind, grain_id from selection_a
        union all select 'b', stage, kind, grain_id from selection_b)
    group by all
)
group by stage, kind
order by stage, kind
"""

ROWS: Final = """
select count(*) filter (where in_a and in_b) as both, count(*) filter (where in_a and not in_b) as only_a,
    count(*) filter (where in_b and not in_a) as only_b
from replies
"""

PROMPTS: Final = """
select
    count(*) filter (where is_same) as same,
    count(*) filter (where not is_same and in_a and in_b) as changed,
    count(*) filter (where in_a and not in_b) as only_a,
    count(*) filter (where in_b and not in_a) as only_b
from (
    select prompt_id, bool_and(in_a and in_b) as is_same, bool_or(in_a) as in_a, bool_or(in_b) as in_b
    from replies
    group by prompt_id
)
"""

SHIFT: Final = """
select
    count(*) as rows,
    coalesce(sum(completion_tokens), 0)::bigint as tokens,
    avg(completion_tokens) as mean_tokens,
    median(completion_tokens)::double as median_tokens,
    avg(pass_rate) as pass_rate,
    avg(teacher_sentences) as teacher_sentences,
    avg(mean_delta) as mean_delta
from replies
"""

DOMAINS: Final = """
select domain, count(*) filter (where in_a) as rows_a, count(*) filter (where in_b) as rows_b
from replies
group by domain
order by rows_a + rows_b desc, domain
"""

# Replies of side {held} that {other} does not keep. Where {other} keeps as many of the prompt at that temperature as it
# may, its selector preferred them; else a stage's `where` may have left the reply out as well.
MISSING: Final = """
select
    '{held}' as only_in,
    replies.*,
    case
        when broken.rules is not null then 'breaks ' || broken.rules
        when replies.role = 'teacher' and coalesce(preferred.replies, 0) >= {keep} then 'outranked'
        when replies.role = 'teacher' then 'outranked, or in no stage'
        else 'in no stage'
    end as reason
from replies
left join (
    select response_id, string_agg(rule_name, ', ' order by rule_name) as rules from broken_{other} group by response_id
) as broken using (response_id)
left join (
    select prompt_id, temperature, count(*) as replies
    from kept_{other}
    join stg_responses using (response_id)
    where role = 'teacher'
    group by all
) as preferred on preferred.prompt_id = replies.prompt_id and preferred.temperature = replies.temperature
where in_{held} and not in_{other}
"""

REASONS: Final = """
select only_in, reason, count(*) as rows from ({missing}) group by all order by rows desc, reason
"""

EXAMPLES: Final = """
select only_in, reason, missing.response_id, missing.prompt_id, missing.temperature, missing.completion_tokens,
    missing.domain, pass_rate, teacher_sentences, mean_delta, messages[-1].content as question, reasoning, answer
from (from ({missing}) order by md5(response_id), response_id limit {sample}) as missing
join stg_responses as texts on texts.response_id = missing.response_id
join stg_prompts as prompts on prompts.prompt_id = missing.prompt_id
order by md5(missing.response_id), missing.response_id
"""
