-- think_tags_broken
-- Purpose     Drop replies whose think block never closed, or that hold think tags inside thinking or answer.
-- Inputs      stg_responses (response_id, reasoning_format), stg_features (response_id, think_tags)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  none
-- Source      arXiv:2601.09088 p.12: exactly one think block; observed counts tags left, null where it never closed
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/think_tags_broken.sql
with
responses as (select * from stg_responses),

features as (select * from stg_features),

violations as (
    select
        responses.response_id,
        if(responses.reasoning_format = 'unclosed', null, features.think_tags)::double as observed,
        0::double as threshold
    from responses
    left join features on features.response_id = responses.response_id
    where responses.reasoning_format = 'unclosed' or features.think_tags > 0
)

select * from violations;
