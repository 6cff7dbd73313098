-- code_block_in_math
-- Purpose     Drop replies to mathematics and logic that think in fenced code: in the thinking part or, where there is
--             none, in the answer.
-- Inputs      stg_responses (response_id, prompt_id), stg_prompts (prompt_id, domain),
--             stg_features (response_id, code_fences)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  none
-- Source      arXiv:2501.12948 section 2.3.3: chains of thought with code blocks are dropped; domains are ours
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/code_block_in_math.sql
with
responses as (select * from stg_responses),

prompts as (select * from stg_prompts where domain in ('math', 'logic')),

features as (select * from stg_features),

violations as (
    select
        features.response_id,
        features.code_fences::double as observed,
        0::double as threshold
    from features
    join responses on responses.response_id = features.response_id
    join prompts on prompts.prompt_id = responses.prompt_id
    where features.code_fences > 0
)

select * from violations;
