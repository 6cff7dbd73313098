-- stg_sentences_of_survivors
-- Purpose     What is counted at a margin of which scores hold no counts.
-- Inputs      stg_scores_of_survivors (reply_id, response_id, teacher_counts), stg_sentences
-- Output      one row per sentence of a scored survivor: reply_id, delta (p_teacher − p_student; null for a short one,
--             which does not count)
-- Parameters  none
-- Source      arXiv:2601.09088 p.9; short sentences as in scores
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "from stg_sentences_of_survivors limit 5"
with
sentence as (
    select
        scores.reply_id,
        unnest(sentences.p_teacher)::double - unnest(sentences.p_student)::double as delta,
        least(unnest(sentences.teacher_tokens), unnest(sentences.student_tokens)) >= 3 as is_counted
    from stg_sentences as sentences
    join stg_scores_of_survivors as scores on scores.response_id = sentences.response_id
    where scores.teacher_counts is not null
)

select
    sentence.reply_id,
    case when sentence.is_counted then sentence.delta end as delta
from sentence;
