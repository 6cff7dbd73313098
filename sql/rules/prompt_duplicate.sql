-- prompt_duplicate
-- Purpose     Drop replies to a prompt that repeats another; the first by prompt_id, of those with replies, stays.
--             Alike are prompts whose messages differ only in case, white space, and punctuation at the end of words.
--             Signs inside words, brackets and operators count: 3 + 4, 3 - 4 and 3.4 are three questions.
-- Inputs      stg_prompts (prompt_id, messages), stg_responses (response_id, prompt_id)
-- Output      one row per violating response: response_id, observed (prompts with this text), threshold (1)
-- Parameters  none
-- Source      our choice; arXiv:2601.09088 publishes no deduplication
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/prompt_duplicate.sql
with
prompts as (
    select
        stg_prompts.prompt_id,
        list_transform(stg_prompts.messages, lambda message: message.role) as roles,
        lower(nfc_normalize(array_to_string(
            list_transform(stg_prompts.messages, lambda message: message.content), e' \n'
        ))) as content
    from stg_prompts
    semi join stg_responses using (prompt_id)
),

folded as (
    select
        prompts.prompt_id,
        prompts.roles,
        trim(regexp_replace(
            regexp_replace(prompts.content || ' ', '[.,;:?"''…“”‘’]+[\s\p{Z}]|[。，、；：？「」]', ' ', 'g'),
            '[\s\p{Z}]+', ' ', 'g'
        )) as content
    from prompts
),

numbered as (
    select
        folded.prompt_id,
        count(*) over (partition by folded.roles, folded.content) as copies,
        row_number() over (partition by folded.roles, folded.content order by folded.prompt_id) as place
    from folded
    where folded.content <> ''
),

violations as (
    select
        responses.response_id,
        numbered.copies::double as observed,
        1::double as threshold
    from stg_responses as responses
    join numbered using (prompt_id)
    where numbered.place > 1
)

select * from violations;
