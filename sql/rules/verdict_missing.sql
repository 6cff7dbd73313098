-- verdict_missing
-- Purpose     Drop replies that nothing has judged: not verified yet, or no gold or verifier to verify them by.
--             What a verifier tried and could not tell is `answer_unscorable`, so no reply breaks both.
-- Inputs      stg_responses (response_id), stg_verdicts (response_id, verdict, decides)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  none
-- Source      our choice: NULL passes every comparison unnoticed, so a missing verdict is a rule of its own
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/verdict_missing.sql
with
responses as (select * from stg_responses),

judged as (select * from stg_verdicts where decides and verdict is not null),

violations as (
    select
        responses.response_id,
        null::double as observed,
        null::double as threshold
    from responses
    anti join judged on judged.response_id = responses.response_id
)

select * from violations;
