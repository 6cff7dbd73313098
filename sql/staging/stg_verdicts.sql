-- stg_verdicts
-- Purpose     Verdicts, and which one decides: of those that say correct or wrong that of the prompt's verifier, else
--             the strictest, a judge's (a verifier named judge…) last; where none does, the same among the others.
-- Inputs      verdicts (tables/verdicts), responses (response_id, prompt_id), prompts (prompt_id, verifier)
-- Output      one row per reply and verifier: every column of table verdicts, and decides boolean (once per reply)
-- Parameters  none
-- Source      our choice
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "describe stg_verdicts"
with
judged as (
    select
        verdicts.*,
        coalesce(verdicts.verifier = prompts.verifier, false) as is_named,
        starts_with(verdicts.verifier, 'judge') as is_judge,
        list_position(['wrong', 'correct', 'unscorable', 'timeout', 'error'], verdicts.verdict) as strictness
    from verdicts
    left join responses using (response_id)
    left join prompts using (prompt_id)
)

select
    judged.* exclude (is_named, is_judge, strictness),
    row_number() over (
        partition by judged.response_id
        order by
            judged.verdict not in ('correct', 'wrong'), judged.is_named desc, judged.is_judge, judged.strictness,
            judged.verifier
    ) = 1 as decides
from judged;
