-- mean_delta
-- Purpose     Rank by the mean of p_teacher − p_student over sentences: surprise per sentence, whatever the length.
-- Inputs      stg_scores_of_survivors (reply_id, response_id, asked, mean_delta)
-- Output      one row per survivor: response_id, rank (1..n per prompt_id and temperature)
-- Parameters  none
-- Source      our choice, beside the max-ratio arm of arXiv:2512.20908
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/selectors/mean_delta.sql
with
scored as (select * from stg_scores_of_survivors),

ranked as (
    select
        scored.reply_id,
        scored.response_id,
        row_number() over (
            partition by scored.asked
            order by
                scored.mean_delta desc nulls last,
                scored.reply_id
        ) as rank
    from scored
)

select ranked.response_id, ranked.rank from ranked;
