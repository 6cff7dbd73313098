-- review_missing
-- Purpose     Drop replies about which no person has decided yet. What one drops breaks `review_dropped`, not this.
-- Inputs      stg_responses (response_id), stg_reviews (response_id, decision)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  none
-- Source      people verify the cold start of DeepSeek-R1, arXiv:2501.12948v2 B.3; builder review imports decisions
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/review_missing.sql
with
responses as (select * from stg_responses),

reviewed as (select * from stg_reviews where decision is not null),

violations as (
    select
        responses.response_id,
        null::double as observed,
        null::double as threshold
    from responses
    anti join reviewed on reviewed.response_id = responses.response_id
)

select * from violations;
