-- teacher_share
-- Purpose     Rank by the share of teacher sentences among those that are counted: divergence whatever the length.
-- Inputs      survivors, stg_sentences, and stg_scores (response_id, status, sentence_count, short_sentences,
--             teacher_counts, student_counts, mean_delta)
-- Output      one row per survivor: response_id, rank (1..n per prompt_id and temperature)
-- Parameters  teacher_margin: probability by which the teacher must be surer; fastest at 0.05, 0.10 … 0.50, default 0.1
-- Source      the max-ratio arm of arXiv:2512.20908; ties are our choice
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/selectors/teacher_share.sql
with
params as (
    select coalesce(getvariable('teacher_margin'), 0.1)::double as teacher_margin
),

-- scores hold exact counts at ten margins: slot is the place of this one among them, null at any other
margin as (
    select
        case
            when teacher_margin >= 0 and teacher_margin < 1 then teacher_margin
            else error('teacher_margin is ' || teacher_margin || ', but it is a difference of probabilities: 0 … 1')
        end as teacher_margin,
        case
            when abs(teacher_margin * 20 - round(teacher_margin * 20)) < 1e-6
                and round(teacher_margin * 20) between 1 and 10
                then round(teacher_margin * 20)::integer
        end as slot
    from params
),

-- no row where scores have the counts: then no list is read
sentence as (
    select
        sentences.response_id,
        margin.teacher_margin,
        unnest(sentences.p_teacher)::double - unnest(sentences.p_student)::double as delta,
        least(unnest(sentences.teacher_tokens), unnest(sentences.student_tokens)) >= 3 as is_counted
    from stg_sentences as sentences
    join margin on margin.slot is null
),

recounted as (
    select
        sentence.response_id,
        count(*) filter (where sentence.is_counted and sentence.delta > sentence.teacher_margin) as teacher_sentences,
        count(*) filter (where sentence.is_counted and -sentence.delta > sentence.teacher_margin) as student_sentences
    from sentence
    group by sentence.response_id
),

-- what scores hold at this margin, taken before the join, which would carry the lists along
counted as (
    select
        scores.response_id,
        scores.teacher_counts[margin.slot] as teacher_sentences,
        scores.student_counts[margin.slot] as student_sentences,
        scores.sentence_count - scores.short_sentences as counted_sentences,
        scores.mean_delta
    from stg_scores as scores
    cross join margin
    where scores.status = 'ok'
),

scored as (
    select
        survivors.response_id,
        survivors.prompt_id,
        survivors.temperature,
        counted.counted_sentences,
        case
            when counted.response_id is not null and margin.slot is null and recounted.response_id is null
                then error(counted.response_id || ' has a score but no row in stg_sentences; delete tables/scores and '
                    || 'rerun builder score, or take one of the margins 0.05, 0.10 … 0.50')
            else coalesce(recounted.teacher_sentences, counted.teacher_sentences)
        end as teacher_sentences,
        coalesce(recounted.student_sentences, counted.student_sentences) as student_sentences,
        counted.mean_delta
    from survivors
    cross join margin
    left join counted on counted.response_id = survivors.response_id
    left join recounted on recounted.response_id = counted.response_id
),

-- a reply without a counted sentence has no share, and stands behind those that have one
ranked as (
    select
        scored.response_id,
        row_number() over (
            partition by scored.prompt_id, scored.temperature
            order by
                scored.teacher_sentences / nullif(scored.counted_sentences, 0) desc nulls last,
                scored.mean_delta desc nulls last,
                scored.student_sentences asc nulls last,
                scored.response_id
        ) as rank
    from scored
)

select * from ranked;
