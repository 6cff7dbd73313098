-- verdicts: one row a task, seed, arm and held-out question, from the tables of the evaluations alone.
-- Run in the folder that run.py left: cd proof && duckdb -f ../tests/proof/verdicts.sql
with
replies as (
    select
        regexp_extract(
            filename, '([a-z0-9]+)-(\d+)/runs/[^/]+/eval/(.+)-[0-9a-f]{8}/', ['task', 'seed', 'arm']
        ) as place,
        regexp_extract(filename, '(.+)/tables/', 1) as folder,
        response_id,
        prompt_id,
        completion_tokens
    from read_parquet('*-*/runs/*/eval/*/tables/responses/*.parquet', filename = true, union_by_name = true)
),

judged as (
    select
        regexp_extract(filename, '(.+)/tables/', 1) as folder,
        response_id,
        verdict,
        verifier
    from read_parquet('*-*/runs/*/eval/*/tables/verdicts/*.parquet', filename = true, union_by_name = true)
)

select
    replies.place.task as task,
    replies.place.seed::integer as seed,
    replies.place.arm as arm,
    judged.verifier,
    replies.prompt_id,
    judged.verdict = 'correct' as correct,
    replies.completion_tokens
from replies
join judged using (folder, response_id)
order by task, arm, verifier, seed, prompt_id;
