"""A judge decides what no verifier can, once it is seen to be right: its votes are paid once and read strictly."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint, endpoint
from judge_toys import (
    BROKEN,
    ESSAY,
    NAMED,
    OPEN,
    RULES,
    SUMS,
    honest,
    judge_replies,
    judge_verdicts,
    judging,
    lenient,
    obedient,
    parts_of,
    prompt,
    recipe_of,
    reply,
    run_of,
    said,
    shorten,
    steps,
)

from builder.config import Recipe, Selection
from builder.errors import EndpointError, UsageError, VerifyError
from builder.judge import open_replies
from builder.judge_answer import LONGEST_CANDIDATE
from builder.release_rows import deciding_verdicts
from builder.sqlrun import query
from builder.staging import build_staging
from builder.store import Run, columns_table
from builder.verify import verify


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


def test_an_honest_judge_decides_what_no_verifier_can(tmp_path: Path) -> None:
    run = run_of(tmp_path, reply("e-rules", RULES, "a, b"))
    with endpoint(script=judging(honest)) as server:
        recipe = recipe_of(server)
        steps(run, recipe).verify()
        asked = len(server.asks)
        steps(run, recipe).verify()
        assert len(server.asks) == asked
    assert judge_verdicts(run) == {
        "a-essay": ("correct", ["judge:correct"] * 3),
        "b-essay": ("wrong", ["judge:wrong"] * 3),
        "c-named": ("correct", ["judge:correct"] * 3),
        "d-broken": ("wrong", ["judge:wrong"] * 3),
    }
    (version,) = set(run.read("verdicts").filter(verifier="judge")["verifier_version"])
    assert version.endswith(" toy 3 votes at 0.6")
    rows = run.read("responses").filter(role="judge")
    assert set(rows["prompt_id"]) <= {row["prompt_id"] for row in [*SUMS, ESSAY, NAMED, BROKEN]}
    assert set(zip(rows["temperature"], rows["model"], strict=True)) == {(0.6, "toy")}


def test_what_is_sent_is_schema_constrained_seeded_and_without_logprobs(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with endpoint(script=judging(honest)) as server:
        more = {"reasoning_effort": "low", "extra_body": {"top_k": 20}, "prices": {"input": 1, "output": 10}}
        steps(run, recipe_of(server, max_tokens=99, **more)).verify()
        bodies = [ask.body for ask in server.asks]
    costs = set(run.read("responses").filter(role="judge")["cost_usd"])
    assert costs == {(100 * 1 + 10 * 10) / 1e6}
    assert {len({json.dumps(one["messages"]) for one in bodies}) * 3} == {len(bodies)}
    for one in bodies:
        assert one["response_format"]["json_schema"]["schema"]["required"] == ["nonce", "analysis", "verdict"]
        assert (one["temperature"], one["max_tokens"], one["reasoning_effort"], one["top_k"]) == (0.6, 99, "low", 20)
        assert "logprobs" not in one
        assert [message["role"] for message in one["messages"]] == ["system", "user"]
    assert len({(json.dumps(one["messages"]), one["seed"]) for one in bodies}) == len(bodies)


def test_without_response_format_none_is_sent(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with endpoint(script=judging(honest)) as server:
        steps(run, recipe_of(server, response_format="none")).verify()
        assert not any("response_format" in ask.body for ask in server.asks)


def test_the_same_answer_to_a_question_is_asked_about_once(tmp_path: Path) -> None:
    copies = [reply(f"copy{number}", ESSAY, OPEN[1]["answer"], reasoning=f"thought {number}") for number in range(5)]
    run = run_of(tmp_path, *copies)
    with endpoint(script=judging(honest)) as server:
        steps(run, recipe_of(server)).verify()
        assert Counter(ask.before for ask in server.asks) == {0: len(server.asks)}
    assert all(judge_verdicts(run)[f"copy{number}"] == judge_verdicts(run)["b-essay"] for number in range(5))


def test_a_judge_sees_the_final_part_alone(tmp_path: Path) -> None:
    cut = reply("f-cut", NAMED, "It is 5, or \\boxed{27", finish_reason="length")
    boxed = reply("g-boxed", NAMED, "First \\boxed{27} and then", finish_reason="length")
    tagged = reply("h-tagged", NAMED, "<think>27</think> It is 5.", reasoning="It is 27.")
    long = reply("i-long", NAMED, "x" * (LONGEST_CANDIDATE + 1))
    run = run_of(tmp_path, cut, boxed, tagged, long, reply("j-none", NAMED, None))
    with endpoint(script=judging(honest)) as server:
        steps(run, recipe_of(server)).verify()
        seen = {parts_of(ask)[0]["ANSWER"] for ask in server.asks}
    found = judge_verdicts(run)
    assert found["f-cut"] == ("wrong", ["empty:wrong"])
    assert found["g-boxed"][0] == "correct"
    assert found["h-tagged"][0] == "wrong"
    assert found["i-long"] == ("unscorable", ["too_long:unscorable"])
    assert found["j-none"] == ("wrong", ["empty:wrong"])
    assert "27" in seen
    assert not any("<think>" in text or "xxx" in text for text in seen)


@pytest.mark.parametrize(
    ("character", "words"),
    [
        (lenient, "wrong answers correct (100.0%)"),
        (lambda parts, nonce: said(nonce, "wrong"), "right answers wrong (100.0%)"),
        (obedient, "wrong answers that give it orders correct"),
        (lambda parts, nonce: "The answer is correct.", "gave no verdict on any"),
        (lambda parts, nonce: f"Sure! {honest(parts, nonce)}", "gave no verdict on any"),
        (lambda parts, nonce: honest(parts, "0" * 16), "gave no verdict on any"),
    ],
    ids=["lenient", "harsh", "obedient", "garbage", "chatty", "no nonce"],
)
def test_a_judge_that_errs_on_known_answers_decides_nothing(tmp_path: Path, character: Any, words: str) -> None:
    run = run_of(tmp_path)
    with endpoint(script=judging(character)) as server:
        recipe = recipe_of(server)
        with pytest.raises(VerifyError, match="The judge is not believed") as caught:
            steps(run, recipe).verify()
        assert words in str(caught.value)
        assert "10.0%" in str(caught.value)
        asked = len(server.asks)
        with pytest.raises(VerifyError):
            steps(run, recipe).verify()
        assert len(server.asks) == asked == judge_replies(run)
    assert judge_verdicts(run) == {}
    assert run.read("verdicts")["verifier"].unique().to_list() == ["math"]


def test_another_judge_or_another_gold_decides_anew(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with endpoint(script=judging(honest), model=None) as server:
        steps(run, recipe_of(server)).verify()
        first = set(run.read("verdicts").filter(verifier="judge")["verifier_version"])
        steps(run, recipe_of(server, model="other")).verify(calibrate=True)
        assert set(run.read("verdicts").filter(verifier="judge")["verifier_version"]) == first
        steps(run, recipe_of(server, model="other")).verify()
        rows = run.read("verdicts").filter(verifier="judge")
        assert rows.height == 4
        assert len(set(rows["verifier_version"])) == 1
        assert set(rows["verifier_version"]).isdisjoint(first)
        prompts = [{**row, "gold": "25"} if row == NAMED else row for row in [*SUMS, ESSAY, NAMED, BROKEN, RULES]]
        run.replace("prompts", columns_table("prompts", prompts))
        recipe = recipe_of(server, model="other")
        assert open_replies(run, recipe)["response_id"].to_list() == ["c-named"]
        steps(run, recipe).verify()
    assert judge_verdicts(run)["c-named"][0] == "wrong"


@pytest.mark.parametrize(
    "change",
    [
        {"model": "b"},
        {"revision": "r"},
        {"votes": 5},
        {"temperature": 0.7},
        {"max_tokens": 9},
        {"reasoning_effort": "low"},
        {"response_format": "none"},
        {"extra_body": {"top_k": 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_decides_a_vote_is_in_the_version(change: dict[str, Any]) -> None:
    from builder.judge import judge_version

    server = Endpoint(url="http://127.0.0.1:1/v1")
    plain, other = recipe_of(server), recipe_of(server, **change)
    assert judge_version(plain) != judge_version(other)
    elsewhere = recipe_of(server, endpoints=[{"url": "http://b:1/v1"}], prices={"input": 1, "output": 1})
    assert judge_version(plain) == judge_version(elsewhere)
    assert judge_version(plain.model_copy(update={"name": "x"})) == judge_version(plain)


def test_the_named_judge_decides_in_sql_and_in_a_release(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with endpoint(script=judging(honest)) as server:
        steps(run, recipe_of(server)).verify()
    build_staging(run, {})
    rows = query(run.database, "select response_id, verdict from stg_verdicts where decides").to_pylist()
    decides = {row["response_id"]: row["verdict"] for row in rows}
    assert decides == dict(deciding_verdicts(run).select("response_id", "verdict").collect().iter_rows())
    assert (decides["a-essay"], decides["b-essay"], decides["c-named"]) == ("correct", "wrong", "correct")


def test_a_single_reply_is_verified_beside_the_verdicts_of_others(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.append("prompts", columns_table("prompts", [SUMS[0]]))
    run.append("responses", columns_table("responses", [reply("only", SUMS[0], "It is 17.")]))
    foreign = [
        {"response_id": f"r{number}", "verifier": "published", "verifier_version": "1", "verdict": "wrong"}
        for number in range(3)
    ]
    run.append("verdicts", columns_table("verdicts", foreign))
    assert verify(run).verdicts == {"correct": 1}
    assert run.read("verdicts").height == 4


def test_prompts_that_name_a_judge_need_one(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with pytest.raises(UsageError, match="no `judge` section"):
        steps(run, Recipe.model_validate({"name": "toy", "teacher": {"model": "m"}})).verify()
    assert run.read("verdicts").filter(verifier="math").height == 13


def test_a_judge_without_an_endpoint_or_under_another_name_is_named_in_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    run = run_of(tmp_path)
    with endpoint(script=judging(honest), model="other") as server:
        with pytest.raises(EndpointError, match=r"Set judge\.model to the name"):
            steps(run, recipe_of(server)).verify()
        with pytest.raises(UsageError, match=r"pass judge\.endpoints\.0\.url"):
            steps(run, recipe_of(server, endpoints=[])).verify()


def test_without_anything_known_to_be_wrong_a_judge_is_not_asked(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.append("prompts", columns_table("prompts", [ESSAY]))
    run.append("responses", columns_table("responses", [OPEN[0]]))
    with (
        endpoint(script=judging(honest)) as server,
        pytest.raises(VerifyError, match="no answer is known to be wrong"),
    ):
        steps(run, recipe_of(server)).verify()
    assert server.asks == []


def test_imported_replies_without_a_teacher_can_be_judged(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with endpoint(script=judging(honest)) as server:
        recipe = recipe_of(server).model_copy(update={"teacher": None})
        steps(run, recipe).verify()
    assert len(judge_verdicts(run)) == 4


def test_only_replies_that_a_release_may_hold_are_judged(tmp_path: Path) -> None:
    more = [
        reply(f"r-{role}", NAMED, "It is 27.", role=role) for role in ("student", "eval", "mixed", "rewrite", "judge")
    ]
    run = run_of(tmp_path, *more, prompts=(prompt("open", None, "number", "judge"),))
    with endpoint(script=judging(honest)) as server:
        steps(run, recipe_of(server)).verify()
    assert {name for name in judge_verdicts(run) if name.startswith("r-")} == {"r-mixed", "r-rewrite"}


def test_replies_of_a_judge_change_no_selection_and_are_no_candidates(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with endpoint(script=judging(honest)) as server:
        rules = {"rules": ["answer_wrong", "response_duplicate", "pass_rate_outside"], "selector": "longest"}
        recipe = recipe_of(server).model_copy(update={"selection": Selection(**rules)})
        verify(run)
        before = steps(run, recipe.model_copy(update={"judge": None})).select()
        steps(run, recipe_of(server)).verify(calibrate=True)
        assert judge_replies(run) > 30
        after = steps(run, recipe).select()
        assert replace(after, new_features=0) == replace(before, new_features=0)
    candidates = query(run.database, "select distinct role from stg_candidates").to_pylist()
    assert candidates == [{"role": "teacher"}]
    rejected = query(run.database, "select distinct role from stg_rejections join stg_responses using (response_id)")
    assert rejected.to_pylist() == [{"role": "teacher"}]
