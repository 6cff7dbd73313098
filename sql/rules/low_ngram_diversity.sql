-- low_ngram_diversity
-- Purpose     Drop replies made of few different phrases.
-- Inputs      stg_features (response_id, distinct_4gram_share)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  min_distinct_4gram_share: distinct word 4-grams over all word 4-grams, default 0.15
-- Source      our number for arXiv:2601.09088 p.12, which publishes none
--             measured: breaks 312 of 15,938 sample replies (185 of 1,082 by a 0.5B and a 7B model,
--             12 of 200 runaway reasonings, 0 of 783 sound competition solutions); docs/rules.md
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/low_ngram_diversity.sql
with
params as (
    select coalesce(getvariable('min_distinct_4gram_share'), 0.15)::double as min_distinct_4gram_share
),

features as (select * from stg_features),

violations as (
    select
        features.response_id,
        features.distinct_4gram_share::double as observed,
        params.min_distinct_4gram_share::double as threshold
    from features
    cross join params
    where features.distinct_4gram_share < params.min_distinct_4gram_share
)

select * from violations;
