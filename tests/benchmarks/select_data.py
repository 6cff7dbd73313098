"""A run of DASD's size without DASD's texts: ids, numbers and flags as real replies have them, texts of a few words."""

from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from builder.config import Student
from builder.models import student_id
from builder.schema import TABLES
from builder.store import Run

STUDENT: Final = Student(model="org/student")
REPLIES: Final = 1_800_000
_SAMPLES: Final = 4
_PART_ROWS: Final = 450_000
# Uniform in 0 … 1 by row and name, the same in every run.
_MACROS: Final = """
create macro chance(i, name) as ('0x' || md5(i || name)[1:8])::bigint / 4294967296;
create macro prompt_of(i) as md5('p' || i // {per_prompt});
"""
_ROWS: Final = {
    "prompts": """
select prompt_of(i) as prompt_id, [{{'role': 'user', 'content': 'question ' || i}}] as messages, i::varchar as gold,
    ['math', 'math', 'code', 'science'][(i // {per_prompt}) % 4 + 1] as domain, 'number' as gold_type, [] as sources
from range({start}, {stop}, {per_prompt}) as t(i)
""",
    "responses": """
select md5('r' || i) as response_id, prompt_of(i) as prompt_id, 'teacher' as role, 'm' as model,
    i % {samples} as sample_index, [0.6::double, 1.0::double][((i // {samples}) % 2 + 1)::integer] as temperature,
    i as seed, 32768 as max_tokens, 'first think, reply ' || i as reasoning, 'then say ' || i as answer,
    'field' as reasoning_format, if(chance(i, 'cut') < 0.04, 'length', 'stop') as finish_reason,
    150 as prompt_tokens, if(chance(i, 'cut') < 0.04, 32768, (500 * exp(3.4 * chance(i, 'length')))::integer)
        as completion_tokens,
    'raw' as logprobs_mode, 20.0 as latency_s, 0.001 as cost_usd, timestamptz '2026-01-01 00:00:00+00' as received_at
from range({start}, {stop}) as t(i)
""",
    "features": """
select md5('r' || i) as response_id, md5('t' || i) as text_hash, (1500 * exp(3.4 * chance(i, 'length')))::integer as
    reasoning_chars, if(chance(i, 'answer') < 0.005, 0, 800) as answer_chars, 40 as paragraph_count, 300 as
    sentence_count, (chance(i, 'tag') < 0.003)::integer as think_tags, 1 + (6 * chance(i, 's') ** 4)::integer +
    10 * (chance(i, 'loop') < 0.02)::integer as sentence_repeats,
    1 + (3 * chance(i, 'p') ** 6)::integer as paragraph_repeats,
    2 + (10 * chance(i, 'n') ** 6)::integer as ngram_repeats, 0.12 + 0.8 * chance(i, 'd') ** 0.3 as
    distinct_4gram_share, if(chance(i, 'loop') < 0.01, 4000, 0) as tail_loop_chars, 5000 as latin_chars,
    (2 * chance(i, 'fence') ** 9)::integer * 2 as code_fences
from range({start}, {stop}) as t(i)
""",
    "scores": """
select md5('r' || i) as response_id, '{student}' as student_id, if(chance(i, 'score') < 0.01, 'align_error', 'ok') as
    status, 300 as sentence_count, 20 as short_sentences,
    list_transform(range(10), lambda k: (120 * chance(i, 'teacher') / (k + 1))::integer) as teacher_counts,
    list_transform(range(10), lambda k: (40 * chance(i, 'pupil') / (k + 1))::integer) as student_counts,
    0.3 * chance(i, 'delta') - 0.05 as mean_delta, 0.4 * chance(i, 'ratio') as log_ratio_nats,
    150 + (500 * exp(3.4 * chance(i, 'length')))::integer as student_tokens
from range({start}, {stop}) as t(i)
""",
    "sentences": """
select md5('r' || i) as response_id, '{student}' as student_id, [100, 200, 300] as byte_end,
    [20, 2, 30] as teacher_tokens, [20, 20, 30] as student_tokens,
    [0.6, 0.9, chance(i, 'a')]::float[] as p_teacher, [0.5, 0.9, chance(i, 'b')]::float[] as p_student
from range({start}, {stop}) as t(i)
""",
    "verdicts": """
select md5('r' || i) as response_id, 'number' as verifier, '1' as verifier_version, i::varchar as gold,
    'number' as gold_type, i::varchar as extracted, case when chance(i, 'verdict') < 0.2 then 'wrong'
    when chance(i, 'verdict') < 0.23 then 'unscorable' else 'correct' end as verdict
from range({start}, {stop}) as t(i)
""",
}


def make_run(folder: Path, replies: int) -> Run:
    """A run with prompts, replies, features, scores, sentences and verdicts; 8 replies a prompt, 4 a temperature."""
    run = Run(folder)
    values: dict[str, Any] = {"samples": _SAMPLES, "per_prompt": 2 * _SAMPLES, "student": student_id(STUDENT)}
    with duckdb.connect() as connection:
        connection.execute(_MACROS.format(**values))
        for start in range(0, replies, _PART_ROWS):
            for name, sql in _ROWS.items():
                found = connection.sql(sql.format(**values, start=start, stop=min(start + _PART_ROWS, replies)))
                run.append(name, _whole(name, found.to_arrow_table()))
    return run


def _whole(name: str, rows: pa.Table) -> pa.Table:
    """The rows with every column of the table: what is not given is null, or zero where null is not allowed."""
    columns = []
    for field in TABLES[name].schema:
        if field.name in rows.column_names:
            columns.append(rows[field.name].cast(field.type))
        elif field.nullable:
            columns.append(pa.nulls(rows.num_rows, field.type))
        else:
            columns.append(pa.repeat(pa.scalar(0).cast(field.type), rows.num_rows))
    return pa.Table.from_arrays(columns, schema=TABLES[name].schema)
