-- pass_rate_outside
-- Purpose     Drop every reply to a prompt that the teacher answers right nearly always, or hardly ever.
-- Inputs      stg_responses (response_id, prompt_id, role), stg_verdicts (response_id, verdict, decides)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  min_pass_rate: correct over correct and wrong teacher replies of a prompt, default 0.1
--             max_pass_rate: correct over correct and wrong teacher replies of a prompt, default 0.9
-- Source      github.com/huggingface/open-r1 keeps 0.1 to 0.9; a prompt without such a verdict has no rate and stays.
--             Rounds of generation.until_correct stop at a correct reply, which lifts the rates of what they ask
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/pass_rate_outside.sql
with
params as (
    select
        coalesce(getvariable('min_pass_rate'), 0.1)::double as min_pass_rate,
        coalesce(getvariable('max_pass_rate'), 0.9)::double as max_pass_rate
),

responses as (select * from stg_responses),

verdicts as (select * from stg_verdicts where decides and verdict in ('correct', 'wrong')),

pass_rates as (
    select
        responses.prompt_id,
        avg((verdicts.verdict = 'correct')::integer) as pass_rate
    from responses
    join verdicts on verdicts.response_id = responses.response_id
    where responses.role = 'teacher'
    group by responses.prompt_id
),

violations as (
    select
        responses.response_id,
        pass_rates.pass_rate as observed,
        if(pass_rates.pass_rate < params.min_pass_rate, params.min_pass_rate, params.max_pass_rate) as threshold
    from responses
    join pass_rates on pass_rates.prompt_id = responses.prompt_id
    cross join params
    where pass_rates.pass_rate < params.min_pass_rate or pass_rates.pass_rate > params.max_pass_rate
)

select * from violations;
