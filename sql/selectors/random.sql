-- random
-- Purpose     Rank by chance, the same chance every time: the control that a selector has to beat.
-- Inputs      survivors
-- Output      one row per survivor: response_id, rank (1..n per prompt_id and temperature)
-- Parameters  seed: number that fixes the shuffle (generation.seed unless the recipe sets it), default 0
-- Source      the random-sampling arm of arXiv:2601.09088 p.10
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/selectors/random.sql
with
params as (
    select coalesce(getvariable('seed'), 0)::bigint as seed
),

ranked as (
    select
        survivors.response_id,
        row_number() over (
            partition by survivors.prompt_id, survivors.temperature
            order by md5(survivors.response_id || ':' || params.seed), survivors.response_id
        ) as rank
    from survivors
    cross join params
)

select * from ranked;
