-- sample_beyond
-- Purpose     Drop samples beyond the first so many of a question and temperature: the same run with fewer samples.
-- Inputs      stg_responses (response_id, sample_index)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  most_samples: replies a question and temperature, default 4
-- Source      our choice
-- Try it      duckdb runs/words/run.duckdb -readonly -f sample_beyond.sql
with
params as (
    select coalesce(getvariable('most_samples'), 4)::double as most_samples
)

select
    responses.response_id,
    responses.sample_index + 1 as observed,
    params.most_samples as threshold
from stg_responses as responses
cross join params
where responses.sample_index >= params.most_samples;
