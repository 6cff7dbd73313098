-- survivors
-- Purpose     The replies that a selector ranks: those that broke no rule, or all under selector-first.
-- Inputs      stg_responses (response_id, prompt_id, temperature, role), stg_rejections (response_id), stg_rewrites
--             (response_id, outcome)
-- Output      one row per reply to rank: response_id, prompt_id, temperature
-- Parameters  selection_order: rules-first or selector-first, default rules-first
--             ranked_role: rewrite where a recipe has section rewrite, default teacher
-- Source      spec/dasd.md section 1, order note
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "from survivors limit 5"
with
params as (
    select coalesce(getvariable('selection_order'), 'rules-first')::varchar as selection_order,
        coalesce(getvariable('ranked_role'), 'teacher')::varchar as ranked_role
),

broken as (select distinct stg_rejections.response_id from stg_rejections)

select
    responses.response_id,
    responses.prompt_id,
    responses.temperature
from stg_responses as responses
cross join params
left join broken on broken.response_id = responses.response_id
where responses.role = params.ranked_role
    and (
        params.ranked_role = 'teacher'
        or responses.response_id in (
            select stg_rewrites.response_id from stg_rewrites where stg_rewrites.outcome in ('unchanged', 'rewritten')
        )
    )
    and (params.selection_order = 'selector-first' or broken.response_id is null);
