-- funnel
-- Purpose     What each rule breaks, what only it breaks, and the tokens lost, in all and by domain and temperature.
-- Inputs      stg_rejections, stg_responses (teacher replies), stg_prompts (prompt_id, domain)
-- Output      rule_name, domain, temperature, breaks, breaks_alone, tokens; domain and temperature null = all of them
-- Parameters  none
-- Source      design of the funnel: rules never hide each other
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/reports/funnel.sql
with
replies as (
    select
        responses.response_id,
        responses.temperature,
        responses.completion_tokens,
        coalesce(prompts.domain, 'unknown') as domain
    from stg_responses as responses
    left join stg_prompts as prompts using (prompt_id)
    where responses.role = 'teacher'
),

broken as (
    select
        rejections.rule_name,
        replies.*,
        count(*) over (partition by rejections.response_id) = 1 as is_alone
    from stg_rejections as rejections
    join replies on replies.response_id = rejections.response_id
),

funnel as (
    select
        broken.rule_name,
        broken.domain,
        broken.temperature,
        count(*) as breaks,
        count(*) filter (where broken.is_alone) as breaks_alone,
        coalesce(sum(broken.completion_tokens), 0)::bigint as tokens
    from broken
    group by grouping sets ((broken.rule_name), (broken.rule_name, broken.domain, broken.temperature))
)

select * from funnel order by rule_name, domain nulls first, temperature nulls first;
