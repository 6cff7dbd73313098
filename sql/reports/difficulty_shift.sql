-- difficulty_shift
-- Purpose     How far the selection leans to easy prompts: pass rates of all prompts against those that were kept.
--             Dropping wrong answers alone leaves what the teacher solves anyway.
-- Inputs      stg_responses (response_id, prompt_id, role, sample_index), stg_verdicts (response_id, verdict, decides),
--             stg_selection (kind, grain_id)
-- Output      from_rate and to_rate (as in pass_rate; null = all prompts with a rate, first row), prompts, kept_prompts
--             (with a row in an sft stage), kept_rows (their rows), the share that each is of all, and for all prompts
--             the mean pass rate of prompts, of kept prompts and of kept rows (a prompt counts once a row), and reading
-- Parameters  first_samples: only replies with a smaller sample_index count, default 1000000
-- Source      github.com/open-thoughts/open-thoughts issue 21: only easy prompts stay; generation.until_correct and a
--             small selection.keep work against it. first_samples counts for the rates, not for what was kept
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/reports/difficulty_shift.sql
with
params as (
    select coalesce(getvariable('first_samples'), 1000000)::bigint as first_samples
),

rated as (
    select
        responses.prompt_id,
        count(*) filter (where verdicts.verdict = 'correct') as correct,
        count(*) as judged
    from stg_responses as responses
    join params on responses.sample_index < params.first_samples
    join stg_verdicts as verdicts on verdicts.response_id = responses.response_id and verdicts.decides
    where responses.role = 'teacher' and verdicts.verdict in ('correct', 'wrong')
    group by responses.prompt_id
),

kept as (
    select
        responses.prompt_id,
        count(*) as kept_rows
    from (select distinct grain_id from stg_selection where kind = 'sft') as selected
    join stg_responses as responses on responses.response_id = selected.grain_id
    group by responses.prompt_id
),

prompts as (
    select
        rated.correct / rated.judged as rate,
        case
            when rated.correct = 0 then 0
            when rated.correct = rated.judged then 11
            else rated.correct * 10 // rated.judged + 1
        end as bin,
        coalesce(kept.kept_rows, 0) as kept_rows
    from rated
    left join kept on kept.prompt_id = rated.prompt_id
),

counted as (
    select
        prompts.bin,
        count(*) as prompts,
        count(*) filter (where prompts.kept_rows > 0) as kept_prompts,
        sum(prompts.kept_rows)::bigint as kept_rows,
        avg(prompts.rate) as mean_rate,
        avg(prompts.rate) filter (where prompts.kept_rows > 0) as kept_prompt_mean,
        sum(prompts.rate * prompts.kept_rows) / nullif(sum(prompts.kept_rows), 0) as kept_row_mean
    from prompts
    group by grouping sets ((), (prompts.bin))
    having count(*) > 0
),

whole as (select * from counted where bin is null),

shift as (
    select
        case when counted.bin = 11 then 1 else greatest(counted.bin - 1, 0 * counted.bin) / 10 end as from_rate,
        case when counted.bin = 11 then 1 else counted.bin / 10 end as to_rate,
        counted.prompts,
        counted.kept_prompts,
        counted.kept_rows,
        counted.prompts / whole.prompts as share,
        counted.kept_prompts / nullif(whole.kept_prompts, 0) as kept_prompt_share,
        counted.kept_rows / nullif(whole.kept_rows, 0) as kept_row_share,
        case when counted.bin is null then counted.mean_rate end as mean_rate,
        case when counted.bin is null then counted.kept_prompt_mean end as kept_prompt_mean,
        case when counted.bin is null then counted.kept_row_mean end as kept_row_mean,
        case
            when counted.bin is not null then null
            when counted.kept_rows = 0 then 'nothing of these prompts is kept'
            else 'mean pass rate ' || format('{:.2f}', counted.mean_rate) || ' of prompts, '
                || format('{:.2f}', counted.kept_prompt_mean) || ' of those kept, '
                || format('{:.2f}', counted.kept_row_mean) || ' of kept rows'
        end as reading
    from counted
    cross join whole
)

select * from shift order by from_rate nulls first, to_rate nulls first;
