-- pass_rate
-- Purpose     How often the teacher is right: prompts by pass rate, in all and by domain and temperature. Never solved
--             prompts give nothing to fine-tune on; always or never solved ones give GRPO no gradient.
-- Inputs      stg_responses (response_id, prompt_id, role, temperature, sample_index), stg_verdicts (response_id,
--             verdict, decides), stg_prompts (prompt_id, domain)
-- Output      domain, temperature (null = all of them: then a prompt counts once, with all its replies), from_rate and
--             to_rate, prompts, share (of the prompts with a rate), and replies that are correct, wrong, unscorable (a
--             verdict that says neither) and unjudged (no verdict). Rates 0 and 1 are rows of their own, from_rate =
--             to_rate; between them a row has from_rate ≤ rate < to_rate, the first 0 < rate. Null rates: prompts
--             without a correct or wrong reply
-- Parameters  first_samples: only replies with a smaller sample_index count, default 1000000
-- Source      our choice of bins. generation.until_correct stops at a correct reply, which lifts the rate of what it
--             asks: first_samples = generation.samples counts what was asked of every prompt alike
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/reports/pass_rate.sql
with
params as (
    select coalesce(getvariable('first_samples'), 1000000)::bigint as first_samples
),

replies as (
    select
        responses.prompt_id,
        responses.temperature,
        coalesce(prompts.domain, 'unknown') as domain,
        verdicts.verdict
    from stg_responses as responses
    join params on responses.sample_index < params.first_samples
    left join stg_prompts as prompts on prompts.prompt_id = responses.prompt_id
    left join stg_verdicts as verdicts on verdicts.response_id = responses.response_id and verdicts.decides
    where responses.role = 'teacher'
),

rated as (
    select
        replies.prompt_id,
        case when grouping(replies.temperature) = 0 then replies.domain end as domain,
        replies.temperature,
        count(*) filter (where replies.verdict = 'correct') as correct,
        count(*) filter (where replies.verdict = 'wrong') as wrong,
        count(*) filter (where replies.verdict not in ('correct', 'wrong')) as unscorable,
        count(*) filter (where replies.verdict is null) as unjudged
    from replies
    group by grouping sets (
        (replies.prompt_id, replies.domain), (replies.prompt_id, replies.domain, replies.temperature)
    )
),

-- whole numbers, so that no rate falls beside its bin: 0 is never, 11 always, between them a tenth each
binned as (
    select
        rated.*,
        case
            when rated.correct + rated.wrong = 0 then null
            when rated.correct = 0 then 0
            when rated.wrong = 0 then 11
            else rated.correct * 10 // (rated.correct + rated.wrong) + 1
        end as bin
    from rated
),

pass_rates as (
    select
        binned.domain,
        binned.temperature,
        case when binned.bin = 11 then 1 else greatest(binned.bin - 1, 0 * binned.bin) / 10 end as from_rate,
        case when binned.bin = 11 then 1 else binned.bin / 10 end as to_rate,
        count(*) as prompts,
        case
            when binned.bin is not null
                then count(*) / sum(count(*)) filter (where binned.bin is not null) over (
                    partition by binned.domain, binned.temperature
                )
        end as share,
        sum(binned.correct)::bigint as correct,
        sum(binned.wrong)::bigint as wrong,
        sum(binned.unscorable)::bigint as unscorable,
        sum(binned.unjudged)::bigint as unjudged
    from binned
    group by binned.domain, binned.temperature, binned.bin
)

select * from pass_rates
order by domain nulls first, temperature nulls first, from_rate nulls last, to_rate;
