-- too_short
-- Purpose     Drop replies too short to show how an answer was found; thinking and answer together.
-- Inputs      stg_features (response_id, reasoning_chars, answer_chars)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  min_response_chars: characters of thinking and answer, default 100
-- Source      our choice: of 2,887 right answers with their solution shown the shortest has 363 characters
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/too_short.sql
with
params as (
    select coalesce(getvariable('min_response_chars'), 100)::integer as min_response_chars
),

features as (
    select
        stg_features.response_id,
        stg_features.reasoning_chars + stg_features.answer_chars as response_chars
    from stg_features
),

violations as (
    select
        features.response_id,
        features.response_chars::double as observed,
        params.min_response_chars::double as threshold
    from features
    cross join params
    where features.response_chars < params.min_response_chars
)

select * from violations;
