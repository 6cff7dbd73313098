-- stg_rollouts
-- Purpose     What became of every rollout of the student in the latest mix.
-- Inputs      rollouts (tables/rollouts)
-- Output      one row per rollout: every column of table rollouts
-- Parameters  none
-- Source      design of the run directory; builder/schema.py says what each column means
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "select outcome, count(*) from stg_rollouts group by all"
select * from rollouts;
