-- stg_pairs
-- Purpose     Preference pairs, with an id of their own.
-- Inputs      pairs (tables/pairs)
-- Output      one row per pair: pair_id (chosen_id:rejected_id) and every column of table pairs
-- Parameters  none
-- Source      our choice
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "describe stg_pairs"
select
    pairs.chosen_id || ':' || pairs.rejected_id as pair_id,
    pairs.*
from pairs;
