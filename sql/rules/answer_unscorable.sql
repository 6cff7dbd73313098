-- answer_unscorable
-- Purpose     Drop replies whose answer the verifier could not read or compare, in time or at all.
-- Inputs      stg_verdicts (response_id, verdict, decides)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  none
-- Source      our choice: such a reply is neither right nor wrong
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/answer_unscorable.sql
with
verdicts as (select * from stg_verdicts),

violations as (
    select
        verdicts.response_id,
        null::double as observed,
        null::double as threshold
    from verdicts
    where verdicts.decides and verdicts.verdict in ('unscorable', 'timeout', 'error')
)

select * from violations;
