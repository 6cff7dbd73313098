-- gold_suspect
-- Purpose     Golds that are likely wrong: the teacher gives one answer again and again, and the gold says another.
-- Inputs      stg_responses (response_id, prompt_id, role), stg_verdicts (response_id, verifier, verdict, gold,
--             extracted, decides), stg_prompts (prompt_id, domain)
-- Output      prompt_id, domain, gold, majority_answer (as extracted, by spelling), agreement (share of the prompt's
--             correct and wrong replies that give it), replies (those correct and wrong ones), correct (how many of
--             them agree with the gold); the surest first. At a min_agreement of 0.5 or less two answers may tie
-- Parameters  min_answers: correct and wrong replies that a prompt needs, default 4
--             min_agreement: share of them that give the same answer, default 0.75
-- Source      our choice of thresholds; a wrong gold drops right replies and keeps wrong ones, and resampling spends
--             most on it. Two spellings of one answer do not agree: that misses a suspect, and makes none. Read the
--             question before the gold is changed: a teacher may err in the same way each time
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/reports/gold_suspect.sql
with
params as (
    select
        coalesce(getvariable('min_answers'), 4)::bigint as min_answers,
        coalesce(getvariable('min_agreement'), 0.75)::double as min_agreement
),

-- of other verifiers `extracted` is no answer that could be right instead: a program, a language, a form
replies as (
    select
        responses.prompt_id,
        verdicts.verdict,
        verdicts.gold,
        nullif(trim(verdicts.extracted), '') as answer
    from stg_responses as responses
    join stg_verdicts as verdicts on verdicts.response_id = responses.response_id and verdicts.decides
    where responses.role = 'teacher'
        and verdicts.verdict in ('correct', 'wrong')
        and verdicts.verifier in ('math', 'choice', 'exact', 'set')
),

answers as (
    select
        replies.prompt_id,
        replies.gold,
        replies.answer,
        count(*) as given,
        count(*) filter (where replies.verdict = 'correct') as correct
    from replies
    group by replies.prompt_id, replies.gold, replies.answer
),

-- a reply without an answer counts against the agreement, and is no answer to agree on
shares as (
    select
        answers.*,
        sum(answers.given) over (partition by answers.prompt_id, answers.gold)::bigint as replies,
        sum(answers.correct) over (partition by answers.prompt_id, answers.gold)::bigint as all_correct,
        max(answers.given) over (partition by answers.prompt_id, answers.gold) as most_given
    from answers
),

suspects as (
    select
        shares.prompt_id,
        prompts.domain,
        shares.gold,
        shares.answer as majority_answer,
        shares.given / shares.replies as agreement,
        shares.replies,
        shares.all_correct as correct
    from shares
    cross join params
    left join stg_prompts as prompts on prompts.prompt_id = shares.prompt_id
    where shares.answer is not null
        and shares.given = shares.most_given
        and shares.correct = 0
        and shares.replies >= params.min_answers
        and shares.given / shares.replies >= params.min_agreement
)

select * from suspects order by agreement desc, replies desc, prompt_id, majority_answer;
