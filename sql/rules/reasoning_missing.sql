-- reasoning_missing
-- Purpose     Drop replies without a thinking part.
-- Inputs      stg_features (response_id, reasoning_chars)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  none
-- Source      arXiv:2601.09088 p.12: both parts are required
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/reasoning_missing.sql
with
features as (select * from stg_features),

violations as (
    select
        features.response_id,
        features.reasoning_chars::double as observed,
        1::double as threshold
    from features
    where features.reasoning_chars = 0
)

select * from violations;
