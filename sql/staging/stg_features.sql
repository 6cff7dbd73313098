-- stg_features
-- Purpose     Lengths, flags and repetition measures of every reply.
-- Inputs      features (tables/features)
-- Output      one row per reply: every column of table features
-- Parameters  none
-- Source      design of the run directory; builder/schema.py says what each column means
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "describe stg_features"
select * from features;
