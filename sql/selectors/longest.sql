-- longest
-- Purpose     Rank by length: the control that shows how much of a count is length.
-- Inputs      survivors, stg_responses (response_id, completion_tokens)
-- Output      one row per survivor: response_id, rank (1..n per prompt_id and temperature)
-- Parameters  none
-- Source      the longest-response arm of arXiv:2512.20908
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/selectors/longest.sql
with
ranked as (
    select
        survivors.response_id,
        row_number() over (
            partition by survivors.prompt_id, survivors.temperature
            order by responses.completion_tokens desc nulls last, survivors.response_id
        ) as rank
    from survivors
    left join stg_responses as responses on responses.response_id = survivors.response_id
)

select * from ranked;
