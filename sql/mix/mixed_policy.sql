-- mixed_policy
-- Purpose     Rows of the mixed-policy stage: continued rollouts that break no rule, and off-policy rows for balance.
-- Inputs      stg_rollouts (continuation_id), stg_rejections (response_id), stg_selection (stage, kind, grain_id)
-- Output      grain_id, stage
-- Parameters  off_policy_ratio: rows of earlier stages for each mixed row, default 2.6
--             mixed_policy_stage: name of the stage, default mixed-policy
--             seed: number that fixes which rows of earlier stages (generation.seed unless the recipe sets it), default 0
-- Source      arXiv:2601.09088 p.11: the pilot's 7.7K mixed and 20K off-policy rows
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/mix/mixed_policy.sql
with
params as (
    select
        coalesce(getvariable('off_policy_ratio'), 2.6)::double as off_policy_ratio,
        coalesce(getvariable('mixed_policy_stage'), 'mixed-policy')::varchar as mixed_policy_stage,
        coalesce(getvariable('seed'), 0)::bigint as seed
),

mixed as (
    select rollouts.continuation_id as grain_id
    from stg_rollouts as rollouts
    anti join stg_rejections as rejections on rejections.response_id = rollouts.continuation_id
    where rollouts.continuation_id is not null
),

wanted as (
    select round(count(*) * max(params.off_policy_ratio))::bigint as off_policy_rows
    from mixed
    cross join params
),

earlier as (
    select distinct selection.grain_id
    from stg_selection as selection
    cross join params
    where selection.kind = 'sft'
        and selection.stage <> params.mixed_policy_stage
),

off_policy as (
    select
        earlier.grain_id,
        row_number() over (order by md5(earlier.grain_id || ':' || params.seed), earlier.grain_id) as place
    from earlier
    cross join params
),

rows as (
    select mixed.grain_id from mixed
    union all
    select off_policy.grain_id
    from off_policy
    cross join wanted
    where off_policy.place <= wanted.off_policy_rows
)

select
    rows.grain_id,
    params.mixed_policy_stage as stage
from rows
cross join params
order by rows.grain_id;
