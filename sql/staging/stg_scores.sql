-- stg_scores
-- Purpose     Divergence of every reply from the recipe's student; scores of other students stay in tables/.
-- Inputs      scores (tables/scores)
-- Output      one row per scored reply: every column of table scores
-- Parameters  student_id: student of the recipe, default null
-- Source      design of the run directory; builder/schema.py says what each column means
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "describe stg_scores"
with
params as (
    select coalesce(getvariable('student_id'), null)::varchar as student_id
)

select scores.*
from scores
cross join params
where scores.student_id = params.student_id;
