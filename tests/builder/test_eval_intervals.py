"""Intervals over questions: they equal what is known for single replies, and hold the truth as often as they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.statistics import mean_interval, paired_interval, wilson_interval

shares = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=60)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_single_replies_is_wilsons(pair: tuple[int, int]) -> None:
    right, questions = pair
    assert mean_interval([1.0] * right + [0.0] * (questions - right)) == pytest.approx(
        wilson_interval(right, questions), abs=1e-12
    )


@given(shares)
def test_the_interval_of_a_mean_holds_it_within_0_and_1_and_always_has_width(values: list[float]) -> None:
    low, high = mean_interval(values)
    assert 0 <= low <= np.mean(values) + 1e-12 and np.mean(values) - 1e-12 <= high <= 1
    assert high - low > 0


def test_four_alike_replies_a_question_say_no_more_than_one() -> None:
    assert mean_interval([1.0, 0.0, 0.0, 1.0, 1.0]) == pytest.approx(wilson_interval(3, 5))
    low, high = wilson_interval(12, 20)  # as if the 20 replies were independent
    wide = mean_interval([1.0, 0.0, 0.0, 1.0, 1.0])
    assert wide[1] - wide[0] > 1.5 * (high - low)


@pytest.mark.parametrize("values", [[1.1], [-0.1, 0.5], [float("nan")]])
def test_what_is_no_share_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="no shares"):
        mean_interval(values)


def test_nothing_measured_excludes_nothing() -> None:
    assert mean_interval([]) == (0, 1)
    assert paired_interval([]) == (0, -1, 1)


def test_the_paired_interval_of_single_replies_is_that_of_bonett_and_price() -> None:
    # 20 questions: 6 won, 1 lost. (6+1−1−1)/22 ± 1.96·sqrt((7+2)/22 − (5/22)²)/sqrt(22)
    mean, low, high = paired_interval([1.0] * 6 + [-1.0] + [0.0] * 13)
    centre, half = 5 / 22, 1.959964 * np.sqrt((9 / 22 - (5 / 22) ** 2) / 22)
    assert (mean, low, high) == pytest.approx((0.25, centre - half, centre + half), abs=1e-6)


def test_two_models_that_agree_everywhere_may_still_differ_elsewhere() -> None:
    for questions in (5, 50, 500):
        mean, low, high = paired_interval([0.0] * questions, step=0.25)
        assert mean == 0 and low == pytest.approx(-high)
        assert high == pytest.approx(1.959964 * np.sqrt(2) / (questions + 2), abs=1e-6)


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=60))
def test_the_paired_interval_turns_around_with_the_models(differences: list[float]) -> None:
    mean, low, high = paired_interval(differences, 0.5)
    other, other_low, other_high = paired_interval([-one for one in differences], 0.5)
    assert (mean, low, high) == pytest.approx((-other, -other_high, -other_low))
    assert -1 <= low < high <= 1


@pytest.mark.parametrize("given_", [([1.5], 1.0), ([float("nan")], 1.0), ([0.0], 0.0), ([0.0], 1.5)])
def test_differences_and_steps_out_of_range_are_refused(given_: tuple[list[float], float]) -> None:
    with pytest.raises(ValueError, match=r"step|differences"):
        paired_interval(*given_)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (20, 1), (2, 6)])
@pytest.mark.parametrize("samples", [1, 4])
def test_intervals_hold_the_truth_about_95_times_in_100(a: float, b: float, samples: int) -> None:
    draw = np.random.default_rng([int(10 * a), samples])
    held = paired_held = 0
    for _ in range(400):
        chance = draw.beta(a, b, 40)
        ours, theirs = (draw.binomial(samples, chance) / samples for _ in range(2))
        low, high = mean_interval(ours.tolist())
        held += low <= a / (a + b) <= high
        _, low, high = paired_interval((ours - theirs).tolist(), 1 / samples)
        paired_held += low <= 0 <= high
    assert 0.91 * 400 <= held <= 0.985 * 400
    assert paired_held >= 0.91 * 400
