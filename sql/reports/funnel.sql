-- funnel
-- Purpose     What each rule breaks, what only it breaks, and the tokens lost, in all and by domain and temperature;
--             with the length of what was kept against what was dropped, lest a selector merely take the longest.
-- Inputs      stg_rejections, stg_responses (replies of one role), stg_prompts (prompt_id, domain), stg_rewrites
--             (response_id, outcome), stg_selection (kind, grain_id)
-- Output      rule_name, domain, temperature, breaks, breaks_alone, tokens, mean_tokens, median_tokens (completion
--             tokens of those replies); domain and temperature null = all of them. Three more names count replies that
--             are (kept): in a stage, (not kept), and (outranked): not kept although they break no rule
-- Parameters  ranked_role: whose replies are counted, rewrite where a recipe selects rewrites, default teacher
-- Source      design of the funnel: rules never hide each other. arXiv:2512.20908: taking the longest gains most of
--             what the largest count does. Whether candidates differ at all: sql/reports/spread.sql
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/reports/funnel.sql
with
params as (
    select coalesce(getvariable('ranked_role'), 'teacher')::varchar as ranked_role
),

rewrites as (select response_id from stg_rewrites where outcome in ('unchanged', 'rewritten')),

replies as (
    select
        responses.response_id,
        responses.temperature,
        responses.completion_tokens,
        coalesce(prompts.domain, 'unknown') as domain
    from stg_responses as responses
    cross join params
    left join stg_prompts as prompts using (prompt_id)
    left join rewrites on rewrites.response_id = responses.response_id
    where responses.role = params.ranked_role and (responses.role <> 'rewrite' or rewrites.response_id is not null)
),

kept as (select distinct grain_id as response_id from stg_selection where kind = 'sft'),

broken as (select distinct response_id from stg_rejections),

members as (
    select
        rejections.rule_name,
        rejections.response_id,
        count(*) over (partition by rejections.response_id) = 1 as is_alone
    from stg_rejections as rejections
    union all
    select '(kept)', kept.response_id, null from kept
    union all
    select '(not kept)', replies.response_id, null from replies anti join kept using (response_id)
    union all
    select '(outranked)', replies.response_id, null
    from replies
    anti join kept using (response_id)
    anti join broken using (response_id)
),

funnel as (
    select
        members.rule_name,
        replies.domain,
        replies.temperature,
        count(*) as breaks,
        sum(members.is_alone::integer)::bigint as breaks_alone,
        coalesce(sum(replies.completion_tokens), 0)::bigint as tokens,
        avg(replies.completion_tokens) as mean_tokens,
        median(replies.completion_tokens) as median_tokens
    from members
    join replies on replies.response_id = members.response_id
    group by grouping sets (
        (members.rule_name), (members.rule_name, replies.domain, replies.temperature)
    )
)

select * from funnel order by rule_name, domain nulls first, temperature nulls first;
