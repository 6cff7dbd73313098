"""Sentence by sentence: what the teacher says and the student would not. Pure functions on arrays."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from builder.schema import MARGINS

MIN_TOKENS: Final = 3
"""Sentences with fewer tokens on either side stay in the lists but are not counted: two tokens say little."""


@dataclass(frozen=True)
class Divergence:
    """Scores of one reply against one student. Lists have one entry a sentence; probabilities are in 0 … 1."""

    teacher_tokens: np.ndarray
    student_tokens: np.ndarray
    p_teacher: np.ndarray
    p_student: np.ndarray
    short_sentences: int
    teacher_counts: list[int]
    student_counts: list[int]
    mean_delta: float | None
    log_ratio_nats: float


def sentence_probabilities(
    logprobs: np.ndarray, sentence: np.ndarray, sentences: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Tokens and `exp(mean token logprob)` of each sentence, and the sum of the counted logprobs in nats.

    `logprobs` and `sentence` have shape (tokens,); −1 in `sentence` leaves a token out. This is the geometric mean of
    the token probabilities (TR p.8). A sentence without tokens has probability nan.
    """
    counted = sentence >= 0
    index = sentence[counted]
    values = logprobs[counted].astype(np.float64)
    tokens = np.bincount(index, minlength=sentences)
    sums = np.bincount(index, weights=values, minlength=sentences)
    with np.errstate(divide="ignore", invalid="ignore"):
        probability = np.exp(sums / tokens)
    return tokens.astype(np.int32), probability, float(values.sum())


def divergence(
    teacher_logprobs: np.ndarray,
    teacher_sentence: np.ndarray,
    student_logprobs: np.ndarray,
    student_sentence: np.ndarray,
    sentences: int,
) -> Divergence:
    """Delta = p_teacher − p_student for each sentence and its summaries (DASD 2.3, arXiv 2512.20908: margin 0.1).

    A sentence above the margin is a teacher sentence, one below minus the margin a student sentence; counts are exact
    at every margin of `schema.MARGINS`, on strict inequality. `log_ratio_nats` is (sum of teacher − sum of student
    logprobs over the text) / teacher tokens: a one-sample estimate of the KL divergence per teacher token only if the
    teacher's logprobs are those it sampled from, else a log-ratio. Tokenizers may differ.
    """
    teacher_tokens, p_teacher, teacher_sum = sentence_probabilities(teacher_logprobs, teacher_sentence, sentences)
    student_tokens, p_student, student_sum = sentence_probabilities(student_logprobs, student_sentence, sentences)
    counted = (teacher_tokens >= MIN_TOKENS) & (student_tokens >= MIN_TOKENS)
    delta = (p_teacher - p_student)[counted]
    total = int(teacher_tokens.sum())
    return Divergence(
        teacher_tokens=teacher_tokens,
        student_tokens=student_tokens,
        p_teacher=p_teacher,
        p_student=p_student,
        short_sentences=int(sentences - counted.sum()),
        teacher_counts=[int((delta > margin).sum()) for margin in MARGINS],
        student_counts=[int((-delta > margin).sum()) for margin in MARGINS],
        mean_delta=float(delta.mean()) if delta.size else None,
        log_ratio_nats=(teacher_sum - student_sum) / total if total else 0.0,
    )
