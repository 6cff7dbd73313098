-- stg_rewrites
-- Purpose     What became of every reply that the latest builder rewrite asked for.
-- Inputs      rewrites (tables/rewrites)
-- Output      one row per rewrite: every column of table rewrites
-- Parameters  none
-- Source      arXiv:2501.12948v2 B.3; builder/schema.py says what each column means
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "select outcome, count(*) from stg_rewrites group by all"
select * from rewrites;
