-- stg_prompts
-- Purpose     The questions, as given.
-- Inputs      prompts (tables/prompts)
-- Output      one row per prompt: every column of table prompts
-- Parameters  none
-- Source      design of the run directory; builder/schema.py says what each column means
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "describe stg_prompts"
select * from prompts;
