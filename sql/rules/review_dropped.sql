-- review_dropped
-- Purpose     Drop replies that a person said to drop. What nobody has reviewed stays: `review_missing` drops it.
-- Inputs      stg_reviews (response_id, decision)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  none
-- Source      people verify the cold start of DeepSeek-R1, arXiv:2501.12948v2 B.3; builder review imports decisions
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/review_dropped.sql
with
reviews as (select * from stg_reviews),

violations as (
    select
        reviews.response_id,
        null::double as observed,
        null::double as threshold
    from reviews
    where reviews.decision = 'drop'
)

select * from violations;
