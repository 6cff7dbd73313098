-- stg_duplicates
-- Purpose     Near-duplicate replies: how similar each reply is to earlier ones. builder select fills it for a rule
--             that reads it; empty until then.
-- Inputs      duplicates (tables/duplicates)
-- Output      one row per reply that was compared and earlier reply (by prompt_id, response_id) that is at least 0.7
--             similar: response_id, earlier_id, jaccard; a single row with nulls where there is none
-- Parameters  none
-- Source      design of the run directory; builder/dedup.py says how they are found
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "from stg_duplicates where jaccard > 0.9 limit 5"
select
    duplicates.response_id,
    unnest(coalesce(nullif(duplicates.earlier_ids, []), [null])) as earlier_id,
    unnest(coalesce(nullif(duplicates.jaccards, []), [null])) as jaccard
from duplicates;
