"""Adaptive resampling end to end: a scripted endpoint that knows how often each question must be asked."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import judge_toys
import pytest
import resample_toys
from endpoint import Ask, endpoint
from resample_toys import GOLDS, RIGHT_FROM, asked, knowing, recipe, said, sample_index, steps, write_questions

from builder import journal
from builder.errors import EndpointError
from builder.identity import prompt_id
from builder.judge_config import Judge
from builder.pipeline import Limits, Steps
from builder.recipe import load_recipe
from builder.resample import Outcome, Resampled, samples_meant
from builder.rules import catalogue
from builder.sqlrun import query
from builder.store import Run


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_questions(tmp_path)


def test_prompts_are_asked_again_until_enough_replies_are_correct_or_none_are_left(
    tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run")
    with endpoint(script=knowing) as server:
        steps(run, recipe(questions, server.url)).generate()
    # third: 2, then 2 more are both right. sixth: 2 + 2 + 2, one of them right. never: 6. the rest have nothing to tell
    assert asked(server) == {"easy": 2, "third": 4, "sixth": 6, "never": 6, "open": 2, "unreadable": 2}
    assert said(run) == Resampled(prompts=6, rounds=2, enough=2, lacking=1, unsolved=1, untold=2)
    out = capsys.readouterr().out
    assert "round 2: 3 prompts of 6 lack correct replies; 6 more asked" in out
    assert "round 3: 2 prompts of 6 lack correct replies; 4 more asked" in out
    assert "22 of 22 replies stored (22 now, 0 before)" in out
    assert "2 of 6 prompts have 2 correct replies at every temperature, 1 fewer after 6 samples, 1 not one" in out
    assert "2 were not asked again" in out
    rows = run.read("responses")
    identities = rows.select("prompt_id", "temperature", "sample_index").unique()
    assert identities.height == rows.height == 22


def test_a_rerun_asks_nothing_and_a_larger_limit_asks_only_the_rest(tmp_path: Path, questions: Path) -> None:
    run = Run(tmp_path / "run")
    with endpoint(script=knowing) as server:
        steps(run, recipe(questions, server.url)).generate()
        steps(run, recipe(questions, server.url)).generate()
        assert len(server.asks) == 22
        steps(run, recipe(questions, server.url, most=9)).generate()
        assert asked(server)["sixth"] == 7
        assert asked(server)["never"] == 9
    assert not any(ask.before for ask in server.asks)


def test_more_samples_for_all_use_what_rounds_have_asked(tmp_path: Path, questions: Path) -> None:
    run = Run(tmp_path / "run")
    with endpoint(script=knowing) as server:
        steps(run, recipe(questions, server.url)).generate()
        steps(run, recipe(questions, server.url, samples=5)).generate()
    assert asked(server) == {"easy": 5, "third": 5, "sixth": 6, "never": 6, "open": 5, "unreadable": 5}


@pytest.mark.parametrize("stops_after", [0, 11, 13, 21])
def test_a_call_that_ends_anywhere_goes_on_to_the_same_replies(
    tmp_path: Path, questions: Path, stops_after: int
) -> None:
    """Every request past a number is refused for good: what the rerun asks equals the rest of an undisturbed run."""
    run = Run(tmp_path / "run")

    def breaking(ask: Ask) -> Any:
        return knowing(ask) if ask.number < stops_after else 401

    with endpoint(script=breaking) as server, pytest.raises(EndpointError):
        steps(run, recipe(questions, server.url)).generate()
    with endpoint(script=knowing) as server:
        steps(run, recipe(questions, server.url)).generate()
        assert len(server.asks) == 22 - stops_after
    per_prompt = Counter(run.read("responses")["prompt_id"].to_list())
    assert sorted(per_prompt.values()) == [2, 2, 2, 4, 6, 6]
    found = said(run)
    assert found == Resampled(prompts=6, rounds=found.rounds, enough=2, lacking=1, unsolved=1, untold=2)


def test_a_spent_budget_ends_the_rounds_without_an_error(
    tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run")
    with endpoint(script=knowing) as server:
        enough_for_twelve = Limits(tokens=12 * 18 + 2 * 18 + 400)
        steps(run, recipe(questions, server.url), limits=enough_for_twelve).generate()
        assert 12 < len(server.asks) < 22
        found = said(run)
        assert found.limit is not None and found.limit.startswith("--max-tokens-total")
        assert found.enough + found.lacking + found.unsolved + found.untold == found.prompts == 6
        assert "resampling ended at --max-tokens-total" in capsys.readouterr().err
        steps(run, recipe(questions, server.url)).generate()
        assert len(server.asks) == 22


def test_shards_ask_what_one_call_asks_and_a_limit_only_its_prompts(tmp_path: Path, questions: Path) -> None:
    run = Run(tmp_path / "run")
    with endpoint(script=knowing) as server:
        for shard in range(2):
            steps(run, recipe(questions, server.url), shard=(shard, 2)).generate()
        assert asked(server) == {"easy": 2, "third": 4, "sixth": 6, "never": 6, "open": 2, "unreadable": 2}
    verdicts = run.read("verdicts", ["response_id", "verifier"])
    assert verdicts.unique().height == verdicts.height
    with endpoint(script=knowing) as server:
        steps(Run(tmp_path / "limited"), recipe(questions, server.url), limit=2).generate()
        assert asked(server) == {"easy": 2, "third": 4}


def test_every_temperature_needs_its_own_correct_replies(tmp_path: Path, questions: Path) -> None:
    run = Run(tmp_path / "run")

    def never_when_cold(ask: Ask) -> bytes:
        said = knowing(ask)
        return said.replace(b'"content": "7"', b'"content": "8"') if ask.body["temperature"] == 0.5 else said

    with endpoint(script=never_when_cold) as server:
        steps(run, recipe(questions, server.url, temperatures=[0.5, 1.0]), limit=1).generate()
    assert Counter(ask.body["temperature"] for ask in server.asks) == {0.5: 6, 1.0: 2}
    assert said(run) == Resampled(prompts=1, rounds=2, lacking=1)


def test_what_only_a_judge_can_tell_is_asked_again_by_its_verdicts(
    tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_toys.shorten(monkeypatch)
    easy = [f"easy {number}" for number in range(6)]
    rows = [{"prompt": name, "gold": "7", "gold_type": "number"} for name in [*easy, "never"]]
    rows.append({"prompt": "third", "gold": "7", "gold_type": "number", "verifier": "judge"})
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(resample_toys, "RIGHT_FROM", RIGHT_FROM | dict.fromkeys(easy, 0))
    honest = judge_toys.judging(judge_toys.honest)
    for has_judge, expect in ((False, 2), (True, 4)):
        with endpoint(script=knowing) as server, endpoint(script=honest, model="judge") as judging:
            given = recipe(questions, server.url)
            judge = Judge.model_validate({"model": "judge", "endpoints": [{"url": judging.url}]})
            run = Run(tmp_path / str(has_judge))
            steps(run, given.model_copy(update={"judge": judge if has_judge else None})).generate()
            assert (asked(server)["third"], bool(judging.asks)) == (expect, has_judge)
        assert said(run).untold == (not has_judge)


def test_a_prompt_that_the_endpoint_refuses_does_not_keep_the_rounds_going(tmp_path: Path, questions: Path) -> None:
    run = Run(tmp_path / "run")

    def script(ask: Ask) -> Any:
        refused = ask.question == "never" and sample_index("never", 1.0, ask.body["seed"]) >= 2
        return 400 if refused else knowing(ask)

    with endpoint(script=script) as server:
        steps(run, recipe(questions, server.url)).generate(strict=False)
        assert max(ask.before for ask in server.asks) <= 1
        assert len({ask.body["seed"] for ask in server.asks if ask.question == "never"}) == 6
    assert said(run) == Resampled(prompts=6, rounds=2, enough=2, lacking=1, unsolved=1, untold=2)
    assert journal.counts(run.journal_dir)["reply"] == 18


def test_a_call_that_dies_while_it_verifies_goes_on_there(
    tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, calls = Run(tmp_path / "run"), iter(range(9))
    verdicts = Steps._verdicts

    def dies_in_round_2(self: Steps) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return verdicts(self)

    monkeypatch.setattr(Steps, "_verdicts", dies_in_round_2)
    with endpoint(script=knowing) as server:
        with pytest.raises(KeyboardInterrupt):
            steps(run, recipe(questions, server.url)).generate()
        assert len(server.asks) == 12 + 6
        capsys.readouterr()
        steps(run, recipe(questions, server.url)).generate()
        assert len(server.asks) == 22
    assert "round 2: 2 prompts of 6 lack correct replies; 4 more asked" in capsys.readouterr().out
    assert not any(ask.before for ask in server.asks)


def test_the_smoke_recipe_keeps_correct_replies_of_hard_prompts_and_its_reports_say_what_it_cost(
    tmp_path: Path, questions: Path
) -> None:
    run = Run(tmp_path / "run")
    with endpoint(script=knowing, model=None) as server:
        given = load_recipe(
            "r1-reasoning-smoke", [f"prompts.0.source={questions}", f"teacher.endpoints=[{{url: '{server.url}'}}]"]
        )
        one = steps(run, given)
        one.generate()
        one.verify()
        one.select()
    kept = run.read("selection").join(run.read("responses"), left_on="grain_id", right_on="response_id")
    names = {prompt_id([{"role": "user", "content": name}]): name for name in GOLDS}
    found = Counter(names[prompt] for prompt in kept["prompt_id"])
    assert found == {"easy": 2, "third": 2, "sixth": 1}  # verdict_missing drops what has no gold
    reports = {name: catalogue("reports")[name].read_text("utf-8") for name in ("pass_rate", "difficulty_shift")}
    whole = query(run.database, reports["difficulty_shift"], {}).to_pylist()[0]
    assert (whole["prompts"], whole["kept_prompts"], whole["kept_rows"]) == (4, 3, 5)
    assert whole["mean_rate"] == pytest.approx((1 + 2 / 4 + 1 / 6 + 0) / 4)
    first = query(run.database, reports["pass_rate"], {"first_samples": 2}).to_pylist()
    assert [(row["from_rate"], row["prompts"]) for row in first if row["domain"] is None] == [
        (0.0, 3),
        (1.0, 1),
        (None, 2),
    ]


W, C, M, U = "wrong", "correct", "missing", "untold"


@pytest.mark.parametrize(
    ("outcomes", "meant"),
    [
        ([W, W, M, M, M, M], 4),  # two are missing: two more
        ([W, C, M, M, M, M], 3),  # one is missing: one more
        ([W, C, W, M, M, M], 4),
        ([C, C, M, M, M, M], 2),
        ([W, W, W, W, W, M], 6),  # never past the last
        ([W, W, W, W, W, W], 6),
        ([U, U, M, M, M, M], 2),  # nobody can tell
        ([U, W, M, M, M, M], 4),
        ([W, M, C, C, M, M], 4),  # index 1 was refused: tried, so not waited for
        ([W, W, M, W, C, M], 4),  # index 2 is not there yet: its round is not over
    ],
)
def test_samples_meant_follow_from_the_outcomes(outcomes: list[Outcome], meant: int) -> None:
    assert samples_meant(outcomes, 2, 2, tried=2) == meant


def test_what_this_call_tried_in_vain_is_not_waited_for() -> None:
    assert samples_meant([W, W, M, W, M, M], 2, 2, tried=4) == 6
