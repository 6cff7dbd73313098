"""Preference pairs: every judged one is kept and paid once, and SQL decides what a reward stage takes of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from endpoint import Ask, Endpoint, endpoint
from hypothesis import given
from hypothesis import strategies as st
from judge_toys import (
    ESSAY,
    SUMS,
    body,
    honest,
    is_right,
    judging,
    lenient,
    parts_of,
    reply,
    run_of,
    said,
    shorten,
    steps,
)
from pydantic import ValidationError

from builder import flow
from builder.config import Recipe
from builder.errors import BudgetError, EndpointError, TableError, UsageError, VerifyError
from builder.pairs import _neighbours
from builder.store import Run, columns_table
from builder.verify import verify

MORE_WRONG = [reply(f"tie-{place}", SUMS[1], f"It is {place}.") for place in range(2)]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


def recipe_of(server: Endpoint, *, judge: dict[str, Any] | None = None, **preference: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "toy",
            "teacher": {"model": "m"},
            "judge": {"model": "toy", "endpoints": [{"url": server.url, "max_in_flight": 4}], **(judge or {})},
            "selection": {"rules": ["response_truncated"], "selector": "random"},
            "stages": {"preference": {"kind": "reward"}},
            "preference": {"equal_lengths": False, **preference},
        }
    )


def verified(folder: Path, *more: dict[str, Any]) -> Run:
    """Six sums and an essay with a right and a wrong reply each, two questions with a single reply."""
    run = run_of(folder, *more)
    verify(run)
    return run


def rows(run: Run) -> dict[tuple[str, str], tuple[list[str], float]]:
    return {
        (row["chosen_id"], row["rejected_id"]): (row["votes"], row["gap"])
        for row in run.read("pairs").iter_rows(named=True)
    }


def stage(run: Run) -> set[str]:
    return set(run.read("selection").filter(kind="reward")["grain_id"])


def pair_asks(server: Endpoint) -> int:
    return sum("[FIRST REPLY" in ask.question for ask in server.asks)


def test_the_preferred_reply_is_chosen_and_nothing_is_paid_twice(tmp_path: Path) -> None:
    run = verified(tmp_path)
    with endpoint(script=judging(honest)) as server:
        result = steps(run, recipe_of(server)).pairs()
        asked, table = len(server.asks), run.read("pairs")
        again = steps(run, recipe_of(server)).pairs()
        assert len(server.asks) == asked
    right = {(f"right-{row['prompt_id']}", f"wrong-{row['prompt_id']}") for row in SUMS} | {("a-essay", "b-essay")}
    assert rows(run) == dict.fromkeys(right, (["chosen"] * 3, 3.0))
    assert (result.prompts, result.without_pair, result.judged, result.gaps) == (9, 2, 7, {3: 7})
    assert (again.judged, again.kept, again.gaps) == (0, 7, {3: 7})
    assert run.read("pairs").equals(table)
    (version,) = set(table["judge_version"])
    assert version.endswith(" toy 3 votes at 0.6")


def test_a_judge_that_goes_down_half_way_is_paid_once_for_every_vote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "STALL_S", 0.3)
    whole, broken = verified(tmp_path / "whole"), verified(tmp_path / "broken")
    with endpoint(script=judging(honest)) as server:
        steps(whole, recipe_of(server)).pairs()
        wanted, in_pairs = len(server.asks), pair_asks(server)
    up = judging(honest)
    with endpoint(script=lambda ask: up(ask) if server.answered < wanted - in_pairs // 2 else 500) as server:
        with pytest.raises(EndpointError, match="No endpoint has answered"):
            steps(broken, recipe_of(server)).pairs()
        assert rows(broken) == {}
        paid = broken.read("responses").filter(role="judge").height
        assert wanted - in_pairs < paid < wanted
        server.script = up
        first = len(server.asks)
        steps(broken, recipe_of(server)).pairs()
        assert len(server.asks) - first == wanted - paid
    assert broken.read("pairs").equals(whole.read("pairs"))


def test_a_limit_on_tokens_stops_pairs_and_keeps_what_was_paid(tmp_path: Path) -> None:
    run = verified(tmp_path)
    with endpoint(script=judging(honest)) as server:
        recipe = recipe_of(server, judge={"max_tokens": 100})
        with pytest.raises(BudgetError, match="max-tokens-total"):
            steps(run, recipe, tokens=5_000).pairs()
        assert rows(run) == {}
        steps(run, recipe).pairs()
        assert len(server.asks) == run.read("responses").filter(role="judge").height
    assert len(rows(run)) == 7


def test_a_tie_is_kept_with_gap_0_and_no_stage_takes_it(tmp_path: Path) -> None:
    run = verified(tmp_path, *MORE_WRONG)
    with endpoint(script=judging(honest)) as server:
        recipe = recipe_of(server, pairs_per_prompt=6)
        steps(run, recipe).pairs()
        steps(run, recipe).select()
    found = {pair: given for pair, given in rows(run).items() if set(pair) == {"tie-0", "tie-1"}}
    assert list(found.values()) == [(["tie"] * 3, 0.0)]
    assert stage(run) == {":".join(pair) for pair, (_, gap) in rows(run).items() if gap > 0}
    assert len(stage(run)) == len(rows(run)) - 3  # any two of the three wrong answers tie


def test_the_gap_and_the_lengths_are_decided_without_a_request(tmp_path: Path) -> None:
    run = verified(tmp_path)

    def script(ask: Ask) -> bytes:
        """Honest, but of its votes on the essays, pipes first, all but one cannot be read."""
        parts, nonce = parts_of(ask)
        is_shy = "pipes" in parts.get("FIRST REPLY", "")
        again = sum(one.body["messages"] == ask.body["messages"] for one in server.asks) > 1
        return body("neither" if is_shy and again else honest(parts, nonce))

    with endpoint(script=script) as server:
        steps(run, recipe_of(server)).pairs()
        votes, gap = rows(run)["a-essay", "b-essay"]
        assert (sorted(votes), gap) == (["chosen", "null", "null"], 1.0)
        asked = len(server.asks)
        for changes, under_gap, left_out in (({}, 0, 0), ({"min_gap": 3}, 1, 0), ({"equal_lengths": True}, 0, 7)):
            found = steps(run, recipe_of(server, **changes)).select().pairs
            assert found is not None  # no length is known, so where lengths count, no pair is left
            assert (found.judged, found.under_gap, found.left_out) == (7, under_gap, left_out)
            assert len(stage(run)) == found.taken == 7 - under_gap - left_out
        assert len(server.asks) == asked


def test_replies_that_break_a_rule_are_not_judged_and_leave_without_a_request(tmp_path: Path) -> None:
    run = verified(tmp_path)
    with endpoint(script=judging(honest)) as server:
        loose = recipe_of(server)
        rules = loose.selection.model_copy(update={"rules": ["answer_wrong"]})
        strict = loose.model_copy(update={"selection": rules})
        result = steps(run, strict).pairs()
        assert (result.judged, result.without_pair) == (1, 8)
        assert steps(run, loose).pairs().judged == 6
        asked = len(server.asks)
        steps(run, strict).select()
        assert len(server.asks) == asked
    assert stage(run) == {"a-essay:b-essay"}
    assert len(rows(run)) == 7


def test_more_pairs_ask_for_what_is_missing_only(tmp_path: Path) -> None:
    more = [reply(f"e{place}", ESSAY, f"Because {place}.") for place in range(3)]
    run = verified(tmp_path, *more)
    with endpoint(script=judging(honest)) as server:
        steps(run, recipe_of(server)).pairs()
        one = rows(run)
        asked = len(server.asks)
        result = steps(run, recipe_of(server, pairs_per_prompt=3)).pairs()
        assert (result.judged, result.kept) == (2, 7)
        assert len(server.asks) - asked == 2 * 6
    assert rows(run).items() >= one.items()


@pytest.mark.parametrize(
    ("on_pairs", "words"),
    [
        (
            lambda parts: "second" if is_right(parts["FIRST REPLY"], parts["REFERENCE"]) else "first",
            "6 of 6 known pairs",
        ),
        (lambda parts: "first", "decided none of 6 pairs"),
    ],
    ids=["perverse", "always first"],
)
def test_a_judge_that_errs_on_known_pairs_writes_none(tmp_path: Path, on_pairs: Any, words: str) -> None:
    run = verified(tmp_path)

    def script(parts: dict[str, str], nonce: str) -> str:
        return honest(parts, nonce) if "ANSWER" in parts else said(nonce, on_pairs(parts))

    with endpoint(script=judging(script)) as server, pytest.raises(VerifyError, match="not believed") as caught:
        steps(run, recipe_of(server)).pairs()
    assert words in str(caught.value)
    assert rows(run) == {}


def test_a_judge_that_errs_on_known_answers_is_asked_about_no_pair(tmp_path: Path) -> None:
    run = verified(tmp_path)
    with endpoint(script=judging(lenient)) as server:
        with pytest.raises(VerifyError, match="not believed"):
            steps(run, recipe_of(server)).pairs()
        assert pair_asks(server) == 0
    assert rows(run) == {}


def test_a_pair_whose_vote_is_refused_is_asked_again_and_harms_no_other(tmp_path: Path) -> None:
    run = verified(tmp_path)

    def script(ask: Ask) -> bytes | int:
        refused = "pipes" in ask.question and "[FIRST REPLY" in ask.question
        return 400 if refused else body(honest(*parts_of(ask)))

    with endpoint(script=script) as server:
        result = steps(run, recipe_of(server)).pairs()
    assert (result.judged, result.unanswered) == (6, 1)
    assert ("a-essay", "b-essay") not in rows(run)
    with endpoint(script=judging(honest)) as server:
        steps(run, recipe_of(server)).pairs()
        assert len(server.asks) == 6
    assert rows(run)["a-essay", "b-essay"] == (["chosen"] * 3, 3.0)


def test_another_judge_takes_the_place_of_the_first_whose_votes_cost_nothing_again(tmp_path: Path) -> None:
    run = verified(tmp_path)
    with endpoint(script=judging(honest), model=None) as server:
        steps(run, recipe_of(server)).pairs()
        first = run.read("pairs")
        steps(run, recipe_of(server, judge={"votes": 5})).pairs()
        assert {len(votes) for votes, _ in rows(run).values()} == {5}
        asked = len(server.asks)
        steps(run, recipe_of(server)).pairs()
        assert len(server.asks) == asked
    assert run.read("pairs").equals(first)


def test_prompts_without_two_answers_to_compare_are_an_error_before_anything_is_asked(tmp_path: Path) -> None:
    run = verified(tmp_path)
    alike = [{**row, "answer": "It is 1."} for row in run.read("responses").to_dicts()]
    run.replace("responses", columns_table("responses", alike))
    with endpoint(script=judging(honest)) as server:
        with pytest.raises(TableError, match="none of 9 prompts has two different answers"):
            steps(run, recipe_of(server)).pairs()
        assert server.asks == []


def test_limit_takes_the_first_prompts(tmp_path: Path) -> None:
    run = verified(tmp_path)
    with endpoint(script=judging(honest)) as server:
        result = replace(steps(run, recipe_of(server)), limit=2).pairs()
    assert (result.prompts, result.judged) == (2, 2)


def test_a_recipe_says_who_takes_the_pairs_and_who_judges(tmp_path: Path) -> None:
    server = Endpoint(url="http://127.0.0.1:1/v1")
    with pytest.raises(ValidationError, match="no stage of that name is of kind reward"):
        recipe_of(server, stage="other")
    with pytest.raises(ValidationError, match=r"min_gap is 4, but judge\.votes is 3"):
        recipe_of(server, min_gap=4)
    plain = recipe_of(server).model_dump()
    for missing, words in (("preference", "no `preference` section"), ("judge", "no `judge` section")):
        recipe = Recipe.model_validate({**plain, missing: None})
        with pytest.raises(UsageError, match=words):
            steps(Run(tmp_path), recipe).pairs()
        with pytest.raises(UsageError, match=words):
            steps(Run(tmp_path), recipe).everything()


def test_recipes_without_preference_keep_their_hash_and_others_hash_it() -> None:
    server = Endpoint(url="http://127.0.0.1:1/v1")
    without = Recipe.model_validate({**recipe_of(server).model_dump(), "preference": None})
    assert "preference" not in without.decisive()
    assert recipe_of(server).hash() != recipe_of(server, min_gap=2).hash()


@given(st.integers(0, 12))
def test_neighbours_are_every_pair_once_and_no_reply_is_in_many_of_the_first(number: int) -> None:
    ids = [str(place) for place in range(number)]
    found = list(_neighbours(ids))
    assert len(found) == len({frozenset(pair) for pair in found}) == number * (number - 1) // 2
    first = [one for pair in found[: max(number - 1, 0)] for one in pair]
    assert max(map(first.count, ids), default=0) <= 2
