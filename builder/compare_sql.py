"""Statements of `builder compare`, over run.duckdb and two selections: selection_a and rejections_a, and those of b.

Ours, and run in this process; what a recipe brings has run in the sandbox before. Replies are joined by their number in
reply_numbers, which takes a fifth of the time that ids take.
"""

from typing import Final

SIDE: Final = """
create temp table kept_{side} as
    select distinct reply from selection_{side} join reply_numbers on response_id = grain_id where kind = 'sft';
create temp table broken_{side} as
    with counted as (select {key}, count(*) as rules from rejections_{side} group by {key})

    select reply, role, completion_tokens, rule_name, counted.rules = 1 as is_alone
    from rejections_{side}
    join counted using ({key})
    join reply_numbers using ({key});
"""

REPLIES: Final = """
create temp table kept as
    select reply, bool_or(side = 'a') as in_a, bool_or(side = 'b') as in_b
    from (select 'a' as side, * from kept_a union all select 'b', * from kept_b)
    group by reply;
create temp table pass_rates as
    select
        prompt,
        count(*) filter (where verdict = 'correct') / count(*) as pass_rate
    from reply_numbers
    join stg_verdicts using (response_id)
    where role = 'teacher' and decides and verdict in ('correct', 'wrong')
    group by prompt;
create temp table replies as
    select
        kept.*,
        numbers.response_id,
        numbers.role,
        numbers.asked,
        numbers.prompt_id,
        numbers.temperature,
        numbers.completion_tokens,
        coalesce(prompts.domain, 'unknown') as domain,
        numbers.mean_delta,
        numbers.teacher_counts[{slot}] as teacher_sentences,
        pass_rates.pass_rate
    from kept
    join reply_numbers as numbers using (reply)
    left join stg_prompts as prompts using (prompt_id)
    left join pass_rates using (prompt);
"""

RULES: Final = """
select side, rule_name, count(*) as breaks, count(*) filter (where is_alone) as breaks_alone,
    coalesce(sum(completion_tokens), 0)::bigint as tokens
from (select 'a' as side, * from broken_a union all select 'b', * from broken_b)
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
create temp table missing_{held} as
    with away as (from replies where in_{held} and not in_{other}),

    broken as (
        select reply, string_agg(rule_name, ', ' order by rule_name) as rules
        from broken_{other}
        semi join away using (reply)
        group by reply
    ),

    preferred as (
        select asked, count(*) as replies
        from kept_{other}
        join reply_numbers using (reply)
        where role = 'teacher'
        group by asked
    )

    select
        '{held}' as only_in,
        away.*,
        case
            when broken.rules is not null then 'breaks ' || broken.rules
            when away.role = 'teacher' and coalesce(preferred.replies, 0) >= {keep} then 'outranked'
            when away.role = 'teacher' then 'outranked, or in no stage'
            else 'in no stage'
        end as reason
    from away
    left join broken using (reply)
    left join preferred using (asked);
"""

REASONS: Final = """
select only_in, reason, count(*) as rows
from (from missing_a union all from missing_b)
group by all
order by only_in, rows desc, reason
"""

EXAMPLES: Final = """
with shown as (
    select *, row_number() over (partition by only_in order by md5(response_id), response_id) as place
    from (from missing_a union all from missing_b)
    qualify place <= {sample}
)

select only_in, reason, shown.response_id, shown.prompt_id, shown.temperature, shown.completion_tokens,
    shown.domain, pass_rate, teacher_sentences, mean_delta, messages[-1].content as question, reasoning, answer
from shown
join stg_responses as texts on texts.response_id = shown.response_id
join stg_prompts as prompts on prompts.prompt_id = shown.prompt_id
order by only_in, place
"""
