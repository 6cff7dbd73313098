-- stg_candidates
-- Purpose     Everything known of every candidate reply in one row: what a stage's `where` and your experiments read.
-- Inputs      stg_responses, stg_prompts, stg_scores, stg_verdicts (decides), stg_features
-- Output      one row per reply of role teacher, mixed or rewrite, columns named as in the release config `candidates`
-- Parameters  none
-- Source      our choice
-- Try it      duckdb runs/demo/run.duckdb -readonly -c "describe stg_candidates"
select
    prompts.messages as prompt,
    prompts.gold,
    prompts.gold_type,
    prompts.domain,
    prompts.language,
    responses.*,
    scores.student_id,
    scores.short_sentences,
    scores.teacher_counts,
    scores.student_counts,
    scores.mean_delta,
    scores.log_ratio_nats,
    scores.student_tokens,
    scores.status as score_status,
    verdicts.verdict,
    verdicts.extracted,
    features.* exclude (response_id)
from stg_responses as responses
left join stg_prompts as prompts using (prompt_id)
left join stg_scores as scores using (response_id)
left join stg_verdicts as verdicts on verdicts.response_id = responses.response_id and verdicts.decides
left join stg_features as features on features.response_id = responses.response_id
where responses.role in ('teacher', 'mixed', 'rewrite');
