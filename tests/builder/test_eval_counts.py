"""Which replies are counted: those to questions that can be judged, each sample once, none without a verdict."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from builder.errors import VerifyError
from builder.eval_counts import counted, judged
from builder.eval_teacher import ceilings
from builder.schema import TABLES
from builder.store import Run, columns_table

Reply = tuple[str, int, str | None, str | None]
"""Question, sample, verdict, extracted answer."""


def run_of(folder: Path, replies: list[Reply], golds: dict[str, str | None], **more: Any) -> Run:
    run = Run(folder / "run")
    prompts = [
        {
            "prompt_id": name,
            "messages": [],
            "gold": gold,
            "verifier": gold and "math",
            "sources": [],
            "gold_conflicts": 0,
        }
        for name, gold in golds.items()
    ]
    run.replace("prompts", columns_table("prompts", prompts))
    add(run, replies, **more)
    return run


def add(run: Run, replies: list[Reply], prefix: str = "r", verifier: str = "math", **more: Any) -> None:
    base = {"role": "teacher", "model": "t", "temperature": 1.0, "finish_reason": "stop", "completion_tokens": 10}
    base |= {"reasoning_format": "none", "tool_calls": 0, "replaced_characters": 0, "prefix_chars": 0} | more
    rows = [
        base | {"response_id": f"{prefix}-{name}-{sample}", "prompt_id": name, "sample_index": sample}
        for name, sample, _, _ in replies
    ]
    run.append("responses", columns_table("responses", rows))
    verdicts = [
        {
            "response_id": f"{prefix}-{name}-{sample}",
            "verifier": verifier,
            "verifier_version": "1",
            "verdict": verdict,
            "extracted": extracted,
        }
        for name, sample, verdict, extracted in replies
        if verdict
    ]
    run.append("verdicts", columns_table("verdicts", verdicts))


def test_questions_without_gold_or_verdict_are_not_counted(tmp_path: Path) -> None:
    run = run_of(tmp_path, [("a", 0, "correct", "4"), ("b", 0, None, None)], {"a": "4", "b": None})
    found = counted(judged(run, "teacher"))
    assert (found.questions, found.replies, found.correct) == (1, 1, 1)
    assert judged(run, "eval").is_empty()


def test_a_prompt_for_the_judge_is_counted_where_it_judged_and_is_no_error_where_it_did_not(tmp_path: Path) -> None:
    run = run_of(tmp_path, [("a", 0, "correct", "4"), ("b", 0, None, None)], {"a": "4", "b": "5", "c": "6"})
    add(run, [("c", 0, "wrong", "7")], prefix="j", verifier="judge")
    prompts = run.read("prompts").with_columns(
        verifier=pl.when(pl.col("prompt_id") != "a").then(pl.lit("judge")).otherwise("verifier")
    )
    run.replace("prompts", prompts.to_arrow().cast(TABLES["prompts"].schema))
    assert judged(run, "teacher")["prompt_id"].to_list() == ["a", "c"]


def test_a_reply_without_a_verdict_beside_judged_ones_is_an_error(tmp_path: Path) -> None:
    run = run_of(tmp_path, [("a", 0, "correct", "4"), ("a", 1, None, None)], {"a": "4"})
    with pytest.raises(VerifyError, match="1 of 2 replies"):
        judged(run, "teacher")


def test_a_judges_verdict_decides_where_there_is_no_verifier(tmp_path: Path) -> None:
    run = run_of(tmp_path, [("a", 0, "correct", None), ("a", 1, "wrong", None)], {"a": None}, verifier="judge")
    found = counted(judged(run, "teacher"))
    assert (found.correct, found.replies, found.pass_at_1) == (1, 2, 0.5)
    assert found.at_k[-1].maj_at_k is None


def test_a_cut_reply_that_was_asked_again_at_a_larger_limit_is_not_counted_beside_it(tmp_path: Path) -> None:
    cut = {"finish_reason": "length", "max_tokens": 8, "seed": 1}
    run = run_of(tmp_path, [("a", 0, "wrong", None)], {"a": "4"}, **cut)
    assert counted(judged(run, "teacher")).cut == 1
    add(run, [("a", 0, "correct", "4")], prefix="again", max_tokens=16, seed=1)
    found = counted(judged(run, "teacher"))
    assert (found.replies, found.correct, found.cut) == (1, 1, 0)
    add(run, [("a", 0, "wrong", None)], prefix="other-seed", **cut | {"seed": 2})
    assert counted(judged(run, "teacher")).replies == 2


def test_replies_that_nobody_could_judge_are_not_correct_and_do_not_vote_as_right(tmp_path: Path) -> None:
    replies: list[Reply] = [("a", 0, "unscorable", "x"), ("a", 1, "timeout", "x"), ("a", 2, "correct", "4")]
    found = counted(judged(run_of(tmp_path, replies, {"a": "4"}), "teacher"))
    assert (found.unscorable, found.pass_at_1) == (2, pytest.approx(1 / 3))
    assert [one.maj_at_k for one in found.at_k] == [0, 0, 0]


def test_a_question_with_fewer_replies_is_left_out_of_larger_k_only(tmp_path: Path) -> None:
    replies: list[Reply] = [(name, sample, "wrong", "1") for name in "abc" for sample in range(4)]
    replies = [one for one in replies if one[:2] not in {("c", 2), ("c", 3)}]
    found = counted(judged(run_of(tmp_path, replies, dict.fromkeys("abc", "4")), "teacher"))
    assert [(one.k, one.questions) for one in found.at_k] == [(1, 3), (2, 3), (4, 2)]


def test_a_ceiling_is_counted_for_each_teacher_and_temperature(tmp_path: Path) -> None:
    run = run_of(tmp_path, [("a", 0, "correct", "4")], {"a": "4"})
    add(run, [("a", 0, "wrong", "5")], prefix="cool", temperature=0.6)
    add(run, [("a", 0, "wrong", "5")], prefix="other", model="/models/other/")
    add(run, [("a", 0, "wrong", "5")], prefix="student", role="student")
    found = ceilings(run)
    assert [(one.model, one.temperature, one.pass_at_1) for one in found] == [
        ("other", 1.0, 0), ("t", 0.6, 0), ("t", 1.0, 1)
    ]  # fmt: skip


def test_a_run_without_judged_teacher_replies_has_no_ceiling(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="no teacher reply"):
        ceilings(Run(tmp_path / "run"))
