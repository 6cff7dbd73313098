-- stg_responses
-- Purpose     Every reply with its texts; without what differs between two runs that decide the same.
-- Inputs      responses (tables/responses)
-- Output      one row per reply: every column of table responses but latency, cost and time
-- Parameters  none
-- Source      design of the run directory; builder/schema.py says what each column means
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "describe stg_responses"
select * exclude (latency_s, cost_usd, received_at) from responses;
