-- stg_contaminations
-- Purpose     What prompts share with benchmarks. builder select fills it for a rule that reads it; empty until then.
-- Inputs      contaminations (tables/contaminations)
-- Output      one row per prompt that was compared and row of a benchmark that is close to it, by length or by share of
--             the run of words that both share: prompt_id, benchmark, revision, benchmark_row (from 1),
--             benchmark_column, shared_words (length of the run), row_share (that / words of the row), is_whole (the
--             same question), shared_text (the run); a single row with nulls where no run has 8 words
-- Parameters  none
-- Source      design of the run directory; builder/decontaminate.py says what a word is
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "from stg_contaminations order by shared_words desc limit 5"
select
    contaminations.prompt_id,
    unnest(coalesce(nullif(contaminations.matches, []), [null]), recursive := true)
from contaminations;
