-- position
-- Purpose     Who would have said it, by place in the reply: shares of teacher, student and common sentences in each
--             tenth of a reply, and by the sentence's number.
-- Inputs      stg_sentences, stg_responses (response_id, role)
-- Output      scale (tenth: bucket 1 … 10 of the reply; number: sentences 1, 2 … 3, 4 … 7, and so on, doubling),
--             bucket, first_number and last_number (null for tenths), replies, sentences (those that count),
--             teacher_share, common_share, student_share: means over replies, each reply weighing the same
-- Parameters  teacher_margin: probability by which the teacher must be surer; fastest at 0.05, 0.10 … 0.50, default 0.1
-- Source      arXiv:2601.09088 p.9 Fig. 6, without the distilled model; any margin costs the same here.
--             10,000 replies of 200 sentences take 0.4 s on 2 cores
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/reports/position.sql
with
params as (
    select coalesce(getvariable('teacher_margin'), 0.1)::double as teacher_margin
),

margin as (
    select
        case
            when teacher_margin >= 0 and teacher_margin < 1 then teacher_margin
            else error('teacher_margin is ' || teacher_margin || ', but it is a difference of probabilities: 0 … 1')
        end as teacher_margin
    from params
),

-- short sentences hold their place but do not count, as in scores
sentence as (
    select
        sentences.response_id,
        len(sentences.p_teacher) as sentences,
        generate_subscripts(sentences.p_teacher, 1) as number,
        unnest(sentences.p_teacher)::double - unnest(sentences.p_student)::double as delta,
        least(unnest(sentences.teacher_tokens), unnest(sentences.student_tokens)) >= 3 as is_counted
    from stg_sentences as sentences
    semi join stg_responses as responses
        on responses.response_id = sentences.response_id and responses.role = 'teacher'
),

-- one pass over the sentences; both scales add up these cells
cells as (
    select
        sentence.response_id,
        (sentence.number - 1) * 10 // sentence.sentences + 1 as tenth,
        floor(log2(sentence.number))::bigint + 1 as doubling,
        count(*) as counted,
        count(*) filter (where sentence.delta > margin.teacher_margin) as teacher,
        count(*) filter (where -sentence.delta > margin.teacher_margin) as student
    from sentence
    cross join margin
    where sentence.is_counted and sentence.delta is not null
    group by sentence.response_id, tenth, doubling
),

scales as (
    select cells.response_id, 'tenth' as scale, cells.tenth as bucket, cells.counted, cells.teacher, cells.student
    from cells
    union all
    select cells.response_id, 'number', cells.doubling, cells.counted, cells.teacher, cells.student
    from cells
),

replies as (
    select
        scales.scale,
        scales.bucket,
        scales.response_id,
        sum(scales.counted) as counted,
        sum(scales.teacher) / sum(scales.counted) as teacher_share,
        sum(scales.student) / sum(scales.counted) as student_share
    from scales
    group by scales.scale, scales.bucket, scales.response_id
),

positions as (
    select
        replies.scale,
        replies.bucket,
        case when replies.scale = 'number' then (2 ** (replies.bucket - 1))::bigint end as first_number,
        case when replies.scale = 'number' then (2 ** replies.bucket)::bigint - 1 end as last_number,
        count(*) as replies,
        sum(replies.counted)::bigint as sentences,
        avg(replies.teacher_share) as teacher_share,
        avg(1 - replies.teacher_share - replies.student_share) as common_share,
        avg(replies.student_share) as student_share
    from replies
    group by replies.scale, replies.bucket
)

select * from positions order by scale desc, bucket;
