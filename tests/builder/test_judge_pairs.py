"""Two replies side by side: the order in which they are shown must not decide."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint, endpoint
from hypothesis import given
from hypothesis import strategies as st
from judge_toys import SUMS, honest, judge_verdicts, judging, recipe_of, reply, run_of, said, steps

from builder.identity import response_id
from builder.judge_ask import Judging, Said
from builder.judge_calibration import calibrate_pairs
from builder.judge_known import PAIRS, known_pairs
from builder.judge_pairs import Pair, PairVerdict, pair_requests, position_bias, read_pair
from builder.judge_prompt import PAIR, Vote

ONE_TWO = Pair("p", "Which?", "7", "It is 7.", "It is 5.")
JUDGE = Judging.of(recipe_of(Endpoint(url="http://127.0.0.1:1/v1")), PAIR)


def answers(pair: Pair, votes: list[str]) -> Said:
    """What the judge said to each request of a pair, in their order: a verdict, `null`, or nothing for `missing`."""
    found: dict[str, Vote | None] = {}
    for request, verdict in zip(pair_requests(JUDGE, pair), votes, strict=True):
        identity = response_id(request.key, finish_reason="stop", max_tokens=None)
        nonce = request.messages[1]["content"].split()[6].rstrip(".")
        if verdict != "missing":
            found[identity] = None if verdict == "null" else Vote(nonce, verdict)
    return found


def test_every_vote_is_asked_in_both_orders() -> None:
    requests = list(pair_requests(JUDGE, ONE_TWO))
    assert len({request.key for request in requests}) == 6
    places = [
        request.messages[1]["content"].index("It is 7.") < request.messages[1]["content"].index("It is 5.")
        for request in requests
    ]
    assert places == [True] * 3 + [False] * 3
    assert {request.prompt_id for request in requests} == {"p"}


@pytest.mark.parametrize(
    ("said_in_order", "votes", "gap"),
    [
        (["first"] * 3 + ["second"] * 3, ("one", "one", "one"), 3),
        (["second"] * 3 + ["first"] * 3, ("two", "two", "two"), -3),
        (["first"] * 6, ("tie", "tie", "tie"), 0),
        (["first", "second", "first", "second", "first", "first"], ("one", "two", "tie"), 0),
        (["first", "first", "null", "second", "missing", "first"], ("one", "null", "null"), 1),
        (["missing"] * 6, ("null", "null", "null"), 0),
    ],
)
def test_a_vote_counts_where_both_orders_name_the_same_reply(
    said_in_order: list[str], votes: tuple[str, ...], gap: int
) -> None:
    found = read_pair(JUDGE, ONE_TWO, answers(ONE_TWO, said_in_order))
    assert (found.votes, found.gap) == (votes, gap)


@given(st.lists(st.sampled_from(["first", "second", "null", "missing"]), min_size=6, max_size=6))
def test_swapping_the_replies_turns_every_vote_and_the_gap_around(said_in_order: list[str]) -> None:
    swapped = Pair("p", "Which?", "7", "It is 5.", "It is 7.")
    there = read_pair(JUDGE, ONE_TWO, answers(ONE_TWO, said_in_order))
    back = read_pair(JUDGE, swapped, answers(swapped, said_in_order[3:] + said_in_order[:3]))
    turned = {"one": "two", "two": "one"}
    assert back.votes == tuple(turned.get(vote, vote) for vote in there.votes)
    assert back.gap == -there.gap
    assert (back.first_places, back.answers) == (there.first_places, there.answers)
    assert -3 <= there.gap <= 3


def test_a_pair_without_a_gold_has_no_reference() -> None:
    (request, *_) = pair_requests(JUDGE, Pair("p", "Which?", None, "a", "b"))
    assert "REFERENCE" not in request.messages[1]["content"]


def test_position_bias_is_the_share_of_answers_that_name_the_first_place() -> None:
    found = position_bias([PairVerdict(("tie", "one"), 1, 3, 4), PairVerdict(("null", "two"), -1, 1, 2)])
    assert (found.pairs, found.answers, found.first_places, found.votes, found.flipped) == (2, 6, 4, 3, 1)
    assert found.share == pytest.approx(2 / 3)
    assert position_bias([]).share is None


@pytest.mark.parametrize(
    ("character", "right", "wrong", "tied", "share"),
    [
        (honest, 6, 0, 0, 0.5),
        (lambda parts, nonce: said(nonce, "first"), 0, 0, 6, 1.0),
        (lambda parts, nonce: said(nonce, "second"), 0, 0, 6, 0.0),
        (lambda parts, nonce: "neither", 0, 0, 6, None),
    ],
    ids=["honest", "first", "second", "garbage"],
)
def test_calibration_measures_position_bias_on_known_pairs(
    tmp_path: Path, character: Callable[..., str], right: int, wrong: int, tied: int, share: float | None
) -> None:
    run = run_of(tmp_path)
    with endpoint(script=judging(honest)) as server:
        steps(run, recipe_of(server)).verify()
    with endpoint(script=judging(character)) as server:
        recipe = recipe_of(server)
        found = calibrate_pairs(run, recipe, steps(run, recipe)._ask_judge)
        assert len(server.asks) == 6 * 6
        calibrate_pairs(run, recipe, steps(run, recipe)._ask_judge)
        assert len(server.asks) == 6 * 6
    assert (found.right, found.wrong, found.tied, found.bias.share) == (right, wrong, tied, share)


def test_known_pairs_are_a_proved_right_and_a_proved_wrong_reply_to_one_prompt(tmp_path: Path) -> None:
    more: list[dict[str, Any]] = [reply(f"w{number}", SUMS[0], f"It is 100{number}.") for number in range(30)]
    run = run_of(tmp_path, *more)
    with endpoint(script=judging(honest)) as server:
        steps(run, recipe_of(server)).verify()
    pairs = known_pairs(run, 0)
    assert len(pairs) == len({pair.prompt_id for pair in pairs}) == 6 <= PAIRS
    assert pairs == known_pairs(run, 0)
    for pair in pairs:
        assert pair.one == f"It is {pair.gold}."
        assert pair.two != pair.one
    assert judge_verdicts(run)
