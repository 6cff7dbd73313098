"""pass@k and maj@k of one question: by hand, by property, and by drawing."""

from fractions import Fraction
from itertools import combinations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.pass_at_k import RIGHT, answer_group, majority, pass_at_k, sizes

counts = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@pytest.mark.parametrize(
    ("replies", "correct", "k", "expected"),
    [
        (4, 1, 1, Fraction(1, 4)),
        (4, 1, 2, Fraction(1, 2)),  # 3 of the 6 pairs hold the right one
        (4, 2, 2, Fraction(5, 6)),
        (5, 2, 3, 1 - Fraction(comb(3, 3), comb(5, 3))),
        (3, 0, 3, Fraction(0)),
        (3, 3, 1, Fraction(1)),
    ],
)
def test_pass_at_k_equals_values_worked_by_hand(replies: int, correct: int, k: int, expected: Fraction) -> None:
    assert pass_at_k(replies, correct, k) == pytest.approx(float(expected))


def test_pass_at_k_is_the_share_of_all_choices_of_k_replies_that_hold_a_right_one() -> None:
    replies = [True, False, False, True, False, False]
    for k in range(1, 7):
        chosen = list(combinations(replies, k))
        assert pass_at_k(6, 2, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))


@given(counts)
def test_pass_at_k_grows_with_k_from_the_share_of_correct_to_whether_any_is(pair: tuple[int, int]) -> None:
    replies, correct = pair
    values = [pass_at_k(replies, correct, k) for k in range(1, replies + 1)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(correct / replies)
    assert values[-1] == float(correct > 0)
    assert all(0 <= value <= 1 for value in values)


@pytest.mark.parametrize(("replies", "correct", "k"), [(4, 1, 5), (4, 1, 0), (0, 0, 1), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_is_never_guessed_from_fewer_replies_or_impossible_counts(replies: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"pass@|impossible"):
        pass_at_k(replies, correct, k)


def test_k_doubles_up_to_the_number_of_replies_and_ends_with_it() -> None:
    assert [sizes(n) for n in (0, 1, 2, 3, 8, 12)] == [(), (1,), (1, 2), (1, 2, 3), (1, 2, 4, 8), (1, 2, 4, 8, 12)]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([RIGHT, RIGHT, "a"], 1.0),
        ([RIGHT, "a", "a"], 0.0),
        ([RIGHT, "a"], 0.5),
        ([RIGHT, "a", "b"], 1 / 3),
        (["a", "b"], 0.0),
        ([None, None, RIGHT], 1.0),  # a reply without an answer has no vote
        ([None, None, RIGHT, "a", "a"], 0.0),
        ([None], 0.0),
        ([], 0.0),
    ],
)
def test_the_majority_decides_and_a_tie_counts_as_a_fair_draw(groups: list[str | None], expected: float) -> None:
    assert majority(groups) == expected


def test_answers_of_one_value_vote_together_and_others_do_not() -> None:
    def group(text: str | None) -> str | None:
        return answer_group(text, is_correct=False)

    assert len({group(text) for text in ("1/2", "0.5", "0.50", r"\frac{1}{2}", r"$\dfrac12$"[1:-1])}) == 1
    assert len({group(text) for text in ("B", "(B)", " B ")}) == 1
    assert len({group(text) for text in ("x+1", "x + 1")}) == 1
    assert len({group(text) for text in ("1/2", "50%", "5", "x", "-1/2", "0.5 miles", "half")}) == 7
    assert group(None) is group("  ") is None
    assert answer_group("0.5", is_correct=True) == answer_group("one half", is_correct=True) == RIGHT
