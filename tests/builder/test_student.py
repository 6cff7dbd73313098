"""The local student: rendering as the trainer does, logprobs by chunks, models that cannot serve."""

from pathlib import Path

import numpy as np
import pytest
import torch
from score_toys import CHATML, REPLIES, make_run, prompt, recipe, reply, save_student

from builder import local_student as students
from builder.config import Student
from builder.errors import ScoreError
from builder.local_student import LocalStudent
from builder.score import score
from builder.student import CannotRender, StudentTokenizer

torch.set_num_threads(1)


@pytest.mark.parametrize("opening", ["<think>\n", "<think>", "<think>\n\n", "<think> "])
def test_a_template_that_opens_the_think_block_is_not_answered_twice(tmp_path: Path, opening: str) -> None:
    folder = save_student(tmp_path / "student", template=CHATML + f"{{{{ {opening!r} }}}}")
    local = LocalStudent(Student(model=str(folder), dtype="float32"))
    rendered = local.render(prompt()["messages"], "why so", "three")
    whole = b"".join(local._bytes[i] for i in rendered.prompt_ids + rendered.completion_ids).decode()
    assert whole.count("<think>") == 1
    expected = {"<think>": "<think>\n", "<think> ": "<think> \n"}.get(opening, opening)
    assert whole.endswith(f"{expected}why so\n</think>\n\nthree")
    with pytest.raises(CannotRender, match="opens a think block, but the reply has no reasoning"):
        local.render(prompt()["messages"], None, "three")
    run = make_run(tmp_path / "run", [reply("r")])
    assert score(run, recipe(folder)).statuses == {"ok": 1}


def test_rendering_needs_no_weights(tmp_path: Path) -> None:
    folder = save_student(tmp_path / "student", positions=300)
    local = LocalStudent(Student(model=str(folder)))
    expected = [local.render(prompt()["messages"], row["reasoning"], row["answer"]) for row in REPLIES]
    (folder / "model.safetensors").unlink()
    tokens = StudentTokenizer(Student(model=str(folder)))
    assert [tokens.render(prompt()["messages"], row["reasoning"], row["answer"]) for row in REPLIES] == expected
    assert (tokens.context, tokens.vocabulary) == (local.context, local.vocabulary) == (300, len(tokens.tokenizer))
    text, ids = tokens.prompt(prompt()["messages"])
    assert text.endswith("<|im_start|>assistant\n")
    assert ids == expected[0].prompt_ids == tokens.ids(text)


@pytest.mark.parametrize("cap", [None, 5.0])
def test_logits_by_chunks_equal_whole_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: float | None
) -> None:
    """With a soft cap the output embedding alone is not the model's distribution."""
    folder = save_student(tmp_path / "student", cap=cap)
    local = LocalStudent(Student(model=str(folder), dtype="float32"))
    assert local._chunked
    rendered = [local.render(prompt()["messages"], row["reasoning"], row["answer"]) for row in REPLIES]
    monkeypatch.setattr(students, "_HEAD_POSITIONS", 4)
    found = local.logprobs(rendered)
    for row, values in zip(rendered, found, strict=True):
        with torch.no_grad():
            logits = local.model(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0].double()
        every = torch.log_softmax(logits, -1)[len(row.prompt_ids) - 1 : -1]
        expected = [every[i, token].item() for i, token in enumerate(row.completion_ids)]
        assert values == pytest.approx(expected, abs=2e-5)
        assert values.dtype == np.float32


def test_a_head_that_is_not_understood_is_not_used_apart(tmp_path: Path) -> None:
    """Without the cap that its configuration names, the chunked head would be wrong: the probe has to see it."""
    local = LocalStudent(Student(model=str(save_student(tmp_path / "student", cap=5.0)), dtype="float32"))
    capped = local.logprobs([local.render(prompt()["messages"], "why so", "three")])[0]
    local._cap = None
    assert not local._head_stands_apart()
    local._chunked = False
    assert local.logprobs([local.render(prompt()["messages"], "why so", "three")])[0] == pytest.approx(capped, abs=1e-5)


def test_logits_of_a_long_reply_never_exist_at_once(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = LocalStudent(Student(model=str(student), dtype="float32"))
    shapes = []
    head = local._head
    monkeypatch.setattr(local, "_head", lambda hidden: shapes.append(hidden.shape[0]) or head(hidden))
    rendered = local.render(prompt()["messages"], "One and two make three. " * 250, "3")
    assert len(local.logprobs([rendered])[0]) == len(rendered.completion_ids)
    assert sum(shapes) == len(rendered.completion_ids) > max(shapes) == 1024


def test_a_student_without_revision_is_refused() -> None:
    with pytest.raises(ScoreError, match="'org/student' is not pinned"):
        LocalStudent(Student(model="org/student"))


def test_a_broken_student_is_a_score_error(student: Path, tmp_path: Path) -> None:
    folder = save_student(tmp_path / "student")
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ScoreError, match="cannot be loaded"):
        LocalStudent(Student(model=str(folder)))
