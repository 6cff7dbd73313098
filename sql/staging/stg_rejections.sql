-- stg_rejections
-- Purpose     Every rule that every reply broke in the latest select.
-- Inputs      rejections (tables/rejections)
-- Output      one row per reply and broken rule: every column of table rejections
-- Parameters  none
-- Source      design of the run directory; builder/schema.py says what each column means
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "describe stg_rejections"
select * from rejections;
