"""Runs of any number of candidates with short texts, made fast: DuckDB writes the rows, no teacher is asked.

Ids, golds and texts are what the steps read; features, near copies, verdicts and staged tables are left to the steps.
"""

import json
import random
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import yaml

from builder.config import Recipe, Student
from builder.journal import REPLY, Attempt
from builder.journal_writer import Journal
from builder.models import student_id
from builder.prompts import load_prompts, write_prompts
from builder.requests import requests
from builder.schema import TABLES
from builder.store import Run

SAMPLES: Final = 4
PER_PROMPT: Final = 2 * SAMPLES
STUDENT: Final = Student(model="org/student")
RULES: Final = [
    "answer_missing", "answer_wrong", "channel_markers_left", "low_ngram_diversity", "ngram_repeated",
    "paragraph_repeated", "reasoning_missing", "response_duplicate", "response_near_duplicate", "response_truncated",
    "score_missing", "sentence_repeated", "tail_loop", "think_tags_broken", "too_long_for_student",
]  # fmt: skip
_PART_ROWS: Final = 100_000
_STEMS: Final = ("add", "sum", "we", "let", "so", "the", "of", "part", "then", "value", "twice", "each", "is", "from")
WORDS: Final = [stem + tail for tail in ("", "s", "ed", "ing", "er", "ly", "al", "ous", "ity") for stem in _STEMS]
# Uniform in 0 … 1 by row and name, the same in every run; texts of 30 to 60 words in sentences of about ten.
_MACROS: Final = """
create macro chance(i, name) as ('0x' || md5(i || name)[1:8])::bigint / 4294967296;
create macro text_of(i) as list_aggregate(list_transform(range((30 + hash(i) % 31)::bigint),
    lambda k: {words}[(hash(i * 64 + k) % {number} + 1)::integer] || if(k % 10 = 9, '.', '')), 'string_agg', ' ');
"""
_ROWS: Final = {
    "responses": """
select md5('r' || i) as response_id, prompt_id, 'teacher' as role, 'toy' as model, 'r1' as model_revision,
    i % {samples} as sample_index, [0.6::double, 1.0::double][((i // {samples}) % 2 + 1)::integer] as temperature,
    i as seed, 4096 as max_tokens, text_of(if(i % 50 = 49, i - 1, i)) as reasoning,
    'So the result is ' || gold || ' in all, which is what was asked for.' ||
        if(chance(i, 'wrong') < 0.2, ' No, ' || (gold::bigint + 1) || '.', '') as answer,
    'field' as reasoning_format, if(chance(i, 'cut') < 0.04, 'length', 'stop') as finish_reason, 20 as prompt_tokens,
    60 + (40 * chance(i, 'length'))::integer as completion_tokens, 'raw' as logprobs_mode, 20.0 as latency_s,
    0.001 as cost_usd, timestamptz '2026-01-01 00:00:00+00' as received_at
from range({start}, {stop}) as t(i) join asked on asked.number = i // {per_prompt} order by i
""",
    "scores": """
select md5('r' || i) as response_id, '{student}' as student_id, if(chance(i, 'score') < 0.01, 'align_error', 'ok') as
    status, 6 as sentence_count, 0 as short_sentences,
    list_transform(range(10), lambda k: (6 * chance(i, 'teacher') / (k + 1))::integer) as teacher_counts,
    list_transform(range(10), lambda k: (2 * chance(i, 'pupil') / (k + 1))::integer) as student_counts,
    0.3 * chance(i, 'delta') - 0.05 as mean_delta, 0.4 * chance(i, 'ratio') as log_ratio_nats, 80 as student_tokens
from range({start}, {stop}) as t(i)
""",
    "sentences": """
select md5('r' || i) as response_id, '{student}' as student_id,
    list_transform(range(1, 7), lambda k: size * k // 6) as byte_end,
    [12, 11, 14, 12, 10, 9] as teacher_tokens, [12, 11, 14, 12, 10, 9] as student_tokens,
    list_transform(range(6), lambda k: chance(i, 'a' || k))::float[] as p_teacher,
    list_transform(range(6), lambda k: chance(i, 'b' || k))::float[] as p_student
from (select seed as i, strlen(reasoning) + 2 + strlen(answer) as size from replies)
""",
}


def write_recipe(folder: Path, rows: int, url: str = "http://127.0.0.1:9/v1", in_flight: int = 256) -> Path:
    """A recipe in `folder` whose questions make `rows` requests; the path of its file."""
    draw = random.Random(0)
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        for index in range(rows // PER_PROMPT):
            first, second = draw.randint(1, 10**6), draw.randint(1, 10**6)
            question = f"Question {index}: {' '.join(draw.choices(WORDS, k=20))}. What is {first} + {second}?"
            row = {"prompt": question, "gold": str(first + second), "gold_type": "number", "domain": "math"}
            file.write(json.dumps(row | {"license": "mit"}) + "\n")
    made = {
        "name": "scale",
        "prompts": [{"source": str(folder / "questions.jsonl")}],
        "teacher": {"model": "toy", "revision": "r1", "endpoints": [{"url": url, "max_in_flight": in_flight}]},
        "generation": {"temperatures": [0.6, 1.0], "samples": SAMPLES, "max_tokens": 4096},
        "student": {"model": STUDENT.model},
        "selection": {"rules": RULES, "selector": "teacher_sentence_count"},
        "stages": {"low": {"where": "temperature = 0.6"}, "high": {"where": "temperature = 1.0"}},
        "release": {"license": "mit"},
    }
    path = folder / "scale.yaml"
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    return path


def write_run(root: Path, recipe: Recipe, rows: int) -> None:
    """Tables `prompts`, `responses`, `scores` and `sentences` of `rows` replies; one in fifty copies another's text."""
    run = Run(root)
    write_prompts(run, load_prompts(recipe))
    values: dict[str, Any] = {"samples": SAMPLES, "per_prompt": PER_PROMPT, "student": student_id(STUDENT)}
    with duckdb.connect() as connection:
        connection.execute(_MACROS.format(words=WORDS, number=len(WORDS)))
        prompts = run.columns("prompts", ["prompt_id", "gold"])
        connection.register("found", prompts)
        connection.execute("create table asked as select row_number() over () - 1 as number, * from found")
        for start in range(0, rows, _PART_ROWS):
            for name, sql in _ROWS.items():
                made = connection.sql(sql.format(**values, start=start, stop=min(start + _PART_ROWS, rows)))
                rows_made = _whole(name, made.to_arrow_table())
                run.append(name, rows_made)
                if name == "responses":
                    connection.register("replies", rows_made)


def write_journal(root: Path, recipe: Recipe, tokens: int) -> None:
    """A journal whose replies all came and none was sealed, as a crash at the very end would leave it."""
    bodies = [body(tokens, logprobs=True, seed=seed) for seed in range(8192)]
    given = recipe.require_teacher()
    with Journal(root / "journal") as journal:
        for number, request in enumerate(requests(recipe, load_prompts(recipe))):
            attempt = Attempt(
                model=given.model,
                revision=given.revision,
                request_key=request.key,
                prompt_id=request.prompt_id,
                role="teacher",
                temperature=request.temperature,
                sample_index=request.sample_index,
                seed=request.seed,
                max_tokens=request.max_tokens,
                endpoint=given.endpoints[0].url,
            )
            journal.begin(attempt)
            journal.store(number + 1, bodies[number % len(bodies)], 1.0)
            last = journal.conclude(number + 1, REPLY, "stop")
            if number % 1000 == 0:
                last.result()
        last.result()


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


def body(tokens: int, *, logprobs: bool, seed: int) -> bytes:
    """A reply as vLLM writes it, as hard to compress as a real one.

    A word is a token, drawn as often as words of a language are; a logprob is a float32 written out as Python writes
    it, half of them of tokens that the model was sure of (between -1e-6 and -1e-2).
    """
    draw = np.random.default_rng(seed)
    ids = np.minimum(draw.zipf(1.2, tokens - 3), 50_000)
    words = [f" {_word(int(number))}" for number in ids]
    thinking = len(words) * 4 // 5
    names = ["<think>", *words[:thinking], "</think>", *words[thinking:], "<|im_end|>"]
    sure = -(10.0 ** draw.uniform(-6, -2, tokens))
    values = np.where(draw.random(tokens) < 0.5, sure, -draw.exponential(0.8, tokens)).astype(np.float32).tolist()
    entries = [
        {"token": name, "logprob": value, "bytes": list(name.encode()), "top_logprobs": []}
        for name, value in zip(names, values, strict=True)
    ]
    message = {"role": "assistant", "content": "".join(words[thinking:]), "reasoning": "".join(words[:thinking])}
    choice = {
        "index": 0,
        "message": message | {"tool_calls": []},
        "logprobs": {"content": entries} if logprobs else None,
        "finish_reason": "stop",
        "token_ids": [1, *ids[:thinking].tolist(), 2, *ids[thinking:].tolist(), 3] if logprobs else None,
    }
    usage = {"prompt_tokens": 50, "completion_tokens": tokens, "total_tokens": tokens + 50}
    reply = {"id": f"chatcmpl-{seed}", "object": "chat.completion", "created": 1_790_000_000, "model": "toy"}
    return json.dumps(reply | {"choices": [choice], "usage": usage}).encode()


def _word(number: int) -> str:
    """A word for a number, short for the frequent ones: five bits a letter, vowels and consonants in turn."""
    letters = ""
    while number:
        number, place = divmod(number, 20 if len(letters) % 2 == 0 else 6)
        letters += "tnshrdlcmwfgypbvkjxq"[place] if len(letters) % 2 == 0 else "eaoiuy"[place]
    return letters or "a"
