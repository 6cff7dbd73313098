-- arms: one row a stage of an arm: the release that it came from, its rows and student tokens, and seconds.
-- Run in the folder that run.py left: cd proof && duckdb -f ../tests/proof/arms.sql
with
found as (
    select
        regexp_extract(filename, '([a-z0-9]+)-(\d+)/arms/(.+)\.json', ['task', 'seed', 'arm']) as place,
        *
    from read_json(
        '*-*/arms/*.json',
        filename = true,
        columns = {
            version: 'varchar',
            build_id: 'varchar',
            stages: 'struct(stage varchar, "rows" bigint, tokens bigint)[]',
            total_seconds: 'double'
        }
    )
)

select
    found.place.task as task,
    found.place.seed::integer as seed,
    found.place.arm as arm,
    found.version,
    found.build_id,
    found.total_seconds,
    stage.stage,
    stage.rows,
    stage.tokens
from found
left join unnest(found.stages) as unnested (stage) on true
order by task, seed, arm, stage.stage;
