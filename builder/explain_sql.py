"""Statements of `builder explain`, about the reply whose id is `{me}` and those that it is ranked with."""

from typing import Final

# Replies that a packaged selector ranks together, and the reply itself where it is none of them.
RIVALS: Final = """
    with me as (from reply_numbers where response_id = {me})

    select reply, response_id, prompt_id, role from me
    union
    select reply, response_id, prompt_id, role from reply_numbers
    semi join (from me where role = 'teacher') as me using (asked)
    where role = 'teacher'
"""
# Their rows, each table read once.
MINE: Final = {
    f"my_{name}": f"select * from stg_{name} semi join rivals using (response_id)"
    for name in ("responses", "scores", "features", "verdicts")
}
# By name: what the job brings back.
WANTED: Final = {
    **{f"stg_{name}": f"select * from my_{name} where response_id = {{me}}"
       for name in ("responses", "scores", "features")},
    "stg_verdicts": "select * from my_verdicts where response_id = {me} and decides",
    "stg_prompts": "select * from stg_prompts semi join rivals using (prompt_id)",
    "stg_duplicates": """
        select * from stg_duplicates where response_id = {me} and earlier_id is not null
        order by jaccard desc, earlier_id limit 1
    """,
    "stg_contaminations": """
        select * from stg_contaminations semi join rivals using (prompt_id) where benchmark is not null
        order by shared_words desc, benchmark, benchmark_row limit 1
    """,
    "prompt_verdicts": """
        select count(*) as replies, count(*) filter (where verdict = 'correct') as correct,
            count(*) filter (where verdict = 'wrong') as wrong
        from (from reply_numbers semi join rivals using (prompt_id) where role in ('teacher', 'original')) as r
        anti join stg_rewrites using (response_id)
        left join stg_verdicts as v on v.response_id = r.response_id and v.decides
    """,
    "rejections": "select * from stg_rejections where response_id = {me}",
    "rewrites": "select * from stg_rewrites where {me} in (response_id, original_id) order by response_id",
    "rollouts": "select * from stg_rollouts where {me} in (response_id, continuation_id)",
    "stages": """
        select stage, grain_id from selection_rows
        where grain_id = {me} or grain_id in (select prompt_id from rivals)
            or starts_with(grain_id, {me} || ':') or ends_with(grain_id, ':' || {me})
        order by stage, position
    """,
    "candidates": """
        with places as (
            select stage, grain_id as response_id from selection_rows where kind = 'sft'
            union all
            select stage, unnest(split(grain_id, ':')) as response_id from selection_rows where kind = 'reward'
        ),

        kept as (select response_id, list(distinct stage order by stage) as stages from places
            semi join my_responses using (response_id) group by response_id)

        select
            r.response_id, r.temperature, r.completion_tokens, v.verdict, s.teacher_counts, s.student_counts,
            s.mean_delta, s.sentence_count - s.short_sentences as sentences, ranked.rank,
            p.p_teacher, p.p_student, p.teacher_tokens, p.student_tokens,
            (select list(rule_name order by rule_name) from stg_rejections as b where b.response_id = r.response_id)
                as breaks,
            kept.stages
        from my_responses as r
        left join kept on kept.response_id = r.response_id
        left join my_verdicts as v on v.response_id = r.response_id and v.decides
        left join my_scores as s on s.response_id = r.response_id and s.status = 'ok'
        left join my_sentences as p on p.response_id = s.response_id
        left join rivals on rivals.response_id = r.response_id
        left join ranked on ranked.reply = rivals.reply
        where rivals.role = 'teacher'
        order by ranked.rank nulls last, r.response_id
    """,
}  # fmt: skip
