-- paragraph_repeated
-- Purpose     Drop replies that repeat a paragraph of 80 characters or more outside formulas and code.
-- Inputs      stg_features (response_id, paragraph_repeats)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  max_paragraph_repeats: occurrences of the most repeated paragraph, default 2
-- Source      our number for arXiv:2601.09088 p.12, which publishes none
--             measured: breaks 125 of 15,938 sample replies (84 of 1,082 by a 0.5B and a 7B model,
--             19 of 200 runaway reasonings, 0 of 783 sound competition solutions); docs/rules.md
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/paragraph_repeated.sql
with
params as (
    select coalesce(getvariable('max_paragraph_repeats'), 2)::integer as max_paragraph_repeats
),

features as (select * from stg_features),

violations as (
    select
        features.response_id,
        features.paragraph_repeats::double as observed,
        params.max_paragraph_repeats::double as threshold
    from features
    cross join params
    where features.paragraph_repeats > params.max_paragraph_repeats
)

select * from violations;
