-- stg_reviews
-- Purpose     What people decided about replies.
-- Inputs      reviews (tables/reviews)
-- Output      one row per decided reply: every column of table reviews
-- Parameters  none
-- Source      design of the run directory; builder/schema.py says what each column means
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "select decision, count(*) from stg_reviews group by all"
select * from reviews;
