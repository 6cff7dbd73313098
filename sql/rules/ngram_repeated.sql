-- ngram_repeated
-- Purpose     Drop replies in which one run of 20 words comes again and again; a formula is one word, code is left out.
-- Inputs      stg_features (response_id, ngram_repeats)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  max_ngram_repeats: occurrences of the most repeated 20-gram of words, default 15
-- Source      our number for arXiv:2601.09088 p.12, which publishes none
--             measured: breaks 409 of 15,938 sample replies (17 of 200 runaway reasonings, 0 of 783 sound competition
--             solutions, of which 9 would break 3); docs/rules.md
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/ngram_repeated.sql
with
params as (
    select coalesce(getvariable('max_ngram_repeats'), 15)::integer as max_ngram_repeats
),

features as (select * from stg_features),

violations as (
    select
        features.response_id,
        features.ngram_repeats::double as observed,
        params.max_ngram_repeats::double as threshold
    from features
    cross join params
    where features.ngram_repeats > params.max_ngram_repeats
)

select * from violations;
