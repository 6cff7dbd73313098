-- teacher_sentence_count
-- Purpose     Rank by teacher sentences: those that the teacher finds likelier than the student does, by a margin.
-- Inputs      survivors, stg_scores (response_id, status, teacher_counts, student_counts, mean_delta)
-- Output      one row per survivor: response_id, rank (1..n per prompt_id and temperature)
-- Parameters  teacher_margin: probability by which the teacher must be surer, one of 0.05, 0.10 … 0.50, default 0.1
-- Source      arXiv:2601.09088 p.9 and the rule of arXiv:2512.20908 (largest count); ties are our choice
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/selectors/teacher_sentence_count.sql
with
params as (
    select coalesce(getvariable('teacher_margin'), 0.1)::double as teacher_margin
),

-- scores hold exact counts at ten margins; any other one would need the sentences again
margin as (
    select
        case
            when abs(teacher_margin * 20 - round(teacher_margin * 20)) < 1e-6
                and round(teacher_margin * 20) between 1 and 10
                then round(teacher_margin * 20)::integer
            else error('teacher_margin ' || teacher_margin || ' has no counts; margins are 0.05, 0.10, 0.15 … 0.50')
        end as slot
    from params
),

scored as (
    select
        survivors.response_id,
        survivors.prompt_id,
        survivors.temperature,
        scores.teacher_counts[margin.slot] as teacher_sentences,
        scores.student_counts[margin.slot] as student_sentences,
        scores.mean_delta
    from survivors
    cross join margin
    left join stg_scores as scores on scores.response_id = survivors.response_id and scores.status = 'ok'
),

ranked as (
    select
        scored.response_id,
        row_number() over (
            partition by scored.prompt_id, scored.temperature
            order by
                scored.teacher_sentences desc nulls last,
                scored.mean_delta desc nulls last,
                scored.student_sentences asc nulls last,
                scored.response_id
        ) as rank
    from scored
)

select * from ranked;
