-- answer_wrong
-- Purpose     Drop replies whose answer is wrong; unscorable, timeout and error are not wrong.
-- Inputs      stg_verdicts (response_id, verdict, decides)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  none
-- Source      not in DASD, which checks no answers; the DeepSeek-R1 process does
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/answer_wrong.sql
with
verdicts as (select * from stg_verdicts),

violations as (
    select
        verdicts.response_id,
        null::double as observed,
        null::double as threshold
    from verdicts
    where verdicts.decides and verdicts.verdict = 'wrong'
)

select * from violations;
