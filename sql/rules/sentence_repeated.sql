-- sentence_repeated
-- Purpose     Drop replies that say the same sentence again and again: 20 characters or more outside formulas and code.
-- Inputs      stg_features (response_id, sentence_repeats)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  max_sentence_repeats: occurrences of the most repeated sentence, default 9
-- Source      our number for arXiv:2601.09088 p.12, which publishes none
--             measured: breaks 255 of 15,938 sample replies (176 of 1,082 by a 0.5B and a 7B model,
--             13 of 200 runaway reasonings, 2 of 783 sound competition solutions); docs/rules.md
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/sentence_repeated.sql
with
params as (
    select coalesce(getvariable('max_sentence_repeats'), 9)::integer as max_sentence_repeats
),

features as (select * from stg_features),

violations as (
    select
        features.response_id,
        features.sentence_repeats::double as observed,
        params.max_sentence_repeats::double as threshold
    from features
    cross join params
    where features.sentence_repeats > params.max_sentence_repeats
)

select * from violations;
