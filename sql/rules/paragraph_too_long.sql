-- paragraph_too_long
-- Purpose     Drop replies with a wall of text: a paragraph too long to read, formulas and code not counted.
-- Inputs      stg_features (response_id, longest_paragraph_chars)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  max_paragraph_chars: characters of a paragraph outside formulas and code, default 2000
-- Source      arXiv:2501.12948 section 2.3.3: chains of thought with long paragraphs are dropped; the number is ours
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/paragraph_too_long.sql
with
params as (
    select coalesce(getvariable('max_paragraph_chars'), 2000)::integer as max_paragraph_chars
),

features as (select * from stg_features),

violations as (
    select
        features.response_id,
        features.longest_paragraph_chars::double as observed,
        params.max_paragraph_chars::double as threshold
    from features
    cross join params
    where features.longest_paragraph_chars > params.max_paragraph_chars
)

select * from violations;
