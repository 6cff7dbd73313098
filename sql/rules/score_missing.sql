-- score_missing
-- Purpose     Drop replies without a score for the recipe's student: not scored yet, or scoring was refused.
--             Replies that go on from a student's text are not ranked by divergence, and need none.
-- Inputs      stg_responses (response_id, role), stg_scores (response_id, status)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  none
-- Source      our choice: NULL passes every comparison unnoticed, so a missing score is a rule of its own
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/score_missing.sql
with
responses as (select * from stg_responses where role is distinct from 'mixed'),

scored as (select * from stg_scores where status = 'ok'),

violations as (
    select
        responses.response_id,
        null::double as observed,
        null::double as threshold
    from responses
    anti join scored on scored.response_id = responses.response_id
)

select * from violations;
