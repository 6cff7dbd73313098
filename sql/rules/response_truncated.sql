-- response_truncated
-- Purpose     Drop replies that did not end by themselves: finish_reason is not stop, or is unknown.
-- Inputs      stg_responses (response_id, finish_reason, completion_tokens, max_tokens)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  none
-- Source      arXiv:2601.09088 p.4: truncated outputs removed
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/response_truncated.sql
with
responses as (select * from stg_responses),

violations as (
    select
        responses.response_id,
        responses.completion_tokens::double as observed,
        responses.max_tokens::double as threshold
    from responses
    where responses.finish_reason is distinct from 'stop'
)

select * from violations;
