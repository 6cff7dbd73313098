-- survivors
-- Purpose     The replies that a selector ranks: those that broke no rule, or all under selector-first.
-- Inputs      stg_responses (response_id, prompt_id, temperature, role), stg_rejections (response_id)
-- Output      one row per teacher reply to rank: response_id, prompt_id, temperature
-- Parameters  selection_order: rules-first or selector-first, default rules-first
-- Source      spec/dasd.md section 1, order note
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "from survivors limit 5"
with
params as (
    select coalesce(getvariable('selection_order'), 'rules-first')::varchar as selection_order
),

broken as (select distinct stg_rejections.response_id from stg_rejections)

select
    responses.response_id,
    responses.prompt_id,
    responses.temperature
from stg_responses as responses
cross join params
left join broken on broken.response_id = responses.response_id
where responses.role = 'teacher'
    and (params.selection_order = 'selector-first' or broken.response_id is null);
