-- stg_selection
-- Purpose     What the latest select kept, stage by stage.
-- Inputs      selection (tables/selection)
-- Output      one row per stage and kept row: every column of table selection
-- Parameters  none
-- Source      design of the run directory; builder/schema.py says what each column means
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "describe stg_selection"
select * from selection;
