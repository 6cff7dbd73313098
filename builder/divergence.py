"""Sentence by sentence: what the teacher says and the student would not. Pure functions on arrays."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from builder.errors import ScoreError
from builder.schema import MARGINS

MIN_TOKENS: Final = 3
"""Sentences with fewer tokens on either side stay in the lists but are not counted: two tokens say little."""


@dataclass(frozen=True)
class Divergence:
    """Scores of one reply against one student. Lists have one entry a sentence.

    Probabilities are float32 in 0 … 1, as tables hold them, nan where a side has no token; counts and mean are taken
    from them so rounded, and follow from the stored lists to the last bit.
    """

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

    `logprobs` and `sentence` have shape (tokens,); −1 in `sentence` leaves a token out, the others ascend, as text
    does: ScoreError where they do not, because sums run from boundary to boundary. This is the geometric mean of the
    token probabilities (TR p.8), summed in float64. A sentence without tokens has probability nan.
    """
    counted = sentence >= 0
    if not counted.all():
        logprobs, sentence = logprobs[counted], sentence[counted]
    if (sentence[1:] < sentence[:-1]).any():
        raise ScoreError(
            "Sentences of tokens do not ascend, so their logprobs cannot be summed. This is a defect of tempered; "
            "please report it."
        )
    bounds = np.searchsorted(sentence, np.arange(sentences + 1, dtype=sentence.dtype))
    tokens = np.diff(bounds)
    sums = np.zeros(sentences)
    held = tokens > 0  # reduceat gives an empty run the value that follows it
    if held.any():
        sums[held] = np.add.reduceat(logprobs, bounds[:-1][held], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        probability = np.exp(sums / tokens)
    return tokens.astype(np.int32), probability, float(sums.sum())


def sentence_deltas(
    teacher_tokens: np.ndarray, student_tokens: np.ndarray, p_teacher: np.ndarray, p_student: np.ndarray
) -> np.ndarray:
    """p_teacher − p_student of the sentences that are not short, float64. All inputs have shape (sentences,).

    `(sentence_deltas(...) > margin).sum()` counts teacher sentences at any margin, from lists of table `sentences` too.
    """
    long = (teacher_tokens >= MIN_TOKENS) & (student_tokens >= MIN_TOKENS)
    delta: np.ndarray = p_teacher[long].astype(np.float64) - p_student[long]
    return delta


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
    p_teacher, p_student = p_teacher.astype(np.float32), p_student.astype(np.float32)
    delta = sentence_deltas(teacher_tokens, student_tokens, p_teacher, p_student)
    total = int(teacher_tokens.sum())
    return Divergence(
        teacher_tokens=teacher_tokens,
        student_tokens=student_tokens,
        p_teacher=p_teacher,
        p_student=p_student,
        short_sentences=sentences - delta.size,
        teacher_counts=[int((delta > margin).sum()) for margin in MARGINS],
        student_counts=[int((delta < -margin).sum()) for margin in MARGINS],
        mean_delta=float(delta.mean()) if delta.size else None,
        log_ratio_nats=(teacher_sum - student_sum) / total if total else 0.0,
    )
