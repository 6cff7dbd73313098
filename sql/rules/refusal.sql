-- refusal
-- Purpose     Drop replies whose answer begins with a refusal, English or Chinese, and that no verifier calls correct.
-- Inputs      stg_features (response_id, refuses), stg_verdicts (response_id, verdict)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  none
-- Source      our patterns, in builder/refusals.py: an apology followed by inability, inability or unwillingness to
--             help. Not caught: other languages, refusals further in, advice or a question in place of an answer
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/refusal.sql
with
features as (select * from stg_features where refuses),

right_ones as (select * from stg_verdicts where verdict = 'correct'),

violations as (
    select
        features.response_id,
        1::double as observed,
        0::double as threshold
    from features
    anti join right_ones on right_ones.response_id = features.response_id
)

select * from violations;
