-- response_near_duplicate
-- Purpose     Drop replies that are nearly an earlier reply to the same prompt, which teaches nothing more; the first
--             by response_id stays, whatever else it breaks. Each role by itself.
-- Inputs      stg_duplicates (response_id, earlier_id, jaccard), stg_responses (response_id, prompt_id, role)
-- Output      one row per violating response: response_id, observed (similarity to the most similar earlier reply),
--             threshold
-- Parameters  min_jaccard: shared / all word 5-grams of near-duplicates, at least; not below 0.7, default 0.8
--             across_prompts: whether replies to different prompts are compared too, default false
-- Source      MinHash with verified Jaccard similarity, builder/dedup.py; the threshold is ours
--             measured: breaks 2,193 of 15,938 sample replies: 239 of 760 to 95 MATH questions of eight samples or so
--             each, 1,951 of 10,000 short ones
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/response_near_duplicate.sql
with
params as (
    select
        coalesce(getvariable('min_jaccard'), 0.8)::double as min_jaccard,
        coalesce(getvariable('across_prompts'), false)::boolean as across_prompts
),

violations as (
    select
        duplicates.response_id,
        max(duplicates.jaccard) as observed,
        max(params.min_jaccard) as threshold
    from stg_duplicates as duplicates
    join stg_responses as responses using (response_id)
    join stg_responses as earlier on earlier.response_id = duplicates.earlier_id and earlier.role = responses.role
    cross join params
    where duplicates.jaccard >= params.min_jaccard
        and (params.across_prompts or earlier.prompt_id = responses.prompt_id)
    group by duplicates.response_id
),

refusals as (
    select error('min_jaccard is ' || params.min_jaccard || ', but similarities below 0.7 are not kept') as response_id
    from params
    where params.min_jaccard < 0.7 or params.min_jaccard is null
    union all
    select error('no reply was compared yet, so none would break this rule; builder select compares them')
    where exists (from stg_responses where role in ('teacher', 'mixed', 'rewrite'))
        and not exists (from stg_duplicates)
)

select * from violations
union all
select refusals.response_id::varchar, null, null from refusals;
