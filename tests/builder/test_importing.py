"""Replies that others made, from the files that they published, into a run."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from score_toys import TEACHER, save_student

from builder import import_run, importing
from builder.config import Recipe, Selection, Student, Teacher
from builder.errors import SourceError, UsageError
from builder.import_result import Declared, ImportResult, show_imported
from builder.importing import import_files
from builder.local_server import running_server
from builder.release import release
from builder.score import score
from builder.section import Endpoint
from builder.selection import select
from builder.store import Run, columns_table
from builder.verify import verify

RECIPE = Recipe(name="toy", teacher=Teacher(model="org/teacher", revision="7" * 40))
DASD = {
    "uuid": "u1", "input": "What is 1 + 2?", "output": "<think>\nOne and two is three.\n</think>\n\nIt is 3.",
    "domain": "math", "meta": "{}",
}  # fmt: skip
STAGE_1 = "Superior-Reasoning-SFT-gpt-oss-120b-stage1-train-data.jsonl"
STAGE_2 = STAGE_1.replace("stage1", "stage2")


def lines(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def take(run: Run, name: str, *files: Path, recipe: Recipe = RECIPE, **options: Any) -> ImportResult:
    skip_bad = options.pop("skip_bad", False)
    return import_files(run, recipe, files, name, Declared(**options), skip_bad=skip_bad)


def replies(run: Run, *columns: str) -> list[tuple[Any, ...]]:
    return run.read("responses", columns).sort(columns).rows()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_dasd_rows_become_prompts_and_replies_at_the_temperature_of_their_stage(run: Run, tmp_path: Path) -> None:
    found = take(run, "dasd", lines(tmp_path / STAGE_1, DASD), lines(tmp_path / STAGE_2, DASD))
    columns = ("temperature", "role", "model", "model_revision", "reasoning", "answer", "reasoning_format", "seed")
    same = ("teacher", "org/teacher", "7" * 40, "One and two is three.", "It is 3.", "tags", None)
    assert replies(run, *columns) == [(0.6, *same), (1.0, *same)]
    (prompt,) = run.read("prompts").to_dicts()
    assert prompt["messages"] == [{"role": "user", "content": "What is 1 + 2?"}] and prompt["domain"] == "math"
    assert [source["source"] for source in prompt["sources"]] == [STAGE_1, STAGE_2]
    assert (found.replies, found.prompts, found.no_finish_reason, found.no_token_count) == (2, 1, 2, 2)
    assert not run.journal_dir.exists()  # requests are looked up there: an imported reply answers none


@pytest.mark.parametrize(
    ("path", "temperature"),
    [("stage2/train.jsonl", 1.0), ("stage2/a-stage1.jsonl", 0.6), ("stage1/stage1-and-stage2.jsonl", None)],
)
def test_a_stage_is_told_by_the_file_and_then_by_its_folder(
    run: Run, tmp_path: Path, path: str, temperature: float | None
) -> None:
    if temperature is None:
        with pytest.raises(UsageError, match="--temperature T"):
            take(run, "dasd", lines(tmp_path / path, DASD))
    else:
        take(run, "dasd", lines(tmp_path / path, DASD))
        assert replies(run, "temperature") == [(temperature,)]


def test_a_temperature_that_no_file_states_must_be_declared(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"rows.jsonl line 1 does not say at which temperature.*--temperature T"):
        take(run, "dasd", lines(tmp_path / "rows.jsonl", DASD))
    assert not (run.root / "tables").exists()
    take(run, "dasd", tmp_path / "rows.jsonl", temperature=0.7)
    assert replies(run, "temperature") == [(0.7,)]


def test_importing_twice_adds_nothing_and_overlapping_files_merge(run: Run, tmp_path: Path) -> None:
    other = DASD | {"input": "What is 2 + 2?"}
    first = lines(tmp_path / "a" / STAGE_1, DASD, other)
    take(run, "dasd", first)
    before = sorted(path.name for path in run.table_dir("responses").iterdir())
    again = take(run, "dasd", first)
    assert (again.replies, again.repeated, again.prompts) == (0, 2, 0)
    assert sorted(path.name for path in run.table_dir("responses").iterdir()) == before
    third = DASD | {"input": "What is 3 + 2?"}
    more = take(run, "dasd", lines(tmp_path / "b" / STAGE_1, other, third, third))
    assert (more.replies, more.repeated, run.rows("responses"), run.rows("prompts")) == (1, 2, 3, 3)


def test_a_reply_has_the_same_id_from_every_file_format(run: Run, tmp_path: Path) -> None:
    take(run, "dasd", lines(tmp_path / STAGE_1, DASD))
    packed = tmp_path / "stage1.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(DASD).encode()))
    pq.write_table(pa.Table.from_pylist([DASD]), tmp_path / "stage1.parquet")
    turns = [{"role": "user", "content": DASD["input"]}, {"role": "assistant", "content": DASD["output"]}]
    chat = lines(tmp_path / "chat.jsonl", {"messages": turns, "temperature": 0.6})
    assert take(run, "dasd", packed, tmp_path / "stage1.parquet").repeated == 2
    assert take(run, "messages", chat).repeated == 1 and run.rows("responses") == 1


# The companion: token ids and logprobs by uuid, as bytes of the teacher's tokenizer.


def companion(uuid: str, row: Mapping[str, str] = DASD) -> dict[str, Any]:
    ids = TEACHER.encode(row["output"].removeprefix("<think>\n"), add_special_tokens=False).ids
    return {"sample_uuid": uuid, "token_ids": ids, "logprobs": [-0.25] * len(ids)}


@pytest.mark.parametrize("as_parquet", [True, False])
def test_the_companions_logprobs_join_by_uuid_and_are_aligned_when_scored(
    run: Run, tmp_path: Path, student: Path, as_parquet: bool
) -> None:
    rows = [companion("u1"), companion("u9")]
    tokens = tmp_path / "logprob.parquet"
    if as_parquet:
        pq.write_table(pa.Table.from_pylist(rows), tokens)
    else:
        tokens = lines(tmp_path / "logprob.jsonl", *rows)
    found = take(run, "dasd", lines(tmp_path / STAGE_1, DASD, DASD | {"uuid": "u2", "input": "Why?"}), tokens)
    assert (found.replies, found.with_logprobs, found.without_reply) == (2, 1, 1)
    folder = save_student(tmp_path / "teacher", tokenizer=TEACHER)
    teacher = Teacher(model="org/teacher", tokenizer=str(folder))
    recipe = RECIPE.model_copy(update={"teacher": teacher, "student": Student(model=str(student), dtype="float32")})
    assert score(run, recipe).statuses == {"ok": 1, "no_teacher_logprobs": 1}
    (p_teacher,) = run.read("sentences")["p_teacher"].to_list()
    assert p_teacher == pytest.approx([np.exp(-0.25)] * len(p_teacher), rel=1e-6)


def test_tokens_that_do_not_spell_the_reply_are_no_score(run: Run, tmp_path: Path, student: Path) -> None:
    wrong = companion("u1", DASD | {"output": "<think>\nSomething else.\n</think>\n\nIt is 3."})
    take(run, "dasd", lines(tmp_path / STAGE_1, DASD), lines(tmp_path / "logprob.jsonl", wrong))
    folder = save_student(tmp_path / "teacher", tokenizer=TEACHER)
    teacher = Teacher(model="org/teacher", tokenizer=str(folder))
    recipe = RECIPE.model_copy(update={"teacher": teacher, "student": Student(model=str(student), dtype="float32")})
    found = score(run, recipe)
    assert found.statuses == {"align_error": 1} and "the tokens differ from the text" in found.reasons["align_error"]


def test_logprobs_that_are_none_are_missing_and_counted(run: Run, tmp_path: Path) -> None:
    row = companion("u1")
    row["logprobs"][:4] = [float("nan"), float("-inf"), -9999.0, None]
    take(run, "dasd", lines(tmp_path / STAGE_1, DASD), lines(tmp_path / "logprob.jsonl", row))
    (kept,) = run.read("logprobs").to_dicts()
    assert kept["logprob"][:5] == [None, None, None, None, -0.25] and kept["nonfinite_count"] == 3
    assert kept["token_ids"] == row["token_ids"] and kept["token_end"] is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"logprobs": [-0.1]}, "1 logprobs"),
        ({"token_ids": [2**31], "logprobs": [-0.1]}, "holds a token id that cannot be one"),
        ({"logprobs": None}, "has no sample_uuid, token_ids or logprobs"),
    ],
)
def test_a_bad_companion_row_leaves_its_reply_without_logprobs(
    run: Run, tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    files = lines(tmp_path / STAGE_1, DASD), lines(tmp_path / "logprob.jsonl", companion("u1") | change)
    with pytest.raises(SourceError, match=why):
        take(run, "dasd", *files)
    found = take(run, "dasd", *files, skip_bad=True)
    assert (found.replies, found.bad, found.with_logprobs) == (1, 1, 0)
    assert replies(run, "logprobs_mode") == [(None,)]  # so the teacher may rescore it


def test_a_uuid_of_two_replies_gives_logprobs_to_neither(run: Run, tmp_path: Path) -> None:
    twice = lines(tmp_path / STAGE_1, DASD, DASD | {"output": "<think>\nNo.\n</think>\n\nIt is 4."})
    with pytest.raises(SourceError, match="line 2 uuid u1 names another reply too"):
        take(run, "dasd", twice, lines(tmp_path / "logprob.jsonl", companion("u1")))
    assert take(run, "dasd", twice).replies == 2  # without the companion nothing hangs on it


def test_logprobs_that_come_later_complete_what_is_there(run: Run, tmp_path: Path) -> None:
    texts = lines(tmp_path / STAGE_1, DASD)
    take(run, "dasd", texts)
    row = {"response_id": replies(run, "response_id")[0][0], "student_id": "s", "status": "no_teacher_logprobs"}
    run.append("scores", columns_table("scores", [row]))
    tokens = lines(tmp_path / "logprob.jsonl", companion("u1"))
    found = take(run, "dasd", texts, tokens)
    assert (found.replies, found.completed, found.with_logprobs) == (0, 1, 1)
    assert replies(run, "logprobs_mode") == [("raw",)] and run.rows("logprobs") == 1
    assert run.rows("scores") == 0  # it was of the reply without logprobs
    assert take(run, "dasd", texts, tokens).repeated == 1 and run.rows("logprobs") == 1
    assert take(run, "dasd", texts).repeated == 1 and replies(run, "logprobs_mode") == [("raw",)]


def test_a_finish_reason_is_declared_or_unknown_and_completes_what_is_there(run: Run, tmp_path: Path) -> None:
    texts = lines(tmp_path / STAGE_1, DASD)
    take(run, "dasd", texts)
    recipe = RECIPE.model_copy(update={"selection": Selection(rules=["response_truncated"], selector="random")})
    assert select(run, recipe).survivors == 0
    assert take(run, "dasd", texts, finish_reason="stop").completed == 1
    assert select(run, recipe).survivors == 1


# The other formats.


def openthoughts(value: str, **changes: Any) -> dict[str, Any]:
    turns = [{"from": "user", "value": "What is 1 + 2?"}, {"from": "assistant", "value": value}]
    return {"system": "Think in steps.", "conversations": turns, **changes}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            "<|begin_of_thought|>\n\nOne.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n3\n\n<|end_of_solution|>",
            ("One.", "3", "tags"),
        ),
        ("<|begin_of_thought|>\n\nOne, and", ("One, and", None, "unclosed")),
        ("<think>\nOne.\n</think>\n3", ("One.", "3", "tags")),
        ("Just 3", (None, "Just 3", "none")),
    ],
)
def test_openthoughts_marks_are_split_off(run: Run, tmp_path: Path, value: str, expected: tuple[Any, ...]) -> None:
    take(run, "openthoughts", lines(tmp_path / "ot.jsonl", openthoughts(value)), temperature=0.6)
    assert run.read("responses", ["reasoning", "answer", "reasoning_format"]).rows() == [expected]
    (messages,) = run.read("prompts")["messages"].to_list()
    assert [message["role"] for message in messages] == ["system", "user"]


def test_openthoughts_metadata_and_sharegpt_roles_are_read(run: Run, tmp_path: Path) -> None:
    meta = {
        "problem": "What is 1 + 2?", "deepseek_reasoning": "One.", "deepseek_solution": "3", "domain": "math",
        "ground_truth_solution": "3", "source": "x",
    }  # fmt: skip
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "<think>\nWell.\n</think>\n\nHello"}]
    rows = [meta, {"conversations": turns, "domain": "chat"}]
    take(run, "openthoughts", lines(tmp_path / "ot.jsonl", *rows), temperature=0.6)
    assert replies(run, "answer", "reasoning") == [("3", "One."), ("Hello", "Well.")]
    assert set(run.read("prompts")["domain"]) == {"math", "chat"}


OPENR1 = {
    "problem": "What is 1 + 2?", "solution": "Add.", "answer": "3", "problem_type": "Algebra",
    "question_type": "math-word-problem", "source": "olympiads", "uuid": "u", "is_reasoning_complete": [True, False],
    "generations": ["<think>\nOne.\n</think>\n\n$\\boxed{3}$", "<think>\nOne, and so"],
    "correctness_math_verify": [True, False], "correctness_llama": None, "finish_reasons": ["stop", "length"],
    "correctness_count": 1,
    "messages": [{"role": "user", "content": "What is 1 + 2?"}, {"role": "assistant", "content": "<think>…"}],
}  # fmt: skip


def test_each_generation_of_openr1_is_a_reply_and_its_answer_the_gold(run: Run, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([OPENR1]), tmp_path / "train-00000.parquet")
    take(run, "openr1", tmp_path / "train-00000.parquet", temperature=0.6)
    columns = ("sample_index", "finish_reason", "reasoning", "reasoning_format")
    assert replies(run, *columns) == [(0, "stop", "One.", "tags"), (1, "length", "One, and so", "unclosed")]
    (prompt,) = run.read("prompts").to_dicts()
    assert (prompt["gold"], prompt["gold_type"], prompt["verifier"]) == ("3", "latex", "math")
    assert verify(run).verdicts == {"correct": 1, "wrong": 1}


@pytest.mark.parametrize(
    ("changes", "gold"),
    [
        ({"answer": "proof"}, (None, None)),
        ({"answer": "B", "question_type": "MCQ"}, ("B", "choice")),
        ({"answer": "12", "question_type": "MCQ"}, ("12", "latex")),
        ({"finish_reasons": None, "messages": None}, ("3", "latex")),
    ],
)
def test_openr1_answers_that_are_none_are_no_gold(
    run: Run, tmp_path: Path, changes: dict[str, Any], gold: tuple[str | None, str | None]
) -> None:
    take(run, "openr1", lines(tmp_path / "r.jsonl", OPENR1 | changes), temperature=0.6)
    assert run.read("prompts", ["gold", "gold_type"]).rows() == [gold]


def test_an_empty_generation_is_named_alone(run: Run, tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", OPENR1 | {"generations": ["<think>\nOne.\n</think>\n\n3", None]})
    with pytest.raises(SourceError, match=r"1 rows do not fit.*\n  r.jsonl line 1 generation 1 holds no reply"):
        take(run, "openr1", path, temperature=0.6)
    assert take(run, "openr1", path, temperature=0.6, skip_bad=True).replies == 1


REAL = Path(__file__).parent.parent / "data" / "vllm_replies.jsonl"


def batch(tmp_path: Path, bodies: Sequence[Any], **request: Any) -> tuple[Path, Path]:
    asked = {
        "model": "toy-teacher", "messages": [{"role": "user", "content": "How many pens?"}], "temperature": 0.8,
        "seed": 5, "max_completion_tokens": 256,
    } | request  # fmt: skip
    names = [f"request-{place}" for place in range(len(bodies))]
    sent = [{"custom_id": n, "method": "POST", "url": "/v1/chat/completions", "body": asked} for n in names]
    came = [
        {"id": "x", "custom_id": n, "response": {"status_code": 200, "request_id": "y", "body": body}, "error": None}
        for n, body in zip(names, bodies, strict=True)
    ]
    return lines(tmp_path / "out.jsonl", *came), lines(tmp_path / "in.jsonl", *sent)


def test_real_vllm_replies_come_with_their_logprobs(run: Run, tmp_path: Path) -> None:
    bodies = [json.loads(json.loads(line)["body"]) for line in REAL.read_text().splitlines()]
    out, requests = batch(tmp_path, bodies)
    recipe = RECIPE.model_copy(update={"teacher": Teacher(model="toy-teacher", revision="7" * 40)})
    found = take(run, "vllm", out, recipe=recipe, requests=requests)
    assert found.replies + found.repeated == len(bodies) and found.with_logprobs == found.replies
    table = run.read("responses")
    facts = table.select("temperature", "seed", "max_tokens", "model", "model_revision", "logprobs_mode").unique()
    assert facts.rows() == [(0.8, 5, 256, "toy-teacher", "7" * 40, "raw")]
    assert table["prompt_tokens"].null_count() == table["finish_reason"].null_count() == 0
    aligned = run.read("logprobs").filter(pl.col("token_end").is_not_null())
    assert aligned.height == found.replies and aligned["logprob"].list.len().min() > 10


def test_choices_of_one_request_are_samples(run: Run, tmp_path: Path) -> None:
    choices = [
        {"index": place, "message": {"role": "assistant", "content": f"Answer {place}"}, "finish_reason": "stop"}
        for place in range(2)
    ]
    body = {"model": "org/teacher", "choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": 6}}
    out, requests = batch(tmp_path, [body], n=2)
    take(run, "vllm", out, requests=requests)
    columns = ("sample_index", "answer", "prompt_tokens", "completion_tokens")
    assert replies(run, *columns) == [(0, "Answer 0", 7, None), (1, "Answer 1", 7, None)]


def test_failed_requests_and_unknown_ids_are_named(run: Run, tmp_path: Path) -> None:
    good = {"choices": [{"message": {"content": "3"}, "finish_reason": "stop"}]}
    out, requests = batch(tmp_path, [good, good, {"choices": []}])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    rows[1]["response"] = {"status_code": 400, "body": {"error": {"message": "too long"}}}
    lines(out, *rows, rows[0] | {"custom_id": "other"})
    with pytest.raises(SourceError) as caught:
        take(run, "vllm", out, requests=requests)
    message = str(caught.value)
    assert "3 rows do not fit" in message and 'line 2 is a request that failed: {"error"' in message
    assert "line 3 has no list 'choices'" in message and "'other' is not in the requests file" in message


def test_a_batch_needs_its_requests_and_each_custom_id_once(run: Run, tmp_path: Path) -> None:
    out, requests = batch(tmp_path, [{"choices": []}])
    with pytest.raises(UsageError, match="--requests FILE"):
        take(run, "vllm", out)
    lines(requests, *[json.loads(requests.read_text())] * 2)
    with pytest.raises(UsageError, match="line 2: custom_id 'request-0' was sent before"):
        take(run, "vllm", out, requests=requests)


def test_messages_keep_every_turn_and_what_stands_beside_them(run: Run, tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "1 + 2?"}]},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So it is.", "reasoning_content": "Hm. Counting."},
    ]
    row = {"messages": turns, "temperature": 1, "sample_index": 3, "finish_reason": "stop", "completion_tokens": 9}
    row |= {"gold": "3", "gold_type": "number", "domain": "math", "licence": "mit", "model": "org/other"}
    found = take(run, "messages", lines(tmp_path / "m.jsonl", row))
    columns = ("temperature", "sample_index", "finish_reason", "completion_tokens", "model", "model_revision")
    assert replies(run, *columns, "reasoning") == [(1.0, 3, "stop", 9, "org/other", None, "Hm. Counting.")]
    (prompt,) = run.read("prompts").to_dicts()
    assert [message["content"] for message in prompt["messages"]] == ["What is 1 + 2?", "3", "Why?"]
    assert (prompt["gold"], prompt["verifier"], prompt["sources"][0]["license"]) == ("3", "math", "mit")
    assert found.other_models == {"org/other": 1}


@pytest.mark.parametrize("reply", ["3", [{"role": "assistant", "content": "3"}]])
def test_prompt_and_completion_are_messages_too(run: Run, tmp_path: Path, reply: Any) -> None:
    take(run, "messages", lines(tmp_path / "m.jsonl", {"prompt": "1 + 2?", "completion": reply}), temperature=0.6)
    take(run, "messages", lines(tmp_path / "n.jsonl", {"prompt": "1 + 2?", "response": "3"}), temperature=0.6)
    assert replies(run, "answer") == [("3",)]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("{not json", "is no JSON"),
        ("[1]", "is no JSON object but list"),
        ({"messages": []}, "has no list 'messages'"),
        ({"messages": [{"role": "user", "content": "a"}]}, "ends with a turn of role user"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "has no question before its last turn"),
        ({"messages": ["a"]}, "ends with a turn of role None"),
        (
            {"messages": [{"role": "boss", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "has a turn without a role",
        ),
        (
            {"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": "b"}]},
            "has a turn that is no text",
        ),
        ({"prompt": "a", "completion": "  "}, "holds no reply"),
        ({"prompt": "a", "completion": "b", "temperature": "hot"}, "has a value that cannot be"),
        ({"prompt": "a", "completion": "b", "temperature": -1}, "has a value that cannot be"),
        ({"prompt": "a", "completion": "b", "completion_tokens": 2**40}, "has a value that cannot be"),
        ('{"prompt": "a\\ud800", "completion": "b"}', "has a lone surrogate in its prompt"),
    ],
)
def test_a_row_that_does_not_fit_is_named_and_nothing_is_imported(run: Run, tmp_path: Path, row: Any, why: str) -> None:
    path = lines(tmp_path / "m.jsonl", {"prompt": "1?", "completion": "1"}, row, {"prompt": "2?", "completion": "2"})
    with pytest.raises(SourceError) as caught:
        take(run, "messages", path, temperature=0.6)
    assert f"m.jsonl line 2 {why}" in str(caught.value) and "--skip-bad" in str(caught.value)
    assert not (run.root / "tables").exists()
    found = take(run, "messages", path, temperature=0.6, skip_bad=True)
    assert (found.replies, found.bad) == (2, 1)
    (named,) = [json.loads(line) for line in Path(str(found.bad_rows)).read_text().splitlines()]
    assert (named["file"], named["place"]) == (str(path), "line 2") and why in named["why"]


def test_surrogates_in_a_reply_are_replaced_and_counted(run: Run, tmp_path: Path) -> None:
    take(run, "messages", lines(tmp_path / "m.jsonl", '{"prompt": "a", "completion": "b\\ud800"}'), temperature=0.6)
    assert replies(run, "answer", "replaced_characters") == [("b\ufffd", 1)]


def test_another_format_is_told_after_a_hundred_rows(run: Run, tmp_path: Path) -> None:
    path = lines(tmp_path / STAGE_1, *[DASD] * 1000)
    with pytest.raises(SourceError, match=r"The first 100 rows of .* do not fit format openr1[^!]*input, meta, output"):
        take(run, "openr1", path, temperature=0.6, skip_bad=True)
    with pytest.raises(SourceError, match="holds no reply in format dasd"):
        take(run, "dasd", lines(tmp_path / "empty-stage1.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", b"a", "is no .jsonl, .jsonl.gz or .parquet file"),
        ("m.parquet", b"PAR1", "cannot be read as Parquet"),
        ("m.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 9, mtime=0)[:-9], "cannot be read after line"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(run: Run, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        take(run, "messages", tmp_path / name, temperature=0.6, skip_bad=True)
    assert not (run.root / "tables").exists()


def test_unknown_formats_and_files_are_refused_at_once(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it is one of dasd, openthoughts, openr1, messages, vllm"):
        take(run, "alpaca", tmp_path / "x.jsonl")
    with pytest.raises(UsageError, match=r"x.jsonl is no file"):
        take(run, "dasd", tmp_path / "x.jsonl")
    with pytest.raises(UsageError, match="All files hold tokens only"):
        take(run, "dasd", lines(tmp_path / "logprob.jsonl", companion("u1")))


def test_two_golds_that_differ_are_no_gold_in_any_order(run: Run, tmp_path: Path) -> None:
    one = lines(tmp_path / "1.jsonl", {"prompt": "a", "completion": "b", "gold": "1", "gold_type": "number"})
    two = lines(tmp_path / "2.jsonl", {"prompt": "a", "completion": "b", "gold": "2"})
    for path in (one, two, one):
        take(run, "messages", path, temperature=0.6)
        took = run.read("prompts", ["gold", "gold_conflicts", "gold_type"]).rows()
    assert took == [(None, 1, "number")]


def test_parts_of_any_size_hold_the_same(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [DASD | {"uuid": f"u{place}", "input": f"What is {place}?"} for place in range(10)]
    files = lines(tmp_path / STAGE_1, *rows), lines(tmp_path / "l.jsonl", *[companion(f"u{p}") for p in range(10)])
    take(run, "dasd", *files)
    small = Run(tmp_path / "small")
    monkeypatch.setattr(importing, "_CHUNK", 3)
    take(small, "dasd", *files)
    assert len(small.parts("responses")) == 4 and len(run.parts("responses")) == 1
    for name in ("prompts", "responses", "logprobs"):
        key = "prompt_id" if name == "prompts" else "response_id"
        assert small.read(name).sort(key).equals(run.read(name).sort(key))


def test_an_import_that_dies_while_it_moves_is_completed_by_a_rerun(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = lines(tmp_path / STAGE_1, DASD), lines(tmp_path / "l.jsonl", companion("u1"))

    def dies(run: Run, scratch: Run, tables: Sequence[str]) -> None:
        import_run.adopt(run, scratch, tables[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(importing, "adopt", dies)
    with pytest.raises(KeyboardInterrupt):
        take(run, "dasd", *files)
    assert (run.rows("logprobs"), run.rows("responses")) == (1, 0)
    monkeypatch.undo()
    (run.root / ".import-left").mkdir()
    assert take(run, "dasd", *files).replies == 1
    assert (run.rows("logprobs"), run.rows("responses")) == (1, 1)
    assert not list(run.root.glob(".import-*"))


def test_two_imports_at_once_are_refused(run: Run, tmp_path: Path) -> None:
    with import_run.exclusive(run), pytest.raises(UsageError, match=r"Another import into .* is going on"):
        take(run, "dasd", lines(tmp_path / STAGE_1, DASD))


def test_imported_replies_are_scored_selected_and_released(
    run: Run, tmp_path: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = [json.loads(json.loads(line)["body"]) for line in REAL.read_text().splitlines()]
    out, requests = batch(tmp_path, bodies)
    recipe = Recipe(
        name="toy",
        teacher=Teacher(model="toy-teacher", tokenizer=str(tmp_path / "none")),
        student=Student(model=str(student), dtype="float32"),
        selection=Selection(rules=["score_missing", "response_truncated"]),
    )
    take(run, "vllm", out, recipe=recipe, requests=requests)
    statuses = score(run, recipe).statuses
    assert statuses.get("ok", 0) > 0
    chosen = select(run, recipe)
    made = release(run, recipe, chosen)
    kept = pq.read_table(made.path / "data/train")
    assert kept.num_rows == 1 and kept["mean_delta"].null_count == 0
    assert (made.manifest["calls"]["attempts"], made.manifest["prompts"][0]["source"]) == (0, "out.jsonl")


def test_imported_replies_are_rescored_for_ones_own_student(run: Run, tmp_path: Path, student: Path) -> None:
    with running_server(student, threads=1) as url:
        teacher = Teacher(model="student", tokenizer=str(student), endpoints=[Endpoint(url=url)], rescore=True)
        own = Student(model=str(student), dtype="float32", system_prompt=None)  # the same model: no divergence
        recipe = Recipe(name="toy", teacher=teacher, student=own)
        take(run, "dasd", lines(tmp_path / STAGE_1, DASD), recipe=recipe)
        assert score(run, recipe).statuses == {"ok": 1}
    (found,) = run.read("scores").to_dicts()
    assert found["mean_delta"] == pytest.approx(0, abs=1e-5) and "rescored" in found["status_detail"]


def test_what_the_replies_lack_is_said(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from builder.console import Reporter

    reporter = Reporter()
    show_imported(reporter, take(run, "dasd", lines(tmp_path / STAGE_1, DASD)))
    said = capsys.readouterr()
    assert said.out.startswith("import: 1 new replies to 1 new prompts, 0 with logprobs")
    assert "--finish-reason stop" in said.err and "without a count of their tokens" in said.err
