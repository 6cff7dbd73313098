-- preference_pairs
-- Purpose     Rows of a reward stage: judged pairs whose gap is large enough, chosen and rejected equally long in sum.
--             While one side is longer, pairs in which it is longer leave: the largest difference that is not beyond
--             what is left first, ties by md5. In the end the sums differ by less than any pair of that side does.
-- Inputs      stg_pairs (pair_id, chosen_id, rejected_id, gap), stg_responses (response_id, completion_tokens),
--             stg_rejections (response_id)
-- Output      grain_id (a pair_id), stage; pairs with a reply that breaks a rule today, or of unknown length, are left out
-- Parameters  min_gap: votes for chosen less votes for rejected, default 1
--             equal_lengths: whether pairs leave for their lengths, default true
--             preference_stage: name of the stage, default preference
--             seed: number that decides between equal differences (generation.seed unless the recipe sets it), default 0
-- Source      arXiv:2501.12948v2 3.1: pairs with a gap above 1, lengths of chosen and rejected alike; the way is ours
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/mix/preference_pairs.sql
with recursive
params as (
    select
        coalesce(getvariable('min_gap'), 1)::double as min_gap,
        coalesce(getvariable('equal_lengths'), true)::boolean as equal_lengths,
        coalesce(getvariable('preference_stage'), 'preference')::varchar as preference_stage,
        coalesce(getvariable('seed'), 0)::bigint as seed
),

preferred as (
    select
        pairs.pair_id,
        chosen.completion_tokens - rejected.completion_tokens as difference
    from stg_pairs as pairs
    join stg_responses as chosen on chosen.response_id = pairs.chosen_id
    join stg_responses as rejected on rejected.response_id = pairs.rejected_id
    anti join stg_rejections as broken_chosen on broken_chosen.response_id = pairs.chosen_id
    anti join stg_rejections as broken_rejected on broken_rejected.response_id = pairs.rejected_id
    cross join params
    where pairs.gap >= params.min_gap
        and (chosen.completion_tokens - rejected.completion_tokens is not null or not params.equal_lengths)
),

-- tokens by which chosen replies are longer in sum; below 0 where rejected ones are
surplus as (
    select sum(preferred.difference) as tokens
    from preferred
    cross join params
    where params.equal_lengths
),

-- pairs of the longer side, the largest difference first, and the sum of differences up to each
longer as (
    select
        preferred.pair_id,
        abs(preferred.difference) as tokens,
        row_number() over by_difference as place,
        sum(abs(preferred.difference)) over by_difference as so_far
    from preferred
    cross join surplus
    cross join params
    where preferred.difference * surplus.tokens > 0
    window by_difference as (
        order by abs(preferred.difference) desc, md5(preferred.pair_id || ':' || params.seed), preferred.pair_id
        rows unbounded preceding
    )
),

-- places that leave, run by run: each run begins at the largest difference that what is left still holds and ends
-- before it would be exceeded, so each leaves less than half
leaving as (
    select 0::bigint as first_place, 0::bigint as last_place, abs(surplus.tokens) as rest
    from surplus
    union all
    select
        min(open.place) as first_place,
        max(open.place) as last_place,
        open.rest - max(open.so_far - open.before) as rest
    from (
        select
            longer.place,
            longer.so_far,
            leaving.rest,
            min(longer.so_far - longer.tokens) over () as before
        from longer
        join leaving on longer.place > leaving.last_place and longer.tokens <= leaving.rest
    ) as open
    where open.so_far - open.before <= open.rest
    group by open.rest
),

left_out as (
    select longer.pair_id
    from longer
    join leaving on longer.place between leaving.first_place and leaving.last_place
)

select
    preferred.pair_id as grain_id,
    params.preference_stage as stage
from preferred
anti join left_out using (pair_id)
cross join params
order by preferred.pair_id;
