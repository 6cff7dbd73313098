"""One reply on its way to a score: what is known of it before the student pass, and what is wrong with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from builder.config import Teacher
from builder.identity import Message
from builder.models import tokenizer_json
from builder.reply import MISSING_LOGPROB
from builder.rescore import RESCORED
from builder.student import CannotRender, NoLogprobs, Rendered
from builder.text import canonical_text, sentence_byte_ends
from builder.tokens import AlignError, align, spans_of_ends, token_bytes
from builder.windows import Windowed

TokenBytes = Callable[[], dict[int, bytes] | None]
"""The teacher's token bytes, read only when some reply needs them."""


class StudentModel(Protocol):
    """What scoring needs of a student."""

    @property
    def context(self) -> int | None:
        """Most tokens a row may have; None where the model names no limit."""

    def render(self, messages: list[Message], reasoning: str | None, answer: str | None) -> Rendered:
        """The reply in the student's tokens; raises CannotRender."""

    def align(self, rendered: Rendered, reasoning: str | None, answer: str | None) -> np.ndarray:
        """Bytes of the canonical text that each completion token covers, shape (tokens, 2); raises AlignError."""

    def logprobs(self, rows: list[Rendered]) -> Sequence[np.ndarray | Windowed | NoLogprobs]:
        """Logprobs of the completion tokens of each row, nats, as a whole or in windows; or why it has none."""


@dataclass
class Candidate:
    """A reply on its way: what is known before the student pass."""

    response_id: str
    text: str
    byte_end: list[int]
    status: str = "ok"
    detail: str | None = None
    teacher_logprobs: np.ndarray | None = None
    teacher_spans: np.ndarray | None = None
    rendered: Rendered | None = None
    student_spans: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)
    """What a reader of its score has to know: how teacher or student logprobs were come by, where not as usual."""
    left: str | None = None
    """Why it waits for another call: nothing is known about it yet, so nothing is written."""

    def fail(self, status: str, detail: str) -> None:
        """Name the first thing that is wrong; later ones do not hide it."""
        if self.status == "ok":
            self.status, self.detail = status, detail

    @property
    def status_detail(self) -> str | None:
        """The reason where the status is not ok, else the notes."""
        return self.detail if self.status != "ok" else "; ".join(self.notes) or None


def candidate_of(
    row: dict[str, Any],
    pieces: TokenBytes,
    student: StudentModel,
    prompts: dict[str, list[Message]],
) -> Candidate:
    """Everything about one reply that needs no forward pass."""
    text = canonical_text(row["reasoning"], row["answer"])
    candidate = Candidate(row["response_id"], text, sentence_byte_ends(text))
    try:
        candidate.rendered = student.render(prompts[row["prompt_id"]], row["reasoning"], row["answer"])
    except CannotRender as error:
        candidate.fail("student_cannot_render", str(error))
    if candidate.rendered and student.context and candidate.rendered.training_tokens > student.context:
        tokens = candidate.rendered.training_tokens
        candidate.fail("student_cannot_render", f"{tokens} tokens exceed the student's context of {student.context}")
    _teacher_side(candidate, row, pieces)
    if candidate.status == "ok" and candidate.rendered is not None:
        try:
            candidate.student_spans = student.align(candidate.rendered, row["reasoning"], row["answer"])
        except AlignError as error:
            candidate.fail("align_error", f"student: {error}")
    if not text:
        candidate.fail("too_few_tokens", "the reply holds no text")
    return candidate


def _teacher_side(candidate: Candidate, row: dict[str, Any], pieces: TokenBytes) -> None:
    values = row["logprob"]
    if row["prefix_chars"] or not values:
        reason = "the endpoint gave no logprobs for this reply"
        if row["align_detail"]:
            reason = f"{reason}; {row['align_detail']}"
        if row["prefix_chars"]:
            reason = (
                f"its first {row['prefix_chars']} characters are the student's: teacher logprobs cover the rest only"
            )
        candidate.fail("no_teacher_logprobs", reason)
        return
    if (row["align_detail"] or "").startswith(RESCORED):  # not by sampling: they have no temperature and no mode
        candidate.notes.append(f"teacher: {row['align_detail']}")
    elif row["logprobs_mode"] != "raw":
        candidate.fail(
            "processed_logprobs", f"logprobs are declared {row['logprobs_mode']}: not comparable to the student's"
        )
        return
    ends = row["token_end"]
    if ends is None:
        ends = _align_by_ids(candidate, row, pieces)
    if ends is None:
        return
    offsets = np.asarray(ends, dtype=np.int32)
    logprobs = np.asarray(values, dtype=np.float32)  # None becomes nan
    if len(offsets) != len(logprobs):
        candidate.fail("align_error", f"teacher: {len(logprobs)} logprobs but {len(offsets)} token ends")
        return
    size, covered = len(candidate.text.encode()), np.diff(offsets, prepend=0)
    if offsets[-1] != size or covered.min() < 0:
        candidate.fail("align_error", f"teacher: token ends up to {offsets[-1]} do not cover the text of {size} bytes")
        return
    content = covered > 0
    absent = int((~np.isfinite(logprobs[content]) | (logprobs[content] <= MISSING_LOGPROB)).sum())
    if absent:
        candidate.fail("no_teacher_logprobs", f"{absent} of {int(content.sum())} tokens have no finite logprob")
        return
    candidate.teacher_logprobs, candidate.teacher_spans = logprobs, spans_of_ends(offsets)


def _align_by_ids(candidate: Candidate, row: dict[str, Any], pieces: TokenBytes) -> list[int] | None:
    """Token ends from token ids, for endpoints whose token texts lose bytes; names the reason where that fails too."""
    ids = row["token_ids"]
    table = pieces() if ids else None
    if not ids or table is None or len(ids) != len(row["logprob"]):
        reason = f"there are {len(ids or [])} token ids for {len(row['logprob'])} logprobs"
        if ids and table is None:
            reason = "the teacher's tokenizer cannot be read"
        candidate.fail("align_error", f"teacher: {row['align_detail']}, and {reason}")
        return None
    unknown = [index for index in ids if index not in table]
    if unknown:
        candidate.fail("align_error", f"teacher: token id {unknown[0]} is not in the tokenizer; is it this model's?")
        return None
    try:
        ends: list[int] = align([table[index] for index in ids], row["reasoning"], row["answer"]).tolist()
    except AlignError as error:
        candidate.fail("align_error", f"teacher: {error}")
        return None
    return ends


def teacher_bytes(teacher: Teacher) -> dict[int, bytes] | None:
    """Bytes of the teacher's tokens; None where its tokenizer is not to be had (token texts may do without)."""
    serialised = tokenizer_json(teacher)
    return None if serialised is None else token_bytes(serialised)
