"""Evaluations: every question counted once, by the settings that were asked for; nothing is paid twice or guessed."""

import json
from pathlib import Path

import polars as pl
import pytest
from endpoint import Endpoint, endpoint, reply_to

from builder.config import Recipe
from builder.errors import EndpointError, TableError, VerifyError
from builder.eval_paired import paired
from builder.evaluate import (
    Benchmark,
    Evaluation,
    Sampling,
    evaluate,
    named_model,
    prepare,
    recounted,
    replies_of,
    stored,
)
from builder.section import PromptSource
from builder.statistics import paired_interval
from builder.store import Run
from builder.tally import Tally


def benchmark(folder: Path, gold: str | None = "4", gold_type: str = "number") -> Benchmark:
    rows = [{"prompt": f"Question {index}?", "gold": gold, "gold_type": gold_type} for index in range(5)]
    return written(folder, rows)


def written(folder: Path, rows: list[dict[str, str | None]], name: str = "questions") -> Benchmark:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Benchmark(name, [PromptSource(source=str(file))])


def recipe(**generation: object) -> Recipe:
    return Recipe.model_validate({"name": "toy", "generation": {"max_tokens": 64, **generation}})


def measured(
    run: Run, asked: Recipe, questions: Benchmark, server: Endpoint, *, samples: int = 1, **sampling: float
) -> Evaluation:
    model = named_model(asked, "toy")
    how = Sampling(samples=samples, **sampling)  # type: ignore[arg-type]
    return evaluate(prepare(run, asked, model, questions, how), endpoint=server.url)


def test_other_settings_are_another_evaluation_and_the_same_ones_pay_nothing(tmp_path: Path) -> None:
    run, questions = Run(tmp_path / "run"), benchmark(tmp_path)
    with endpoint() as server:
        for asked, paid in (({}, 5), ({"top_p": 0.9}, 10), ({"seed": 1}, 15), ({"max_tokens": 128}, 20), ({}, 20)):
            found = measured(run, recipe(**asked), questions, server)
            assert (found.questions, found.replies, len(server.asks)) == (5, 5, paid)
            assert 0 <= found.low <= found.pass_at_1 <= found.high <= 1


def test_more_samples_ask_only_for_the_new_ones(tmp_path: Path) -> None:
    run, questions = Run(tmp_path / "run"), benchmark(tmp_path)
    with endpoint() as server:
        assert measured(run, recipe(), questions, server).replies == 5
        found = measured(run, recipe(), questions, server, samples=3)
        assert (found.replies, len(server.asks)) == (15, 15)
        assert [one.k for one in found.at_k] == [1, 2, 3]
        assert measured(run, recipe(), questions, server).replies == 5


def test_samplings_own_top_p_and_limit_go_before_those_of_generation(tmp_path: Path) -> None:
    with endpoint() as server:
        found = measured(Run(tmp_path / "run"), recipe(), benchmark(tmp_path), server, top_p=0.5, max_tokens=32)
        assert {(ask.body["top_p"], ask.body["max_tokens"]) for ask in server.asks} == {(0.5, 32)}
    assert (found.settings["top_p"], found.settings["max_tokens"]) == (0.5, 32)


def test_a_question_without_a_reply_is_an_error_and_a_rerun_pays_only_for_it(tmp_path: Path) -> None:
    run, questions = Run(tmp_path / "run"), benchmark(tmp_path)
    with endpoint(script=lambda ask: 400 if ask.question == "Question 3?" else None) as server:
        with pytest.raises(EndpointError, match="toy on questions: 1 of 5 replies did not come"):
            measured(run, recipe(), questions, server)
        assert not list(run.eval_dir.glob("*.json"))
        server.script = lambda ask: None
        before = len(server.asks)
        assert measured(run, recipe(), questions, server).replies == 5
        assert [ask.question for ask in server.asks[before:]] == ["Question 3?"]


def test_a_model_that_ends_at_once_has_answered_and_an_endpoint_that_says_nothing_has_not(tmp_path: Path) -> None:
    run, questions, empty = Run(tmp_path / "run"), benchmark(tmp_path), {"message": {"content": ""}}
    body: dict[str, object] = {"choices": [{**empty, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
    with endpoint(script=lambda ask: json.dumps(body).encode() if ask.question == "Question 3?" else None) as server:
        found = measured(run, recipe(), questions, server)
        assert (found.replies, len(server.asks)) == (5, 5)
        rows = replies_of(run, found).read("verdicts").filter(pl.col("verdict") == "wrong")
        silent = replies_of(run, found).read("responses").filter(pl.col("answer").is_null())
        assert len(silent) == 1 and silent["response_id"][0] in rows["response_id"]
        body["usage"] = {"completion_tokens": 0}
        with pytest.raises(EndpointError, match=r"1 of 5 replies did not come .*empty reply, 6 times in a row"):
            measured(run, recipe(seed=1), questions, server)


@pytest.mark.parametrize(("gold", "gold_type"), [(None, "number"), ("  ", "number"), ("4", "reference_text")])
def test_questions_that_cannot_be_judged_are_refused_before_anything_is_sent(
    tmp_path: Path, gold: str | None, gold_type: str
) -> None:
    with endpoint() as server:
        with pytest.raises(VerifyError, match="None of the 5 questions of questions has a gold"):
            measured(Run(tmp_path / "run"), recipe(), benchmark(tmp_path, gold, gold_type), server)
        assert not server.asks


def test_questions_for_the_judge_are_left_out_before_anything_is_paid(tmp_path: Path) -> None:
    rows: list[dict[str, str | None]] = [
        {"prompt": "One?", "gold": "4", "gold_type": "number"},
        {"prompt": "Two?", "gold": "4", "gold_type": "number", "verifier": "judge"},
    ]
    with endpoint() as server:
        found = measured(Run(tmp_path / "run"), recipe(), written(tmp_path, rows), server)
        assert (found.questions, found.left_out, [ask.question for ask in server.asks]) == (1, 1, ["One?"])
        with pytest.raises(VerifyError, match="a judge is not asked about evaluations"):
            measured(Run(tmp_path / "run"), recipe(), written(tmp_path, rows[1:], "judged"), server)


def test_programs_are_not_asked_for_where_no_sandbox_can_judge_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.evaluate.sandbox_problem", lambda: "bwrap is not installed")
    with endpoint() as server:
        with pytest.raises(VerifyError, match="bwrap is not installed"):
            measured(Run(tmp_path / "run"), recipe(), benchmark(tmp_path, "assert f(1) == 1", "python_tests"), server)
        assert not server.asks


def test_repeated_questions_count_once_and_unreadable_ones_are_left_out_and_said(tmp_path: Path) -> None:
    rows: list[dict[str, str | None]] = [
        {"prompt": "One?", "gold": "4", "gold_type": "number"},
        {"prompt": "One?", "gold": "4", "gold_type": "number"},
        {"prompt": "Two?", "gold": "4", "gold_type": "number"},
        {"prompt": "Two?", "gold": "5", "gold_type": "number"},  # golds that disagree
        {"prompt": "Three?", "gold": None},
    ]
    with endpoint() as server:
        found = measured(Run(tmp_path / "run"), recipe(), written(tmp_path, rows), server)
        assert [ask.question for ask in server.asks] == ["One?"]
    assert (found.questions, found.replies, found.duplicates, found.left_out) == (1, 1, 2, 2)


def answering(answers: dict[str, list[str]]) -> Endpoint:
    """What the model answers to each question, sample after sample, as the endpoint is asked for them."""
    seen: dict[str, dict[int, str]] = {}

    def script(ask: object) -> bytes:
        body, question = ask.body, ask.question  # type: ignore[attr-defined]
        given = seen.setdefault(question, {})
        said = given.setdefault(body["seed"], answers[question][len(given) % len(answers[question])])
        reply = reply_to(body)
        reply["choices"][0]["message"]["content"] = said
        return json.dumps(reply).encode()

    return script  # type: ignore[return-value]


def test_counts_equal_those_worked_by_hand(tmp_path: Path) -> None:
    answers = {"Question 0?": ["4"] * 4, "Question 1?": ["4", "9", "9.0", "7"], "Question 2?": ["1", "2", "3", "5"]}
    rows: list[dict[str, str | None]] = [{"prompt": name, "gold": "4", "gold_type": "number"} for name in answers]
    with endpoint(script=answering(answers)) as server:  # type: ignore[arg-type]
        found = measured(Run(tmp_path / "run"), recipe(), written(tmp_path, rows), server, samples=4)
    assert (found.correct, found.replies) == (5, 12)
    assert found.pass_at_1 == pytest.approx((1 + 1 / 4 + 0) / 3)
    by_k = {one.k: one for one in found.at_k}
    assert by_k[1].pass_at_k == pytest.approx(found.pass_at_1)
    assert by_k[2].pass_at_k == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert by_k[4].pass_at_k == pytest.approx(2 / 3)
    assert by_k[4].maj_at_k == pytest.approx(1 / 3)  # 9 and 9.0 outvote the one right answer to question 1
    assert by_k[4].maj_low is not None and by_k[4].maj_low < 1 / 3


def test_there_is_no_majority_where_replies_are_not_answers(tmp_path: Path) -> None:
    questions = benchmark(tmp_path, '[{"id": "punctuation:no_comma", "kwargs": {}}]', "ifeval")
    with endpoint() as server:
        found = measured(Run(tmp_path / "run"), recipe(), questions, server, samples=2)
    assert found.correct == 10
    assert {(one.maj_at_k, one.maj_low, one.maj_high) for one in found.at_k} == {(None, None, None)}


def test_what_nobody_can_tell_is_not_correct_and_counted_apart(tmp_path: Path) -> None:
    with endpoint() as server:
        found = measured(Run(tmp_path / "run"), recipe(), benchmark(tmp_path, "}{ no number"), server)
    assert (found.correct, found.unscorable, found.pass_at_1) == (0, 5, 0)


def test_the_written_file_says_what_was_returned_and_is_found_again(tmp_path: Path) -> None:
    run, questions = Run(tmp_path / "run"), benchmark(tmp_path)
    with endpoint() as server:
        found = measured(run, recipe(), questions, server, samples=2)
    assert stored(run, "toy", "questions") == [found]
    assert stored(run, "toy", "others") == stored(run, "other", "questions") == []
    assert recounted(run, found) == found
    other = run.eval_dir / "notes.json"
    other.write_text("{}", encoding="utf-8")
    assert stored(run, "toy", "questions") == [found]
    for broken in ("7", "{", json.dumps(vars(found) | {"at_k": [{"k": 1}]})):
        other.write_text(broken, encoding="utf-8")
        with pytest.raises(TableError, match=r"notes\.json is no evaluation"):
            stored(run, "toy", "questions")


def test_an_evaluation_whose_questions_grew_without_replies_is_not_counted(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with endpoint() as server:
        found = measured(run, recipe(), benchmark(tmp_path), server)
        more = [{"prompt": f"Question {index}?", "gold": "4", "gold_type": "number"} for index in range(6)]
        server.script = lambda ask: 400
        with pytest.raises(EndpointError):
            measured(run, recipe(), written(tmp_path, more), server)  # type: ignore[arg-type]
    with pytest.raises(VerifyError, match="1 of 6 questions"):
        recounted(run, found)


def test_an_interrupted_evaluation_is_no_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, questions = Run(tmp_path / "run"), benchmark(tmp_path)
    monkeypatch.setattr("builder.evaluate.generate", lambda *_, **__: Tally(total=5, replies=3, stopped=True))
    with endpoint() as server, pytest.raises(KeyboardInterrupt):
        measured(run, recipe(), questions, server)
    assert not list(run.eval_dir.glob("*.json"))


def test_a_paired_difference_is_that_of_the_shares_of_each_question(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    names = [f"Question {index}?" for index in range(4)]
    rows: list[dict[str, str | None]] = [{"prompt": name, "gold": "4", "gold_type": "number"} for name in names]
    questions = written(tmp_path, rows)
    found = []
    for label, right in (("a", (4, 3, 1, 2)), ("b", (4, 1, 2, 2))):
        answers = {name: ["4"] * n + ["5"] * (4 - n) for name, n in zip(names, right, strict=True)}
        with endpoint(script=answering(answers)) as server:  # type: ignore[arg-type]
            model = named_model(recipe(), "toy", label)
            found.append(evaluate(prepare(run, recipe(), model, questions, Sampling(4)), endpoint=server.url))
    row = paired(run, *found)
    assert (row.model, row.against, row.questions, row.samples) == ("a", "b", 4, 4)
    assert (row.won, row.lost, row.verdict) == (1, 1, "no difference shown")
    assert (row.difference, row.low, row.high) == pytest.approx(paired_interval([0, 0.5, -0.25, 0], step=0.25))
    assert row.would_see == pytest.approx((row.high - row.low) / 2)


def test_a_recipe_that_names_benchmarks_makes_the_same_release(tmp_path: Path) -> None:
    plain = {"name": "toy", "prompts": [{"source": "q.jsonl"}]}
    named = plain | {"evaluation": {"benchmarks": {"aime": {"source": "aime.jsonl"}}, "samples": 8}}
    assert Recipe.model_validate(named).hash() == Recipe.model_validate(plain).hash()
    assert "evaluation" not in Recipe.model_validate(named).decisive()
