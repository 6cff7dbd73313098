"""pass@k and maj@k of one question, from the verdicts on its replies. Pure functions."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

from builder.literals import compact, normalize, read_literal

RIGHT: Final = "right"
"""Group of all answers that the verifier calls correct, however they are written."""


def sizes(replies: int) -> tuple[int, ...]:
    """The k at which pass@k and maj@k are given for so many replies a question: 1, 2, 4, 8 … and all of them."""
    powers = [1 << power for power in range(max(replies, 0).bit_length())]
    return tuple(sorted({*powers, replies})) if replies > 0 else ()


def pass_at_k(replies: int, correct: int, k: int) -> float:
    """Probability that at least one of `k` replies is correct, each k of the question's replies being as likely.

    1 − C(n − c, k) / C(n, k), the unbiased estimator of Chen et al., arXiv:2107.03374, equation 1. Raises ValueError
    where there are fewer than `k` replies: that would be a guess.
    """
    if not 0 <= correct <= replies:
        raise ValueError(f"{correct} correct of {replies} replies is impossible")
    if not 1 <= k <= replies:
        raise ValueError(f"pass@{k} cannot be had from {replies} replies: k must be between 1 and their number")
    return 1 - math.comb(replies - correct, k) / math.comb(replies, k)


def majority(groups: Sequence[str | None]) -> float:
    """Probability that the most frequent answer is right, ties broken by a fair draw: maj@k of so many replies.

    `groups` holds one `answer_group` a reply, None for one without an answer, which has no vote. No vote gives 0.
    Source: self-consistency, Wang et al., arXiv:2203.11171; the draw's expected value stands for the draw.
    """
    votes = Counter(group for group in groups if group is not None)
    most = max(votes.values(), default=0)
    first = [group for group, number in votes.items() if number == most]
    return 1 / len(first) if RIGHT in first else 0.0


def answer_group(extracted: str | None, *, is_correct: bool) -> str | None:
    r"""What an answer counts as in a vote: `RIGHT`, else its value where it is a plain number, else its letters.

    So 1/2 and 0.50 vote together, and so do `\frac{1}{2}` and `\dfrac12`; wrong formulas of equal value may not.
    """
    if extracted is None or not extracted.strip():
        return None
    if is_correct:
        return RIGHT
    number = read_literal(extracted)
    if number is not None and not number.unit:
        return f"number {number.value}{'%' if number.percent else ''}"
    return f"text {compact(normalize(extracted))}"
