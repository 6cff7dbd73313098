-- longest
-- Purpose     Rank by length: the control that shows how much of a count is length.
-- Inputs      stg_scores_of_survivors (reply_id, response_id, asked, completion_tokens)
-- Output      one row per survivor: response_id, rank (1..n per prompt_id and temperature)
-- Parameters  none
-- Source      the longest-response arm of arXiv:2512.20908
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/selectors/longest.sql
with
scored as (select * from stg_scores_of_survivors),

ranked as (
    select
        scored.reply_id,
        scored.response_id,
        row_number() over (
            partition by scored.asked
            order by
                scored.completion_tokens desc nulls last,
                scored.reply_id
        ) as rank
    from scored
)

select ranked.response_id, ranked.rank from ranked;
