-- overlap: of the rows that an arm of a whole stage keeps, the share that arm `count` keeps as well.
-- Run in the folder that run.py left: cd proof && duckdb -f ../tests/proof/overlap.sql
with
kept as (
    select
        regexp_extract(
            filename, '([a-z0-9]+)-(\d+)/runs/[^/]+/releases/[^/]+/data/([^/]+)/', ['task', 'seed', 'arm']
        ) as place,
        response_id
    from read_parquet('*-*/runs/*/releases/*/data/*/train-*.parquet', filename = true, union_by_name = true)
),

-- the same config stands in every release after the one that made it
rows as (select distinct place.task as task, place.seed as seed, place.arm as arm, response_id from kept),

counted as (
    select * from rows
    where arm not like '%-tokens' and (arm like 'count%' or arm in ('random', 'longest', 'length-matched'))
),

reference as (select task, seed, response_id from counted where arm = 'count')

select
    counted.task,
    counted.arm,
    count(reference.response_id) / count(*) as share
from counted
left join reference using (task, seed, response_id)
group by counted.task, counted.arm
order by counted.task, counted.arm;
