-- response_duplicate
-- Purpose     Drop replies that say what an earlier reply to the same prompt says, word for word; the first by
--             response_id stays, whatever else it breaks. Case and white space do not count. Each role by itself:
--             mixed-policy rows go into a stage of their own. Replies without text break reasoning_missing and
--             answer_missing, not this.
-- Inputs      stg_features (response_id, text_hash, reasoning_chars, answer_chars), stg_responses (response_id,
--             prompt_id, role)
-- Output      one row per violating response: response_id, observed (replies with this text), threshold (1)
-- Parameters  across_prompts: whether replies to different prompts are compared too, default false
-- Source      our choice; "The answer is 4." may well answer two questions, so prompts are apart by default
--             measured: breaks 1,873 of 15,938 sample replies (1,792 of 10,000 short ones), 2,802 across prompts
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/response_duplicate.sql
with
params as (
    select coalesce(getvariable('across_prompts'), false)::boolean as across_prompts
),

texts as (
    select
        responses.response_id,
        responses.prompt_id,
        responses.role,
        features.text_hash,
        if(params.across_prompts, '', responses.prompt_id) as compared_within
    from stg_features as features
    join stg_responses as responses using (response_id)
    cross join params
    where features.reasoning_chars + features.answer_chars > 0
),

numbered as (
    select
        texts.response_id,
        count(*) over (partition by texts.compared_within, texts.role, texts.text_hash) as copies,
        row_number() over (
            partition by texts.compared_within, texts.role, texts.text_hash
            order by texts.prompt_id, texts.response_id
        ) as place
    from texts
),

violations as (
    select
        numbered.response_id,
        numbered.copies::double as observed,
        1::double as threshold
    from numbered
    where numbered.place > 1
)

select * from violations;
