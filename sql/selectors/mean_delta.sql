-- mean_delta
-- Purpose     Rank by the mean of p_teacher − p_student over sentences: surprise per sentence, whatever the length.
-- Inputs      survivors, stg_scores (response_id, status, mean_delta)
-- Output      one row per survivor: response_id, rank (1..n per prompt_id and temperature)
-- Parameters  none
-- Source      our choice, beside the max-ratio arm of arXiv:2512.20908
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/selectors/mean_delta.sql
with
ranked as (
    select
        survivors.response_id,
        row_number() over (
            partition by survivors.prompt_id, survivors.temperature
            order by scores.mean_delta desc nulls last, survivors.response_id
        ) as rank
    from survivors
    left join stg_scores as scores on scores.response_id = survivors.response_id and scores.status = 'ok'
)

select * from ranked;
