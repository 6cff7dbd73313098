-- stg_sentences
-- Purpose     What selectors count at a margin that scores do not hold, and reports read sentence by sentence.
-- Inputs      sentences (tables/sentences)
-- Output      one row per scored reply: response_id, and lists with one entry a sentence
-- Parameters  student_id: student of the recipe, default null
-- Source      design of the run directory; builder/schema.py says what each column means
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "describe stg_sentences"
with
params as (
    select coalesce(getvariable('student_id'), null)::varchar as student_id
)

select sentences.* exclude (student_id, byte_end)
from sentences
cross join params
where sentences.student_id = params.student_id;
