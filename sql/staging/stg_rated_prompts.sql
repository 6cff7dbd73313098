-- stg_rated_prompts
-- Purpose     Prompts with how often the teacher answers them right: what `where` and `order_by` of a grpo stage read.
-- Inputs      stg_prompts, stg_responses (response_id, prompt_id, role), stg_verdicts (response_id, verdict, decides)
-- Output      one row per prompt: every column of stg_prompts; pass_rate double, correct over correct and wrong teacher
--             replies, null without one; judged_replies, how many those are
-- Parameters  none
-- Source      as rule pass_rate_outside
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "from stg_rated_prompts where pass_rate between 0.1 and 0.9"
with
rates as (
    select
        responses.prompt_id,
        avg((verdicts.verdict = 'correct')::integer) as pass_rate,
        count(*) as judged_replies
    from stg_responses as responses
    join stg_verdicts as verdicts on verdicts.response_id = responses.response_id
    where responses.role = 'teacher'
        and verdicts.decides
        and verdicts.verdict in ('correct', 'wrong')
    group by responses.prompt_id
)

select
    prompts.*,
    rates.pass_rate,
    coalesce(rates.judged_replies, 0) as judged_replies
from stg_prompts as prompts
left join rates on rates.prompt_id = prompts.prompt_id;
