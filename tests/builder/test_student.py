"""The student's tokenizer: rendering as the trainer does, which bytes its tokens cover, what cannot be loaded."""

from pathlib import Path

import pytest
import torch
from score_toys import CHATML, REPLIES, make_run, prompt, recipe, reply, save_student

from builder.config import Student
from builder.errors import ScoreError
from builder.local_student import LocalStudent
from builder.score import score
from builder.student import CannotRender, StudentTokenizer
from builder.text import canonical_text
from builder.tokens import AlignError

torch.set_num_threads(1)


@pytest.mark.parametrize("opening", ["<think>\n", "<think>", "<think>\n\n", "<think> "])
def test_a_template_that_opens_the_think_block_is_not_answered_twice(tmp_path: Path, opening: str) -> None:
    folder = save_student(tmp_path / "student", template=CHATML + f"{{{{ {opening!r} }}}}")
    local = LocalStudent(Student(model=str(folder), dtype="float32"))
    rendered = local.render(prompt()["messages"], "why so", "three")
    whole = b"".join(local._pieces[i] for i in rendered.prompt_ids + rendered.completion_ids).decode()
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


def test_a_student_without_revision_is_refused() -> None:
    with pytest.raises(ScoreError, match="'org/student' is not pinned"):
        LocalStudent(Student(model="org/student"))


def test_a_broken_student_is_a_score_error(student: Path, tmp_path: Path) -> None:
    folder = save_student(tmp_path / "student")
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ScoreError, match="cannot be loaded"):
        LocalStudent(Student(model=str(folder)))


@pytest.mark.parametrize(
    ("template", "reasoning", "written"),
    [
        (CHATML, "why </think> so", "<think>\nwhy </think> so\n</think>\n\nthree"),
        (CHATML.replace("m.content", "m.content.split('</think>')[-1]"), "why", "<think>\nwhy\n</think>\n\nthree"),
        (CHATML + "{{ 'Answer: ' }}", "why", "<think>\nwhy\n</think>\n\nthree"),
        (CHATML + "{{ '<think>\\n' }}", "why", "why\n</think>\n\nthree"),
        (CHATML + "{{ '<think>\\n\\n</think>\\n\\n' }}", None, "three"),
    ],
    ids=["plain", "strips-thinking", "adds-text", "opens", "closes"],
)
def test_no_template_rewrites_a_reply(tmp_path: Path, template: str, reasoning: str | None, written: str) -> None:
    """The template makes the prompt; the reply is text behind it, and its tokens cover it."""
    tokens = StudentTokenizer(Student(model=str(save_student(tmp_path / "student", template=template))))
    messages = [
        {"role": "user", "content": "What is 1 + 2?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n4"},
        {"role": "user", "content": "Sure?"},
    ]
    row = tokens.render(messages, reasoning, "three")
    assert row.completion == b"".join(row.pieces).decode() == written
    spans = tokens.align(row, reasoning, "three")
    text = canonical_text(reasoning, "three").encode()
    assert b"".join(text[start:stop] for start, stop in spans.tolist()) == text
    assert spans[-1].tolist()[1] == len(text)


def test_a_template_that_writes_the_first_characters_of_a_reply_leaves_it_without_spans(tmp_path: Path) -> None:
    folder = save_student(tmp_path / "student", template=CHATML + "{{ '<think>\\n\\n' }}")
    tokens = StudentTokenizer(Student(model=str(folder)))
    row = tokens.render(prompt()["messages"], "\nwhy", "three")
    with pytest.raises(AlignError, match="the chat template has written a part of it"):
        tokens.align(row, "\nwhy", "three")
