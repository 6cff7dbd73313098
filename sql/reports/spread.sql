-- spread
-- Purpose     How many prompts a selector decided: candidates that differ in what it ranks by. Where all of them tie,
--             the tie-break chose; where there is one, nothing was chosen.
-- Inputs      survivors, stg_responses (response_id, prompt_id, temperature, role, completion_tokens), stg_sentences,
--             and stg_scores as in teacher_share
-- Output      ranked_by, temperature (null = all), prompts; of them none (no candidate left), single, tied, spread.
--             Under null a prompt counts once, at its best temperature; tied and spread are null for other selectors
-- Parameters  teacher_margin: probability by which the teacher must be surer; fastest at 0.05, 0.10 … 0.50, default 0.1
--             ranked_by: name of a packaged selector (length_matched: its count), default teacher_sentence_count
-- Source      our choice: a prompt without spread says nothing about a selector
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/reports/spread.sql
with
params as (
    select
        coalesce(getvariable('teacher_margin'), 0.1)::double as teacher_margin,
        coalesce(getvariable('ranked_by'), 'teacher_sentence_count')::varchar as ranked_by
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

scored as (
    select
        survivors.response_id,
        survivors.prompt_id,
        survivors.temperature,
        params.ranked_by,
        responses.completion_tokens,
        scores.sentence_count - scores.short_sentences as counted_sentences,
        case
            when scores.response_id is not null and margin.slot is null and recounted.response_id is null
                then error(scores.response_id || ' has a score but no row in stg_sentences; delete tables/scores and '
                    || 'rerun builder score, or take one of the margins 0.05, 0.10 … 0.50')
            else coalesce(recounted.teacher_sentences, scores.teacher_counts[margin.slot])
        end as teacher_sentences,
        coalesce(recounted.student_sentences, scores.student_counts[margin.slot]) as student_sentences,
        scores.mean_delta
    from survivors
    cross join params
    cross join margin
    join stg_responses as responses on responses.response_id = survivors.response_id
    left join stg_scores as scores on scores.response_id = survivors.response_id and scores.status = 'ok'
    left join recounted on recounted.response_id = scores.response_id
),

valued as (
    select
        scored.prompt_id,
        scored.temperature,
        case scored.ranked_by
            when 'teacher_sentence_count' then scored.teacher_sentences
            when 'fewest_teacher_sentences' then scored.teacher_sentences
            when 'length_matched' then scored.teacher_sentences
            when 'teacher_share' then scored.teacher_sentences / nullif(scored.counted_sentences, 0)
            when 'mean_delta' then scored.mean_delta
            when 'longest' then scored.completion_tokens
        end as ranking_value
    from scored
),

-- a missing value ranks last, so beside a known one it is a difference
candidates as (
    select
        valued.prompt_id,
        valued.temperature,
        count(*) as candidates,
        count(distinct valued.ranking_value) + max((valued.ranking_value is null)::integer) as different
    from valued
    group by valued.prompt_id, valued.temperature
),

asked as (
    select distinct
        responses.prompt_id,
        responses.temperature
    from stg_responses as responses
    where responses.role = 'teacher'
),

-- 0 no candidate, 1 a single one, 2 a tie, 3 a spread
graded as (
    select
        asked.prompt_id,
        asked.temperature,
        case
            when candidates.candidates is null then 0
            when candidates.candidates = 1 then 1
            when candidates.different = 1 then 2
            else 3
        end as grade
    from asked
    left join candidates
        on candidates.prompt_id = asked.prompt_id and candidates.temperature = asked.temperature
),

best as (
    select graded.prompt_id, graded.temperature, graded.grade from graded
    union all
    select graded.prompt_id, null, max(graded.grade) from graded group by graded.prompt_id
),

known as (
    select
        params.ranked_by,
        params.ranked_by in (
            'teacher_sentence_count', 'fewest_teacher_sentences', 'length_matched', 'teacher_share', 'mean_delta',
            'longest'
        ) as is_known
    from params
),

spread as (
    select
        known.ranked_by,
        best.temperature,
        count(*) as prompts,
        count(*) filter (where best.grade = 0) as none,
        count(*) filter (where best.grade = 1) as single,
        case when known.is_known then count(*) filter (where best.grade = 2) end as tied,
        case when known.is_known then count(*) filter (where best.grade = 3) end as spread
    from best
    cross join known
    group by known.ranked_by, known.is_known, best.temperature
)

select * from spread order by temperature nulls first;
