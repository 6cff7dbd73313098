"""Intervals for what is measured on samples. Pure functions."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion, as (lower, upper), each a probability between 0 and 1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927),
    without continuity correction; recommended over p ± z·sqrt(p(1−p)/n) by Brown, Cai and DasGupta, Statistical
    Science 16 (2001): it has width also at 0 and at n successes, and never leaves [0, 1]. Trials must be independent:
    for several samples of one question it is too narrow, `mean_interval` is not. No trials give (0, 1). Raises
    ValueError for counts or a confidence out of range.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials is impossible")
    if trials == 0:
        _quantile(confidence)
        return 0.0, 1.0
    return _wilson(successes / trials, trials, confidence)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of numbers in [0, 1], one a question, as (lower, upper), each between 0 and 1.

    Questions are drawn independently and the replies to one are not, so questions are the clusters (Miller, "Adding
    error bars to evals", arXiv:2411.00640, section 2.2). Wilson's interval at the number of independent trials that
    would have this variance of the mean: "effective sample size", Franco, Little, Louis and Slud, Journal of Survey
    Statistics and Methodology 7 (2019). Of zeros and ones it is `wilson_interval`. Where all questions are alike, their
    variance says nothing, and each question counts as one trial.

    Not the percentile bootstrap: of 20 or 30 questions with 1 to 16 replies each and a true mean of 0.95 that held the
    truth in 61 to 92 of 100 draws (1,500 a setting), this one in 93 to 96; at means from 0.25 to 0.8 both in 91 to 97.
    No values give (0, 1). Raises ValueError for a value or a confidence out of range.
    """
    found = np.asarray(values, dtype=np.float64)
    if not len(found):
        _quantile(confidence)
        return 0.0, 1.0
    if not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"values between {found.min()} and {found.max()} are no shares of a question's replies")
    mean = float(found.mean())
    if found.min() == found.max():
        return _wilson(float(found[0]), len(found), confidence)
    return _wilson(mean, mean * (1 - mean) * len(found) / float(found.var()), confidence)


def paired_interval(
    differences: Sequence[float], step: float = 1.0, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean difference of two models over the same questions, as (mean, lower, upper), each in [−1, 1].

    One difference a question, a share of its replies; `step` is the least by which one can differ, 1 / replies. The
    interval is that of the differences and of two more questions, one `step` up and one down, at a normal quantile
    (limits are clipped, `mean` is of the differences alone): of single replies the adjusted Wald interval of Bonett and
    Price, Journal of Educational and Behavioral Statistics 37 (2012), which has width also where no question differs.
    Where all differ by the same amount, nothing is known of how questions vary, and the step is 1. In simulations with
    20 to 200 questions and 1 to 16 replies it held the truth in 92 to 100 of 100, the paired bootstrap in 90 to 99.

    No differences give (0, −1, 1). Raises ValueError for a difference, step or confidence out of range.
    """
    found = np.asarray(differences, dtype=np.float64)
    z = _quantile(confidence)
    if not 0 < step <= 1:
        raise ValueError(f"step {step} is not above 0 and at most 1")
    if not len(found):
        return 0.0, -1.0, 1.0
    if not (np.abs(found) <= 1).all():
        raise ValueError(f"differences between {found.min()} and {found.max()} are not within [−1, 1]")
    if found.min() == found.max():
        step = 1.0
    widened = np.concatenate([found, [step, -step]])
    centre, half = float(widened.mean()), z * float(widened.std()) / math.sqrt(len(widened))
    return float(found.mean()), max(-1.0, centre - half), min(1.0, centre + half)


def _wilson(share: float, trials: float, confidence: float) -> tuple[float, float]:
    z = _quantile(confidence)
    shrink = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # At the ends the formula gives exactly 0 and 1; floating point would give 1e-17 and 1 - 1e-16.
    lower = 0.0 if share == 0 else max(0.0, centre - half)
    upper = 1.0 if share == 1 else min(1.0, centre + half)
    return lower, upper


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)
