-- quotas
-- Purpose     Rows of stages with quotas: so many of each domain, by a hash, so that a larger quota only adds rows.
-- Inputs      stg_selection (stage, grain_id) before quotas, by hand that of the latest select; stg_responses
--             (prompt_id), stg_prompts (domain)
-- Output      grain_id, stage
-- Parameters  quotas: rows by stage and domain as JSON, such as {"low-temperature": {"arithmetic": 9}}, default {}
--             seed: number that fixes which rows (generation.seed unless the recipe sets it), default 0
-- Source      arXiv:2501.12948v2 Table 5 has such counts, not how its rows were picked; the hash is our choice
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/mix/quotas.sql
with
params as (
    select
        coalesce(getvariable('quotas'), '{}')::varchar as quotas,
        coalesce(getvariable('seed'), 0)::bigint as seed
),

asked as (
    select params.quotas::json::map(varchar, map(varchar, bigint)) as rows_by_stage
    from params
),

-- the salt keeps the pick apart from selector `random`: its best of many hashes is low, and would win here as well
placed as (
    select
        selection.grain_id,
        selection.stage,
        prompts.domain,
        row_number() over (
            partition by selection.stage, prompts.domain
            order by md5('quotas:' || selection.grain_id || ':' || params.seed), selection.grain_id
        ) as place
    from stg_selection as selection
    join stg_responses as responses on responses.response_id = selection.grain_id
    join stg_prompts as prompts on prompts.prompt_id = responses.prompt_id
    cross join params
),

picked as (
    select placed.grain_id, placed.stage
    from placed
    cross join asked
    where placed.place <= asked.rows_by_stage[placed.stage][placed.domain]
)

select * from picked order by stage, grain_id;
