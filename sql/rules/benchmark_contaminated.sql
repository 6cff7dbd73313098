-- benchmark_contaminated
-- Purpose     Drop replies to prompts that share a run of words, or the whole question, with a benchmark: one of the
--             recipe's decontamination.benchmarks. What a model was trained on, it must not be tested on.
-- Inputs      stg_contaminations (prompt_id, shared_words, row_share, is_whole; benchmark, revision, benchmark_row and
--             shared_text are the evidence), stg_prompts (prompt_id), stg_responses (response_id, prompt_id)
-- Output      one row per violating response: response_id, observed (words of the longest shared run; fewer than the
--             threshold where the whole question is that short), threshold
-- Parameters  ngram_words: length of a shared run that contaminates, words; presets 8 and 13; not below 8, default 10
--             min_row_share: share of the benchmark row that the run covers, at least; 0.5 spares phrases, default 0.0
-- Source      10: DeepSeek-R1, arXiv:2501.12948; 8: open-r1, s1 (arXiv:2501.19393); 13: GPT-3, arXiv:2005.14165
--             measured: 4,500 MATH test questions against MMLU STEM and AQuA: 8 flags 241, 10: 120, 13: 66. All 65 runs
--             of 10 words that cover half of a row are copies; of 19 others read, most are phrases such as "cards are
--             chosen at random from a standard 52 card deck what is the probability"; 13 misses 8 short copies
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/benchmark_contaminated.sql
with
params as (
    select
        coalesce(getvariable('ngram_words'), 10)::integer as ngram_words,
        coalesce(getvariable('min_row_share'), 0.0)::double as min_row_share
),

contaminated as (
    select
        contaminations.prompt_id,
        max(contaminations.shared_words) as shared_words
    from stg_contaminations as contaminations
    cross join params
    where contaminations.is_whole
        or (contaminations.shared_words >= params.ngram_words and contaminations.row_share >= params.min_row_share)
    group by contaminations.prompt_id
),

violations as (
    select
        responses.response_id,
        contaminated.shared_words::double as observed,
        params.ngram_words::double as threshold
    from stg_responses as responses
    join contaminated using (prompt_id)
    cross join params
),

refusals as (
    select error('ngram_words is ' || params.ngram_words || ', but shared runs below 8 words are not kept')
        as response_id
    from params
    where params.ngram_words < 8 or params.ngram_words is null
    union all
    select error('no prompt was compared with a benchmark yet, so none would break this rule; builder select does it')
    where exists (from stg_prompts) and not exists (from stg_contaminations)
)

select * from violations
union all
select refusals.response_id::varchar, null, null from refusals;
