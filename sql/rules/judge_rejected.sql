-- judge_rejected
-- Purpose     Drop replies that a judge calls wrong; a judge that cannot tell, or that was not asked, rejects nothing.
-- Inputs      stg_verdicts (response_id, verifier, verdict)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  none
-- Source      arXiv:2501.12948 section 2.3.3: a model judges what rules cannot; observed counts rejecting judges,
--             which are the verifiers whose name begins with judge
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/judge_rejected.sql
with
rejecting as (
    select * from stg_verdicts where starts_with(verifier, 'judge') and verdict = 'wrong'
),

violations as (
    select
        rejecting.response_id,
        count(*)::double as observed,
        0::double as threshold
    from rejecting
    group by rejecting.response_id
)

select * from violations;
