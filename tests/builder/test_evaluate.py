"""pass@1: every question counted once, by the settings that were asked for."""

import json
from pathlib import Path

import pytest
from endpoint import endpoint

from builder.config import Recipe
from builder.errors import EndpointError, VerifyError
from builder.evaluate import evaluate
from builder.section import PromptSource
from builder.store import Run


def benchmark(folder: Path, gold: str | None = "4") -> PromptSource:
    rows = [{"prompt": f"Question {index}?", "gold": gold, "gold_type": "number"} for index in range(5)]
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return PromptSource(source=str(file))


def recipe(**generation: object) -> Recipe:
    return Recipe.model_validate({"name": "toy", "generation": {"max_tokens": 64, **generation}})


def test_other_settings_are_another_evaluation_and_the_same_ones_pay_nothing(tmp_path: Path) -> None:
    run, questions = Run(tmp_path / "run"), benchmark(tmp_path)
    with endpoint() as server:
        for asked, paid in (({}, 5), ({"top_p": 0.9}, 10), ({"seed": 1}, 15), ({"max_tokens": 128}, 20), ({}, 20)):
            found = evaluate(run, recipe(**asked), "toy", questions=questions, endpoint=server.url)
            assert (found.questions, found.replies, len(server.asks)) == (5, 5, paid)
            assert 0 <= found.low <= found.pass_at_1 <= found.high <= 1


def test_more_samples_ask_only_for_the_new_ones(tmp_path: Path) -> None:
    run, questions = Run(tmp_path / "run"), benchmark(tmp_path)
    with endpoint() as server:
        assert evaluate(run, recipe(), "toy", questions=questions, endpoint=server.url).replies == 5
        found = evaluate(run, recipe(), "toy", questions=questions, endpoint=server.url, samples=3)
        assert (found.replies, len(server.asks)) == (15, 15)
        assert evaluate(run, recipe(), "toy", questions=questions, endpoint=server.url).replies == 5


def test_a_question_without_a_reply_is_an_error_and_never_a_smaller_benchmark(tmp_path: Path) -> None:
    with (
        endpoint(script=lambda ask: 400 if ask.question == "Question 3?" else None) as server,
        pytest.raises(EndpointError, match="1 of 5 questions got no reply"),
    ):
        evaluate(Run(tmp_path / "run"), recipe(), "toy", questions=benchmark(tmp_path), endpoint=server.url)


def test_questions_without_golds_cannot_be_counted(tmp_path: Path) -> None:
    with endpoint() as server, pytest.raises(VerifyError, match="gold"):
        evaluate(Run(tmp_path / "run"), recipe(), "toy", questions=benchmark(tmp_path, None), endpoint=server.url)
