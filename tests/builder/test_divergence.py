"""Divergence by sentence: by hand, at the edges, and against loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.divergence import Divergence, divergence, sentence_deltas, sentence_probabilities
from builder.errors import ScoreError
from builder.schema import MARGINS
from builder.store import columns_table

ROW = tuple[list[float], list[int]]


def diverge(teacher: ROW, student: ROW, sentences: int) -> Divergence:
    arrays = [
        np.asarray(values, kind) for row in (teacher, student) for values, kind in zip(row, (float, int), strict=True)
    ]
    return divergence(*arrays, sentences)


def test_two_sentences_worked_by_hand() -> None:
    """Sentence 0: p_teacher = exp(−0.3 / 3), p_student = exp(−3 / 3). Sentence 1: the student is surer."""
    teacher = ([-0.1, -0.2, 0.0, -9.0, -1.0, -1.0, -1.0], [0, 0, 0, -1, 1, 1, 1])
    student = ([-0.5, -1.5, -1.0, -0.2, -0.1, -0.3, -0.4], [0, 0, 0, 1, 1, 1, 1])
    found = diverge(teacher, student, 2)
    assert found.teacher_tokens.tolist() == [3, 3]
    assert found.student_tokens.tolist() == [3, 4]
    assert found.p_teacher == pytest.approx([0.9048374, 0.3678794])
    assert found.p_student == pytest.approx([0.3678794, 0.7788008])
    assert found.short_sentences == 0
    assert found.teacher_counts == [1] * 10  # delta 0.537 is above every margin
    assert found.student_counts == [1] * 8 + [0] * 2  # delta −0.411
    assert found.mean_delta == pytest.approx((0.5369580 - 0.4109214) / 2)
    assert found.log_ratio_nats == pytest.approx((-3.3 - -4.0) / 6)


def test_equal_logprobs_diverge_nowhere() -> None:
    row = ([-0.3, -1.0, -2.0, -0.1, -0.1, -0.1], [0, 0, 0, 1, 1, 1])
    found = diverge(row, row, 2)
    assert found.teacher_counts == found.student_counts == [0] * 10
    assert found.mean_delta == 0.0
    assert found.log_ratio_nats == 0.0


def test_a_sentence_at_the_margin_is_not_above_it() -> None:
    """Half of exp(0) is exact in binary: delta is 0.5, the last margin, on either side."""
    sure, unsure = ([0.0] * 3, [0] * 3), ([math.log(0.5)] * 3, [0] * 3)
    assert math.exp(math.log(0.5) * 3 / 3) == 0.5
    assert diverge(sure, unsure, 1).teacher_counts == [1] * 9 + [0]
    assert diverge(unsure, sure, 1).student_counts == [1] * 9 + [0]


@pytest.mark.parametrize(("teacher_tokens", "student_tokens"), [(2, 3), (3, 2), (1, 9), (0, 3)])
def test_short_sentences_stay_in_the_lists_and_out_of_the_counts(teacher_tokens: int, student_tokens: int) -> None:
    teacher = ([-0.1] * (teacher_tokens + 3), [0] * teacher_tokens + [1] * 3)
    student = ([-2.0] * (student_tokens + 3), [0] * student_tokens + [1] * 3)
    found = diverge(teacher, student, 2)
    assert found.short_sentences == 1
    assert found.teacher_counts[0] == 1
    assert found.mean_delta == pytest.approx(math.exp(-0.1) - math.exp(-2.0))
    assert found.teacher_tokens.tolist() == [teacher_tokens, 3]
    assert math.isnan(found.p_teacher[0]) == (teacher_tokens == 0)
    total = -0.1 * (teacher_tokens + 3) + 2.0 * (student_tokens + 3)
    assert found.log_ratio_nats == pytest.approx(total / (teacher_tokens + 3))


def test_without_a_long_sentence_there_is_no_mean() -> None:
    found = diverge(([-0.1, -0.1], [0, 0]), ([-0.1], [0]), 1)
    assert found.mean_delta is None
    assert found.short_sentences == 1
    assert found.teacher_counts == [0] * 10


def test_structure_tokens_count_for_nothing() -> None:
    tokens, probability, total = sentence_probabilities(np.array([-1.0, -50.0, -3.0]), np.array([0, -1, 0]), 2)
    assert tokens.tolist() == [2, 0]
    assert probability[0] == pytest.approx(math.exp(-2.0))
    assert total == -4.0


def slow(
    teacher: ROW, student: ROW, sentences: int
) -> tuple[list[float], int, list[int], list[int], float | None, float]:
    deltas, short = [], 0
    for sentence in range(sentences):
        means = []
        for logprobs, places in (teacher, student):
            own = [value for value, place in zip(logprobs, places, strict=True) if place == sentence]
            means.append(math.exp(math.fsum(own) / len(own)) if len(own) >= 3 else None)
        if means[0] is None or means[1] is None:
            short += 1
        else:
            deltas.append(means[0] - means[1])
    above = [sum(delta > margin for delta in deltas) for margin in MARGINS]
    below = [sum(delta < -margin for delta in deltas) for margin in MARGINS]
    sums = [math.fsum(v for v, place in zip(*row, strict=True) if place >= 0) for row in (teacher, student)]
    count = sum(place >= 0 for place in teacher[1])
    mean = math.fsum(deltas) / len(deltas) if deltas else None
    return deltas, short, above, below, mean, (sums[0] - sums[1]) / count if count else 0.0


def rows(sentences: int) -> st.SearchStrategy[ROW]:
    """Ascending sentences, some of them without tokens, structure tokens anywhere between."""
    token = st.tuples(st.floats(-8, 0, width=32), st.integers(-1, sentences - 1))

    def in_order(tokens: list[tuple[float, int]]) -> ROW:
        ascending = iter(sorted(place for _, place in tokens if place >= 0))
        return [value for value, _ in tokens], [-1 if place < 0 else next(ascending) for _, place in tokens]

    return st.lists(token, min_size=1, max_size=40).map(in_order)


CASES = st.integers(1, 6).flatmap(lambda n: st.tuples(rows(n), rows(n), st.just(n)))


@settings(max_examples=300, deadline=None)
@given(CASES)
def test_agrees_with_loops(case: tuple[ROW, ROW, int]) -> None:
    found, (deltas, short, above, below, mean, ratio) = diverge(*case), slow(*case)
    assert found.short_sentences == short
    if not any(abs(abs(delta) - margin) < 1e-7 for delta in deltas for margin in MARGINS):
        assert found.teacher_counts == above
        assert found.student_counts == below
    assert found.mean_delta == (None if mean is None else pytest.approx(mean, abs=1e-7))
    assert found.log_ratio_nats == pytest.approx(ratio, abs=1e-9)
    for counts in (found.teacher_counts, found.student_counts):
        assert counts == sorted(counts, reverse=True), "a larger margin never counts more"
    assert found.teacher_counts[0] + found.student_counts[0] + short <= case[2]
    assert found.mean_delta is None or -1 <= found.mean_delta <= 1
    for probability in (found.p_teacher, found.p_student):
        assert ((probability > 0) & (probability <= 1) | np.isnan(probability)).all()


@settings(max_examples=100, deadline=None)
@given(CASES)
def test_identical_rows_diverge_nowhere_and_swapped_ones_by_the_opposite(case: tuple[ROW, ROW, int]) -> None:
    teacher, student, sentences = case
    same = diverge(teacher, teacher, sentences)
    assert same.teacher_counts == same.student_counts == [0] * 10
    assert same.mean_delta in (0.0, None)
    assert same.log_ratio_nats == 0.0
    one, other = diverge(teacher, student, sentences), diverge(student, teacher, sentences)
    assert (one.teacher_counts, one.student_counts) == (other.student_counts, other.teacher_counts)
    assert one.mean_delta == (None if other.mean_delta is None else -other.mean_delta)


@settings(max_examples=100, deadline=None)
@given(CASES, st.floats(0, 1))
def test_stored_lists_give_the_same_counts_and_those_at_any_margin(case: tuple[ROW, ROW, int], margin: float) -> None:
    """Through table `sentences` and back, so that a margin off the grid means what one on the grid means."""
    found = diverge(*case)
    row = {
        "response_id": "r", "student_id": "s", "byte_end": list(range(1, case[2] + 1)),
        "teacher_tokens": found.teacher_tokens, "student_tokens": found.student_tokens,
        "p_teacher": found.p_teacher, "p_student": found.p_student,
    }  # fmt: skip
    stored = columns_table("sentences", [row]).to_pylist()[0]
    deltas = [
        p_teacher - p_student
        for teacher, student, p_teacher, p_student in zip(
            stored["teacher_tokens"], stored["student_tokens"], stored["p_teacher"], stored["p_student"], strict=True
        )
        if min(teacher, student) >= 3
    ]
    assert found.teacher_counts == [sum(delta > at for delta in deltas) for at in MARGINS]
    assert found.student_counts == [sum(delta < -at for delta in deltas) for at in MARGINS]
    mine = sentence_deltas(found.teacher_tokens, found.student_tokens, found.p_teacher, found.p_student)
    assert mine.tolist() == deltas
    assert (mine > margin).sum() == sum(delta > margin for delta in deltas)


@settings(max_examples=100, deadline=None)
@given(CASES)
def test_sums_equal_bincount(case: tuple[ROW, ROW, int]) -> None:
    (values, places), _, sentences = case
    logprobs, sentence = np.array(values, np.float32), np.array(places, np.int32)
    counted = sentence >= 0
    tokens, probability, total = sentence_probabilities(logprobs, sentence, sentences)
    expected = np.bincount(sentence[counted], minlength=sentences)
    assert tokens.tolist() == expected.tolist()
    sums = np.bincount(sentence[counted], weights=logprobs[counted], minlength=sentences)
    for index in range(sentences):
        mean = sums[index] / expected[index] if expected[index] else math.nan
        assert probability[index] == pytest.approx(math.exp(mean), rel=1e-12, nan_ok=True)
    assert total == pytest.approx(sums.sum(), rel=1e-12, abs=1e-12)


def test_sentences_that_go_back_are_refused() -> None:
    with pytest.raises(ScoreError, match="do not ascend"):
        sentence_probabilities(np.zeros(3), np.array([1, -1, 0]), 2)


def test_nothing_but_structure_has_no_probability() -> None:
    tokens, probability, total = sentence_probabilities(np.array([-1.0]), np.array([-1]), 2)
    assert (tokens.tolist(), total) == ([0, 0], 0.0)
    assert np.isnan(probability).all()
