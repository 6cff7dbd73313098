-- channel_markers_left
-- Purpose     Drop replies that still hold harmony markers such as <|channel|> inside thinking or answer.
-- Inputs      stg_features (response_id, channel_markers)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  none
-- Source      arXiv:2601.09088 p.12: markers are replaced by think tags; github.com/openai/harmony docs/format.md
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/channel_markers_left.sql
with
features as (select * from stg_features),

violations as (
    select
        features.response_id,
        features.channel_markers::double as observed,
        0::double as threshold
    from features
    where features.channel_markers > 0
)

select * from violations;
