-- length_matched
-- Purpose     Rank by teacher sentences among replies of usual length, so that a count does not merely mean long.
-- Inputs      survivors, stg_responses (response_id, completion_tokens), stg_scores as in teacher_sentence_count
-- Output      one row per survivor: response_id, rank (1..n per prompt_id and temperature)
-- Parameters  teacher_margin: probability by which the teacher must be surer, one of 0.05, 0.10 … 0.50, default 0.1
--             length_band: share of the prompt's median length by which a reply may differ, default 0.2
-- Source      our control for the tie of count and length, spec/dasd.md section 2.4
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/selectors/length_matched.sql
with
params as (
    select
        coalesce(getvariable('teacher_margin'), 0.1)::double as teacher_margin,
        coalesce(getvariable('length_band'), 0.2)::double as length_band
),

-- scores hold exact counts at ten margins; any other one would need the sentences again
margin as (
    select
        length_band,
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
        margin.length_band,
        responses.completion_tokens,
        median(responses.completion_tokens) over (
            partition by survivors.prompt_id, survivors.temperature
        ) as usual_tokens,
        scores.teacher_counts[margin.slot] as teacher_sentences,
        scores.student_counts[margin.slot] as student_sentences,
        scores.mean_delta
    from survivors
    cross join margin
    left join stg_responses as responses on responses.response_id = survivors.response_id
    left join stg_scores as scores on scores.response_id = survivors.response_id and scores.status = 'ok'
),

-- replies outside the band come after all inside it; an unknown length is outside
ranked as (
    select
        scored.response_id,
        row_number() over (
            partition by scored.prompt_id, scored.temperature
            order by
                coalesce(
                    abs(scored.completion_tokens - scored.usual_tokens) <= scored.length_band * scored.usual_tokens,
                    false
                ) desc,
                scored.teacher_sentences desc nulls last,
                scored.mean_delta desc nulls last,
                scored.student_sentences asc nulls last,
                scored.response_id
        ) as rank
    from scored
)

select * from ranked;
