-- tool_call_present
-- Purpose     Drop replies that call a tool.
-- Inputs      stg_responses (response_id, tool_calls)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  none
-- Source      arXiv:2601.09088 p.12: any response with a function call is dropped
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/tool_call_present.sql
with
responses as (select * from stg_responses),

violations as (
    select
        responses.response_id,
        responses.tool_calls::double as observed,
        0::double as threshold
    from responses
    where responses.tool_calls > 0
)

select * from violations;
