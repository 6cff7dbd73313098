-- tail_loop
-- Purpose     Drop replies whose thinking or answer ends in a loop: one block, four times or more in a row.
-- Inputs      stg_features (response_id, tail_loop_chars)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  max_tail_loop_chars: characters that the repeated block covers, default 320
-- Source      our number for arXiv:2601.09088 p.12, which publishes none
--             measured: breaks 252 of 15,938 sample replies (187 of 1,082 by a 0.5B and a 7B model,
--             10 of 200 runaway reasonings, 0 of 783 sound competition solutions); 160 and 640 differ by 5
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/tail_loop.sql
with
params as (
    select coalesce(getvariable('max_tail_loop_chars'), 320)::integer as max_tail_loop_chars
),

features as (select * from stg_features),

violations as (
    select
        features.response_id,
        features.tail_loop_chars::double as observed,
        params.max_tail_loop_chars::double as threshold
    from features
    cross join params
    where features.tail_loop_chars > params.max_tail_loop_chars
)

select * from violations;
