-- too_long_for_student
-- Purpose     Drop replies longer than the training context, in student tokens, prompt and template included.
-- Inputs      stg_scores (response_id, student_tokens)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  max_student_tokens: student tokens of prompt, completion and end of turn, default 65536
-- Source      arXiv:2601.09088 p.12: dropped above the training context of 64K, never cut
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/too_long_for_student.sql
with
params as (
    select coalesce(getvariable('max_student_tokens'), 65536)::bigint as max_student_tokens
),

scores as (select * from stg_scores),

violations as (
    select
        scores.response_id,
        scores.student_tokens::double as observed,
        params.max_student_tokens::double as threshold
    from scores
    cross join params
    where scores.student_tokens > params.max_student_tokens
)

select * from violations;
