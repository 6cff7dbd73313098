-- fewest_teacher_sentences
-- Purpose     Rank by teacher sentences, the fewest first: the control that a count must beat. Ties as in
--             teacher_sentence_count, so that the two differ by the count alone.
-- Inputs      stg_scores_of_survivors (reply_id, response_id, asked, teacher_counts, student_counts, mean_delta),
--             stg_sentences_of_survivors (reply_id, delta)
-- Output      one row per survivor: response_id, rank (1..n per prompt_id and temperature)
-- Parameters  teacher_margin: probability by which the teacher must be surer; fastest at 0.05, 0.10 … 0.50, default 0.1
-- Source      the min-count arm of arXiv:2512.20908
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/selectors/fewest_teacher_sentences.sql
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
recounted as (
    select
        sentences.reply_id,
        count(*) filter (where sentences.delta > margin.teacher_margin) as teacher_sentences,
        count(*) filter (where -sentences.delta > margin.teacher_margin) as student_sentences
    from stg_sentences_of_survivors as sentences
    join margin on margin.slot is null
    group by sentences.reply_id
),

scored as (
    select
        survivors.reply_id,
        survivors.response_id,
        survivors.asked,
        case
            when survivors.teacher_counts is not null and margin.slot is null and recounted.reply_id is null
                then error(survivors.response_id || ' has a score but no row in stg_sentences; delete tables/scores '
                    || 'and rerun builder score, or take one of the margins 0.05, 0.10 … 0.50')
            else coalesce(recounted.teacher_sentences, survivors.teacher_counts[margin.slot])
        end as teacher_sentences,
        coalesce(recounted.student_sentences, survivors.student_counts[margin.slot]) as student_sentences,
        survivors.mean_delta
    from stg_scores_of_survivors as survivors
    cross join margin
    left join recounted on recounted.reply_id = survivors.reply_id
),

ranked as (
    select
        scored.reply_id,
        scored.response_id,
        row_number() over (
            partition by scored.asked
            order by
                scored.teacher_sentences asc nulls last,
                scored.mean_delta desc nulls last,
                scored.student_sentences asc nulls last,
                scored.reply_id
        ) as rank
    from scored
)

select ranked.response_id, ranked.rank from ranked;
