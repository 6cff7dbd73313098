-- random
-- Purpose     Rank by chance, the same chance every time: the control that a selector has to beat.
-- Inputs      stg_scores_of_survivors (reply_id, response_id, asked)
-- Output      one row per survivor: response_id, rank (1..n per prompt_id and temperature)
-- Parameters  seed: number that fixes the shuffle (generation.seed unless the recipe sets it), default 0
-- Source      the random-sampling arm of arXiv:2601.09088 p.10
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/selectors/random.sql
with
params as (
    select coalesce(getvariable('seed'), 0)::bigint as seed
),

scored as (
    select
        survivors.reply_id,
        survivors.response_id,
        survivors.asked,
        md5(survivors.response_id || ':' || params.seed) as chance
    from stg_scores_of_survivors as survivors
    cross join params
),

ranked as (
    select
        scored.reply_id,
        scored.response_id,
        row_number() over (
            partition by scored.asked
            order by
                scored.chance,
                scored.reply_id
        ) as rank
    from scored
)

select ranked.response_id, ranked.rank from ranked;
