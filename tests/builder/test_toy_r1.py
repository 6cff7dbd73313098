"""What the toy R1 process is made of: stories, how the base writes, and the program that rewrites and judges."""

import json
import random
from pathlib import Path

import pytest

from builder.ifeval import read_instructions
from builder.judge_prompt import ANSWER, PAIR, asked, parse_vote
from builder.rewrite_prompt import asked_to_rewrite
from builder.text import split_reasoning
from builder.toy.base import as_the_web_writes
from builder.toy.editor import reply_to, review
from builder.toy.general import CLEAR, VAGUE, measured_row, prompt_row, stories, tell
from builder.toy.materials import write_materials
from builder.toy.task import problems
from builder.verifiers import verify_answer


def test_stories_of_both_splits_share_no_number() -> None:
    train, held_out = stories(1000), stories(1000, 0, "held-out")
    assert not {one.numbers for one in train} & {one.numbers for one in held_out}
    assert len({one.question for one in train}) == 1000
    assert [one.question for one in stories(9, 1)] != [one.question for one in stories(9, 2)]


@pytest.mark.parametrize("template", [*CLEAR, *VAGUE])
def test_an_end_is_measured_by_the_things_it_names(template: str) -> None:
    problem = stories(1)[0]
    row = measured_row(problem)
    assert read_instructions(row["gold"]) and "gold" not in prompt_row(problem)
    verdict = verify_answer(row["gold"], "ifeval", template.format(items=problem.gold)).verdict
    assert verdict == ("correct" if template in CLEAR else "wrong")


def test_the_base_writes_right_and_wrong_sound_and_broken_in_one_language_and_in_two() -> None:
    asked_for = problems(300, 3)
    texts = [as_the_web_writes(problem, random.Random(place)) for place, problem in enumerate(asked_for)]
    answers = [split_reasoning(text)[1] or "" for text in texts]
    right = sum(problem.gold in answer for problem, answer in zip(asked_for, answers, strict=True))
    assert 0.2 < right / 300 < 0.6
    assert 0.1 < sum("先" in text for text in texts) / 300 < 0.6
    assert 0.1 < sum(text.count("<think>") + text.count("</think>") < 2 for text in texts) / 300 < 0.4


def test_most_stories_of_the_base_are_vague() -> None:
    asked_for = stories(216)
    texts = [as_the_web_writes(problem, random.Random(place)) for place, problem in enumerate(asked_for)]
    named = [one.gold in text.split("\n")[-1] for one, text in zip(asked_for, texts, strict=True)]
    assert 0.1 < sum(named) / len(named) < 0.4


def test_the_editor_rewrites_in_english_and_keeps_the_answer() -> None:
    thoughts = "先 take 3: ok.\n先 take 3: ok.\n再 add \ufffd1."
    row = {"messages": [{"role": "user", "content": "?"}], "reasoning": thoughts, "answer": "The answer is 4."}
    reasoning, answer, _ = split_reasoning(reply_to(asked_to_rewrite(row, 0).messages))
    assert reasoning == "First take 3: ok.\nThen add 1." and answer == "The answer is 4."


@pytest.mark.parametrize(("said", "verdict"), [("It is 27.", "correct"), ("It is 72.", "wrong"), ("No idea.", "wrong")])
def test_the_editor_judges_by_the_last_number(said: str, verdict: str) -> None:
    task = asked(ANSWER, {"QUESTION": "?", "REFERENCE": "27", "ANSWER": said}, 0)
    vote = parse_vote(reply_to(task.messages))
    assert vote and (vote.nonce, vote.verdict) == (task.nonce, verdict)


@pytest.mark.parametrize(
    ("one", "two"), [("Some pens.", "They have it now."), ("They all have it.", "He has."), ("In.", "At.")]
)
def test_the_editor_prefers_the_same_reply_in_both_orders(one: str, two: str) -> None:
    better = max((one, two), key=lambda text: ("pens" in text, len(text), text))
    for first, second in ((one, two), (two, one)):
        parts = {"QUESTION": "Mia finds 12 pens. How does this end?", "FIRST REPLY": first, "SECOND REPLY": second}
        vote = parse_vote(reply_to(asked(PAIR, parts, 0).messages))
        assert vote and vote.verdict == ("first" if first == better else "second")


def test_the_editor_prefers_the_right_number_where_there_is_a_reference() -> None:
    parts = {"QUESTION": "?", "REFERENCE": "27", "FIRST REPLY": "It is 26, I am sure of that.", "SECOND REPLY": "27"}
    vote = parse_vote(reply_to(asked(PAIR, parts, 0).messages))
    assert vote and vote.verdict == "second"


def test_a_review_keeps_three_sentences_and_drops_fewer(tmp_path: Path) -> None:
    path = tmp_path / "review.jsonl"
    path.write_text("".join(json.dumps({"response_id": n, "reasoning": "a.\n" * n + "b."}) + "\n" for n in (1, 2, 3)))
    review(path)
    assert [json.loads(line)["decision"] for line in path.read_text().splitlines()] == ["drop", "keep", "keep"]


def test_materials_are_the_same_every_time_and_ask_nothing_that_is_held_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_materials(tmp_path / name)
    files = {path.stem: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.stem: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    rows = {name: [json.loads(line) for line in text.splitlines()] for name, text in files.items()}
    asked_for = {row["prompt"] for row in rows["prompts"]}
    assert asked_for == {row["prompt"] for row in rows["questions"] + rows["general"]}
    assert not asked_for & {row["prompt"] for row in rows["held-out-questions"] + rows["held-out-stories"]}
    assert {len(row["messages"]) for row in rows["answers"]} == {2}


def test_an_end_may_have_thoughts() -> None:
    assert tell(stories(1)[0], random.Random(0), clear=1.0).count("<think>") == 1
