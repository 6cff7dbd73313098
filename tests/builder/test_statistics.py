import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.statistics import wilson_interval

_counts = st.integers(1, 10_000).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials)))


def test_eight_of_ten_by_hand() -> None:
    # z = 1.959964: centre (0.8 + 3.841459/20) / 1.3841459 = 0.716740,
    # half width 1.959964 / 1.3841459 * sqrt(0.16/10 + 3.841459/400) = 0.226577
    lower, upper = wilson_interval(8, 10)
    assert lower == pytest.approx(0.490162, abs=1e-6)
    assert upper == pytest.approx(0.943318, abs=1e-6)


def test_no_success_in_ten_still_has_width() -> None:
    lower, upper = wilson_interval(0, 10)
    assert lower == 0.0
    assert upper == pytest.approx(3.841459 / 13.841459, abs=1e-6)


def test_no_trials_say_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(_counts)
def test_the_share_lies_inside_and_the_interval_inside_zero_and_one(counts: tuple[int, int]) -> None:
    successes, trials = counts
    lower, upper = wilson_interval(successes, trials)
    assert 0 <= lower <= successes / trials <= upper <= 1
    assert lower < upper


@given(_counts)
def test_failures_mirror_successes(counts: tuple[int, int]) -> None:
    successes, trials = counts
    lower, upper = wilson_interval(successes, trials)
    mirrored = wilson_interval(trials - successes, trials)
    assert math.isclose(lower, 1 - mirrored[1], abs_tol=1e-12)
    assert math.isclose(upper, 1 - mirrored[0], abs_tol=1e-12)


@given(_counts, st.integers(2, 9))
def test_more_trials_at_the_same_share_narrow_the_interval(counts: tuple[int, int], times: int) -> None:
    successes, trials = counts
    lower, upper = wilson_interval(successes, trials)
    narrower = wilson_interval(times * successes, times * trials)
    assert narrower[1] - narrower[0] < upper - lower


@given(_counts)
def test_more_confidence_widens_the_interval(counts: tuple[int, int]) -> None:
    lower, upper = wilson_interval(*counts, confidence=0.8)
    wider = wilson_interval(*counts, confidence=0.99)
    assert wider[0] <= lower and upper <= wider[1]


@pytest.mark.parametrize(("successes", "trials", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 0.0)])
def test_impossible_counts_and_confidences_are_refused(successes: int, trials: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"impossible|not between"):
        wilson_interval(successes, trials, confidence)
