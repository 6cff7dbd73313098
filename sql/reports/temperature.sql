-- temperature
-- Purpose     How sure the teacher is of its own replies at each temperature, and whether two temperatures nearly
--             coincide: then the hotter one buys little that the colder one has not got.
-- Inputs      stg_sentences (response_id, teacher_tokens, p_teacher), stg_responses (response_id, role, temperature),
--             stg_selection (kind, grain_id)
-- Output      temperature, replies, without_value (no sentence lists: not scored), median, histogram (replies with a
--             response probability of 0 … 0.05, 0.05 … 0.1, … 0.95 … 1), histogram_kept (of them in a stage),
--             next_temperature, overlap, reading
-- Parameters  near_overlap: overlap of two histograms from which they nearly coincide, default 0.8
--             min_replies: replies that a temperature needs before it is compared, default 200
-- Source      response probability: exp(mean token logprob), arXiv:2601.09088 p.6 Fig. 3 (gpt-oss-120b, read off the
--             plot: mass near 0.77 at 0.6, near 0.57 at 1.0) and p.7 (Qwen3-Next-80B-A3B-Thinking: nearly coincide).
--             Overlap = sum over bins of the smaller share, 1 for equal histograms, 0 for disjoint ones; 0.8 is our
--             choice: two bells half a standard deviation apart (one apart: 0.6; 0.77 and 0.57 at a width of 0.1: 0.3).
--             A difference of medians would need the width beside it. Two draws from one bell of width 0.1 fall below
--             0.8 by chance in 15% of trials with 100 replies each, in 0.3% with 200.
--             10,000 replies of 200 sentences take 0.1 s on 2 cores
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/reports/temperature.sql
with
params as (
    select
        coalesce(getvariable('near_overlap'), 0.8)::double as near_overlap,
        coalesce(getvariable('min_replies'), 200)::bigint as min_replies
),

sentence as (
    select
        sentences.response_id,
        unnest(sentences.teacher_tokens) as tokens,
        unnest(sentences.p_teacher)::double as probability
    from stg_sentences as sentences
),

-- the mean over all content tokens from the means of sentences; a list holds 0 for what float32 cannot hold
probabilities as (
    select
        sentence.response_id,
        exp(sum(sentence.tokens * ln(greatest(sentence.probability, 1e-45))) / sum(sentence.tokens)) as probability
    from sentence
    where sentence.tokens > 0
    group by sentence.response_id
),

kept as (select distinct grain_id as response_id from stg_selection where kind = 'sft'),

replies as (
    select
        responses.temperature,
        probabilities.probability,
        -- least() would make 19 of a missing value
        case
            when probabilities.probability is not null then least(floor(probabilities.probability * 20), 19)::integer
        end as bin,
        kept.response_id is not null as is_kept
    from stg_responses as responses
    left join probabilities on probabilities.response_id = responses.response_id
    left join kept on kept.response_id = responses.response_id
    where responses.role = 'teacher'
),

totals as (
    select
        replies.temperature,
        count(replies.probability) as replies,
        count(*) - count(replies.probability) as without_value,
        median(replies.probability) as median
    from replies
    group by replies.temperature
),

counted as (
    select
        replies.temperature,
        replies.bin,
        count(*) as replies,
        count(*) filter (where replies.is_kept) as kept
    from replies
    where replies.bin is not null
    group by replies.temperature, replies.bin
),

bins as (
    select
        totals.temperature,
        places.bin,
        coalesce(counted.replies, 0) as replies,
        coalesce(counted.kept, 0) as kept,
        coalesce(counted.replies, 0) / nullif(totals.replies, 0) as share
    from totals
    cross join range(20) as places(bin)
    left join counted on counted.temperature = totals.temperature and counted.bin = places.bin
),

histograms as (
    select
        bins.temperature,
        list(bins.replies order by bins.bin) as histogram,
        list(bins.kept order by bins.bin) as histogram_kept
    from bins
    group by bins.temperature
),

neighbours as (
    select
        totals.*,
        lead(totals.temperature) over (order by totals.temperature) as next_temperature,
        lead(totals.replies) over (order by totals.temperature) as next_replies,
        lead(totals.median) over (order by totals.temperature) as next_median
    from totals
),

compared as (
    select
        neighbours.temperature,
        sum(least(here.share, there.share)) as overlap
    from neighbours
    join bins as here on here.temperature = neighbours.temperature
    join bins as there on there.temperature = neighbours.next_temperature and there.bin = here.bin
    where neighbours.replies > 0 and neighbours.next_replies > 0
    group by neighbours.temperature
),

readings as (
    select
        neighbours.temperature,
        neighbours.replies,
        neighbours.without_value,
        neighbours.median,
        histograms.histogram,
        histograms.histogram_kept,
        neighbours.next_temperature,
        compared.overlap,
        case
            when neighbours.next_temperature is null then null
            when least(neighbours.replies, neighbours.next_replies) < params.min_replies
                then 'too few replies to compare with ' || neighbours.next_temperature || ': '
                    || least(neighbours.replies, neighbours.next_replies) || ' where ' || params.min_replies
                    || ' are needed'
            when compared.overlap >= params.near_overlap
                then 'nearly coincides with ' || neighbours.next_temperature || ' (overlap '
                    || format('{:.2f}', compared.overlap) || '): the second temperature buys little'
            else 'differs from ' || neighbours.next_temperature || ' (overlap ' || format('{:.2f}', compared.overlap)
                || ', medians ' || format('{:.2f}', neighbours.median) || ' and '
                || format('{:.2f}', neighbours.next_median) || ')'
        end as reading
    from neighbours
    cross join params
    join histograms on histograms.temperature = neighbours.temperature
    left join compared on compared.temperature = neighbours.temperature
)

select * from readings order by temperature;
