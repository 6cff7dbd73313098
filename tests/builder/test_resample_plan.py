"""What `builder plan` says of rounds until enough replies are correct, and which recipes ask for them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from endpoint import endpoint
from resample_toys import knowing, recipe, steps, write_questions

from builder.config import Recipe
from builder.console import Reporter
from builder.errors import UsageError
from builder.plan import make_plan
from builder.recipe import load_recipe
from builder.show_plan import show_plan
from builder.store import Run


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_questions(tmp_path)


def test_plan_says_the_least_and_the_most_and_narrows_as_verdicts_come(
    tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run")
    fresh = make_plan(run, recipe(questions, "http://127.0.0.1:9/v1"))
    assert (fresh.need.missing, fresh.rounds_least, fresh.rounds_most) == (12, 0, 5 * 4)  # `open` has no gold
    assert fresh.at_most_tokens == 32 * 64
    needy = make_plan(run, recipe(questions, "http://127.0.0.1:9/v1", correct=3))
    assert (needy.rounds_least, needy.rounds_most) == (5, 20)
    with endpoint(script=knowing) as server:
        given = recipe(questions, server.url)
        plain = given.model_copy(update={"generation": given.generation.model_copy(update={"until_correct": None})})
        steps(run, plain).generate()
        unjudged = make_plan(run, given)
        assert (unjudged.need.missing, unjudged.rounds_least, unjudged.rounds_most) == (0, 0, 20)
        steps(run, plain).verify()
        judged = make_plan(run, given)
        assert (judged.rounds_least, judged.rounds_most) == (6, 12)
        assert judged.completion_tokens is not None and judged.completion_tokens_most is not None
        assert (judged.completion_tokens.value, judged.completion_tokens_most.value) == (6 * 7, 12 * 7)
        assert judged.cost_usd_most is not None
        assert judged.cost_usd_most.value == pytest.approx(12 * (11 * 1.0 + 7 * 10.0) / 1e6)
        capsys.readouterr()
        show_plan(Reporter(), given, judged)
        out = capsys.readouterr().out
        assert re.search(r"rounds until 2 correct\s+6 … 12\s", out) and re.search(r"to send\s+6 … 12\s", out)
        steps(run, given).generate()
        done = make_plan(run, given)
        assert (done.need.missing, done.rounds_least, done.rounds_most) == (0, 0, 0)


def test_a_source_that_was_not_read_is_planned_from_its_declared_rows(tmp_path: Path, questions: Path) -> None:
    given = recipe(questions, "http://127.0.0.1:9/v1").model_dump()
    given["prompts"] = [{"source": "hf://datasets/org/name", "rows": 1000}]
    found = make_plan(Run(tmp_path / "run"), Recipe.model_validate(given))
    assert (found.need.total, found.rounds_least, found.rounds_most) == (2000, 0, 4000)


def test_recipes_without_it_keep_their_hash_and_a_range_that_asks_nothing_is_refused(
    tmp_path: Path, questions: Path
) -> None:
    plain = Recipe.model_validate({"name": "toy"})
    assert "until_correct" not in plain.resolved()["generation"]
    path = tmp_path / "toy.yaml"
    path.write_text(f"name: toy\nprompts: [{{source: {questions}}}]\nteacher: {{model: toy}}\n")
    load: Callable[..., Recipe] = lambda *given: load_recipe(path, list(given))  # noqa: E731
    loaded = load("generation.until_correct={correct: 2, samples: 8}")
    assert loaded.hash() != load().hash()
    for wrong_range, words in (
        ("{correct: 2, samples: 4}", "leaves nothing to ask beyond samples 4"),
        ("{correct: 9, samples: 8}", "no prompt could ever have so many"),
        ("{correct: 0, samples: 8}", "greater than or equal to 1"),
        ("{corect: 2, samples: 8}", "did you mean 'correct'"),
    ):
        with pytest.raises(UsageError, match=words):
            load(f"generation.until_correct={wrong_range}")
