"""Scores on hand-made tables and tiny random students, against one slow forward a reply."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from score_toys import (
    CHATML,
    REPLIES,
    TEACHER,
    TEXTS,
    byte_level,
    logprobs,
    make_run,
    prompt,
    recipe,
    reply,
    save_student,
)
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from builder import score as scoring
from builder.models import student_id
from builder.schema import MARGINS
from builder.score import score
from builder.store import Run, columns_table
from builder.text import canonical_text, sentence_byte_ends

torch.set_num_threads(1)


def rows(run: Run, table: str = "scores") -> dict[str, dict[str, Any]]:
    frame = run.read(table)
    assert frame.select("response_id", "student_id").is_duplicated().sum() == 0
    return {row["response_id"]: row for row in frame.iter_rows(named=True)}


def reference(folder: Path, row: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """One forward in float64, a byte-by-byte walk, dictionaries: nothing of the code under test but the splitter."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    head = f"{system}<|im_start|>user\nWhat is 1 + 2?<|im_end|>\n<|im_start|>assistant\n"
    think = f"<think>\n{row['reasoning']}\n</think>\n\n" if row["reasoning"] else ""
    before = tokenizer(head, add_special_tokens=False)["input_ids"]
    after = tokenizer(think + row["answer"], add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0].double()
    every = torch.log_softmax(logits, -1)
    student = [every[len(before) + i - 1, token].item() for i, token in enumerate(after)]
    text = canonical_text(row["reasoning"], row["answer"])
    ends = sentence_byte_ends(text)

    place: list[int | None] = [None] * len(think.encode())  # of every byte of the rendered text in the canonical one
    if row["reasoning"]:
        size = len(row["reasoning"].encode())
        place[8 : 8 + size] = range(size)
    start = len(text.encode()) - len(row["answer"].encode())
    place += range(start, len(text.encode()))
    white = [character.isspace() for character in text for _ in character.encode()]

    def by_sentence(lengths: list[int], values: list[float]) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {i: [] for i in range(len(ends))}
        cursor, last = 0, 0
        for length, value in zip(lengths, values, strict=True):
            covered = [p for p in place[cursor : cursor + length] if p is not None]
            cursor += length
            solid = [p for p in covered if not white[p]]
            if solid:
                last = next(i for i, end in enumerate(ends) if solid[0] < end)
            if covered:
                found[last].append(value)
                last = next(i for i, end in enumerate(ends) if max(solid or [0]) < end) if solid else last
        return found

    pieces = {i: tokenizer.backend_tokenizer.decode([i], skip_special_tokens=False) for i in set(after)}
    lengths = [_length(tokenizer, i, pieces[i]) for i in after]
    teacher_ids = given["token_ids"]
    teacher_lengths = [_length(TEACHER, i, TEACHER.decode([i], skip_special_tokens=False)) for i in teacher_ids]
    by_teacher, by_student = by_sentence(teacher_lengths, given["logprob"]), by_sentence(lengths, student)
    p_teacher = [math.exp(sum(v) / len(v)) if v else None for v in by_teacher.values()]
    p_student = [math.exp(sum(v) / len(v)) if v else None for v in by_student.values()]
    long = [i for i in by_teacher if len(by_teacher[i]) >= 3 and len(by_student[i]) >= 3]
    delta = [p_teacher[i] - p_student[i] for i in long]
    sums = [sum(sum(values) for values in side.values()) for side in (by_teacher, by_student)]
    return {
        "teacher_tokens": [len(values) for values in by_teacher.values()],
        "student_tokens": [len(values) for values in by_student.values()],
        "p_teacher": p_teacher,
        "p_student": p_student,
        "byte_end": ends,
        "short_sentences": len(ends) - len(long),
        "delta": delta,
        "log_ratio_nats": (sums[0] - sums[1]) / sum(len(values) for values in by_teacher.values()),
        "tokens": len(before) + len(after) + 1,
    }


def _length(tokenizer: Any, index: int, decoded: str) -> int:
    """Bytes of a token: of its text where it is whole characters, else one a character of the byte-level alphabet."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    token = backend.id_to_token(index)
    return len(token) if "\ufffd" in decoded else len(decoded.encode())


def test_scores_equal_one_slow_forward_a_reply(student: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, REPLIES)
    result = score(run, recipe(student))
    assert (result.scored, result.statuses) == (5, {"ok": 5})
    found, lists = rows(run), rows(run, "sentences")
    for row in REPLIES:
        expected = reference(student, row, logprobs(row))
        mine, sentences = found[row["response_id"]], lists[row["response_id"]]
        for name in ("byte_end", "teacher_tokens", "student_tokens"):
            assert sentences[name] == expected[name]
        for name in ("p_teacher", "p_student"):
            assert sentences[name] == pytest.approx(expected[name], abs=2e-6)
        assert mine["short_sentences"] == expected["short_sentences"]
        assert mine["sentence_count"] == len(expected["byte_end"])
        assert mine["mean_delta"] == pytest.approx(np.mean(expected["delta"]), abs=2e-6)
        assert mine["teacher_counts"] == [sum(d > margin for d in expected["delta"]) for margin in MARGINS]
        assert mine["student_counts"] == [sum(-d > margin for d in expected["delta"]) for margin in MARGINS]
        assert mine["log_ratio_nats"] == pytest.approx(expected["log_ratio_nats"], abs=1e-5)
        assert mine["student_tokens"] == expected["tokens"]
        assert mine["status_detail"] is None


def test_scores_do_not_depend_on_chunks_or_parts_not_even_in_the_last_bit(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = make_run(tmp_path / "a", REPLIES)
    score(together, recipe(student))
    apart = Run(tmp_path / "b")
    apart.append("prompts", columns_table("prompts", [prompt()]))
    for row in reversed(REPLIES):
        apart.append("responses", columns_table("responses", [row]))
        apart.append("logprobs", columns_table("logprobs", [logprobs(row)]))
    monkeypatch.setattr(scoring, "_CHUNK", 2)
    monkeypatch.setattr(scoring, "_BLOCK_BYTES", 1)
    score(apart, recipe(student))
    for table in ("scores", "sentences"):
        assert rows(together, table) == rows(apart, table)


@pytest.mark.parametrize("count", [2, 7])
def test_shards_of_a_local_student_score_as_one_process_does_to_the_last_bit(
    student: Path, tmp_path: Path, count: int
) -> None:
    asked = [prompt(f"{number:08x}") for number in range(8)]
    replies = [
        reply(f"{row['prompt_id']}-{i}", prompt_id=row["prompt_id"], reasoning=reasoning, answer=answer)
        for row in asked
        for i, (reasoning, answer) in enumerate(TEXTS)
    ]
    one, many = (make_run(tmp_path / name, replies, prompts=asked) for name in ("one", "many"))
    score(one, recipe(student))
    for index in range(count):
        score(many, recipe(student), shard=(index, count))
    assert len(many.parts("scores")) > 1
    for table in ("scores", "sentences"):
        assert rows(one, table) == rows(many, table)


STATUSES: dict[str, tuple[dict[str, Any], dict[str, Any] | None, str]] = {
    "no_teacher_logprobs": ({}, None, "gave no logprobs"),
    "no_teacher_logprobs: null": ({}, {"logprob": {5: None}}, "1 of [0-9]+ tokens have no finite logprob"),
    "no_teacher_logprobs: -9999": ({}, {"logprob": {5: -9999.0}}, "1 of [0-9]+ tokens"),
    "no_teacher_logprobs: infinite": ({}, {"logprob": {5: -math.inf, 6: math.nan}}, "2 of [0-9]+ tokens"),
    "processed_logprobs": ({"logprobs_mode": "processed"}, {}, "declared processed"),
    "processed_logprobs: unknown": ({"logprobs_mode": "unknown"}, {}, "declared unknown"),
    "align_error: lengths": ({}, {"token_end": [1, 2, 3]}, "logprobs but 3 token ends"),
    "align_error: other text": ({"reasoning": "Another text. It is longer, too."}, {}, "do not cover the text of"),
    "align_error: refused": ({}, {"token_end": None, "align_detail": "byte 3"}, "byte 3, and the teacher's tokenizer"),
    "align_error: no ids": (
        {},
        {"token_end": None, "align_detail": "byte 3", "token_ids": []},
        "there are 0 token ids",
    ),
    "too_few_tokens": ({"reasoning": "No", "answer": "3"}, {}, "all 2 sentences are shorter than 3 tokens"),
    "too_few_tokens: one token": ({"reasoning": None, "answer": "3"}, {}, "all 1 sentences are shorter than 3 tokens"),
    "too_few_tokens: nothing": ({"reasoning": None, "answer": None}, {"logprob": {}}, "holds no text"),
    "student_cannot_render: context": (
        {"answer": "many words " * 100 + "."},
        {},
        "exceed the student's context of 300",
    ),
}


def test_each_status_has_its_reason_and_stops_no_other_reply(tmp_path: Path) -> None:
    student = save_student(tmp_path / "student", positions=300)
    replies, values = [reply("fine")], [logprobs(reply("fine"))]
    for name, (changes, given, _) in STATUSES.items():
        replies.append(reply(name, **changes))
        if given is None:
            continue
        text = reply(name) if "other text" in name else replies[-1]
        row = {"token_ids": [1], "token_end": [0], "logprob": [-1.0]} if text["answer"] is None else logprobs(text)
        row |= {"response_id": name, "nonfinite_count": 0, "align_detail": None}
        edits = dict(given)
        for place, value in edits.pop("logprob", {}).items():
            row["logprob"][place] = value
        values.append(row | edits)
    run = make_run(tmp_path / "run", replies, values)
    result = score(run, recipe(student))
    assert result.scored == len(STATUSES) + 1
    found = rows(run)
    assert found.pop("fine")["status"] == "ok"
    assert {name: row["status"] for name, row in found.items()} == {name: name.split(":")[0] for name in STATUSES}
    for name, (_, _, detail) in STATUSES.items():
        row = found[name]
        assert row["status_detail"] is not None
        assert re.search(detail, row["status_detail"]), (name, row["status_detail"])
        for column in ("teacher_counts", "student_counts", "mean_delta", "log_ratio_nats"):
            assert row[column] is None, "never a made-up number"
        assert row["student_tokens"] > 20, "known whatever the logprobs say"
    assert sorted(rows(run, "sentences")) == ["fine", "too_few_tokens", "too_few_tokens: one token"]


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"template": "{{ raise_exception('no system prompt') }}"}, "template fails: TemplateError: no system prompt"),
        ({"template": ""}, "empty prompt"),
        ({"template": CHATML + "<think>\n\n</think>\n\n"}, "closes the think block"),
        ({"embeddings": 300}, "ids past the 300 embeddings"),
    ],
    ids=["raising", "empty", "closed", "embeddings"],
)
def test_a_student_that_cannot_render_says_why(tmp_path: Path, changes: dict[str, Any], detail: str) -> None:
    run = make_run(tmp_path / "run", [reply("r")])
    assert score(run, recipe(save_student(tmp_path / "student", **changes))).statuses == {"student_cannot_render": 1}
    assert detail in rows(run)["r"]["status_detail"]


def test_a_tokenizer_that_loses_text_is_an_align_error_and_one_that_writes_it_otherwise_is_none(tmp_path: Path) -> None:
    lossy, lower = byte_level(), byte_level()
    lossy.normalizer, lower.normalizer = normalizers.Replace("three", ""), normalizers.Lowercase()
    replies = [reply("r"), reply("s", reasoning="no such word, so it passes", answer="yes it does")]
    run = make_run(tmp_path / "run", replies)
    assert score(run, recipe(save_student(tmp_path / "lossy", tokenizer=lossy))).statuses == {"align_error": 1, "ok": 1}
    assert rows(run)["r"]["status_detail"].startswith("student: no token covers 't'")
    run = make_run(tmp_path / "other", replies)
    assert score(run, recipe(save_student(tmp_path / "lower", tokenizer=lower))).statuses == {"ok": 2}


def test_a_rerun_scores_nothing_and_another_student_adds_rows(student: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", REPLIES)
    first = score(run, recipe(student))
    parts = [path.read_bytes() for path in run.parts("scores")]
    again = score(run, recipe(student), student=None)
    assert (again.scored, again.statuses, again.student_id) == (0, first.statuses, first.student_id)
    assert [path.read_bytes() for path in run.parts("scores")] == parts
    other = score(run, recipe(save_student(tmp_path / "other", seed=1)))
    assert other.scored == 5
    assert other.student_id != first.student_id
    assert run.rows("scores") == run.rows("sentences") == 10


def test_only_replies_to_prompts_by_teachers_are_scored(student: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, [reply("r"), reply("e", role="eval"), reply("q", "gone"), reply("m", role="mixed")])
    score(run, recipe(student))
    assert sorted(rows(run)) == ["m", "r"]


def test_a_crash_between_sentences_and_scores_leaves_no_duplicates(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, REPLIES)
    append = Run.append

    def crash(self: Run, name: str, table: Any, *, shard: int = 0) -> Path | None:
        if name == "scores":
            raise KeyboardInterrupt
        return append(self, name, table, shard=shard)

    monkeypatch.setattr(Run, "append", crash)
    with pytest.raises(KeyboardInterrupt):
        score(run, recipe(student))
    monkeypatch.undo()
    assert run.rows("sentences") == 5
    assert score(run, recipe(student)).scored == 5
    assert len(rows(run, "sentences")) == run.rows("sentences") == len(rows(run)) == 5


def test_token_ids_stand_in_where_token_texts_lose_bytes(student: Path, tmp_path: Path) -> None:
    row = reply("r", reasoning="A family 👩‍👩‍👧 is here. It has three people.", answer="漢字 are split too.")
    whole, lossy = logprobs(row), logprobs(row, lossy=True)
    assert lossy["token_end"] is None
    TEACHER.save(str(tmp_path / "tokenizer.json"))
    expected = make_run(tmp_path / "a", [row], [whole])
    score(expected, recipe(student))
    run = make_run(tmp_path / "b", [row], [lossy])
    assert score(run, recipe(student, tokenizer=str(tmp_path))).statuses == {"ok": 1}
    assert run.read("scores").equals(expected.read("scores"))
    assert run.read("sentences").equals(expected.read("sentences"))

    foreign = lossy | {"token_ids": [100_000] * len(lossy["token_ids"])}
    run = make_run(tmp_path / "c", [row], [foreign])
    score(run, recipe(student, tokenizer=str(tmp_path)))
    assert "token id 100000 is not in the tokenizer" in rows(run)["r"]["status_detail"]
    short = lossy | {"token_ids": lossy["token_ids"][1:]}
    run = make_run(tmp_path / "d", [row], [short])
    score(run, recipe(student, tokenizer=str(tmp_path)))
    assert f"there are {len(short['token_ids'])} token ids for" in rows(run)["r"]["status_detail"]


def test_every_part_is_read_once(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading all replies again for every chunk would be quadratic in the size of a run."""
    run = Run(tmp_path)
    run.append("prompts", columns_table("prompts", [prompt()]))
    many = [reply(f"r{i}") for i in range(6)]
    for row in many:
        run.append("responses", columns_table("responses", [row]))
        run.append("logprobs", columns_table("logprobs", [logprobs(row)]))
    monkeypatch.setattr(scoring, "_BLOCK_BYTES", 1)
    blocks = list(scoring._blocks(run.parts("responses")))
    assert [part for block in blocks for part in block] == run.parts("responses")
    missing = scoring._missing(run, "a student", (0, 1)).filter(pl.col("response_id").is_in(["r1", "r4"]))
    chunks = list(scoring._chunks(run, missing))
    assert [chunk["response_id"].to_list() for chunk in chunks] == [["r1"], ["r4"]]
    assert all(chunk["logprob"].null_count() == 0 for chunk in chunks)


def test_a_part_that_another_shard_adds_at_any_moment_costs_no_reply_its_logprobs(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "alone")
    run.append("prompts", columns_table("prompts", [prompt()]))
    run.append("responses", columns_table("responses", REPLIES), shard=1)
    for row in REPLIES:
        run.append("logprobs", columns_table("logprobs", [logprobs(row)]), shard=1)
    shutil.copytree(run.root, tmp_path / "beside")
    score(run, recipe(student))
    beside, listed, other = Run(tmp_path / "beside"), Run.parts, reply("another shard's")

    def parts(self: Run, name: str) -> list[Path]:
        """Of every listing of logprobs the next one begins with a part more."""
        found = listed(self, name)
        if name == "logprobs":
            rows = columns_table(name, [logprobs(other)])
            pq.write_table(rows.cast(self.schema(name)), self.table_dir(name) / f"part-000-{len(found):05d}.parquet")
        return found

    monkeypatch.setattr(Run, "parts", parts)
    score(beside, recipe(student))
    for table in ("scores", "sentences"):
        assert rows(run, table) == rows(beside, table)


def test_student_ids_of_scores_are_those_of_the_recipe(student: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, [reply("r")])
    named = recipe(student)
    assert score(run, named).student_id == student_id(named.require_student()) == rows(run)["r"]["student_id"]
