"""responses → scores: teacher logprobs from the reply, student logprobs from one pass, divergence by sentence."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import polars as pl

from builder.config import Recipe, Student, Teacher
from builder.divergence import Divergence, divergence
from builder.endpoint_student import EndpointStudent
from builder.errors import ScoreError
from builder.identity import Message
from builder.models import student_id, tokenizer_json
from builder.reply import MISSING_LOGPROB
from builder.schema import CANDIDATE_ROLES
from builder.store import Run, columns_table
from builder.student import CannotRender, LocalStudent, NoLogprobs, Rendered
from builder.text import canonical_text, sentence_byte_ends
from builder.tokens import AlignError, align, sentence_of_tokens, token_bytes

_CHUNK: Final = 1024
"""Replies scored between two parts: what a crash costs, in student passes."""

_BLOCK_BYTES: Final = 64_000_000
"""Parquet bytes read at once; every part is read once, and a run below this is batched alike however it was sealed."""

_TokenBytes = Callable[[], dict[int, bytes] | None]
"""The teacher's token bytes, read only when some reply needs them."""


class StudentModel(Protocol):
    """What scoring needs of a student."""

    @property
    def context(self) -> int | None:
        """Most tokens a row may have; None where the model names no limit."""

    def render(self, messages: list[Message], reasoning: str | None, answer: str | None) -> Rendered:
        """The reply in the student's tokens; raises CannotRender."""

    def logprobs(self, rows: list[Rendered]) -> Sequence[np.ndarray | NoLogprobs]:
        """Logprobs of the completion tokens of each row, nats, or why it has none."""


@dataclass(frozen=True)
class ScoreResult:
    """Replies scored now; statuses of all replies of this student, and the most frequent reason for each but `ok`."""

    student_id: str
    scored: int
    statuses: dict[str, int]
    reasons: dict[str, str]

    @property
    def nothing_scored(self) -> bool:
        """Whether there are replies and none of them has a score."""
        return bool(self.statuses) and "ok" not in self.statuses


@dataclass
class _Candidate:
    """A reply on its way: what is known before the student pass."""

    response_id: str
    text: str
    byte_end: list[int]
    status: str = "ok"
    detail: str | None = None
    teacher_logprobs: np.ndarray | None = None
    teacher_end: np.ndarray | None = None
    rendered: Rendered | None = None
    student_end: np.ndarray | None = None
    left: str | None = None
    """Why it waits for another call: nothing is known about it yet, so nothing is written."""

    def fail(self, status: str, detail: str) -> None:
        """Name the first thing that is wrong; later ones do not hide it."""
        if self.status == "ok":
            self.status, self.detail = status, detail


def score(
    run: Run,
    recipe: Recipe,
    *,
    shard: int = 0,
    student: StudentModel | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreResult:
    """Score every reply that this student has no score for; parts appear chunk by chunk, so a rerun goes on.

    Raises ScoreError when the student cannot be loaded, or its endpoint goes away; what is scored by then is kept.
    What cannot be scored gets a named status, never a number.
    """
    identity = student_id(recipe.require_student())
    missing = _missing(run, identity)
    if missing.height:
        student = student or _loaded(recipe.require_student())
        pieces = cache(partial(_teacher_bytes, recipe.require_teacher()))
        prompts = {row["prompt_id"]: row["messages"] for row in run.read("prompts").iter_rows(named=True)}
        stored = run.scan("sentences").filter(pl.col("student_id") == identity).select("response_id").collect()
        written = set(stored["response_id"].to_list())  # by a call that ended before it wrote their scores
        done = 0
        for chunk in _chunks(run, missing):
            candidates = [_candidate(row, pieces, student, prompts) for row in chunk.iter_rows(named=True)]
            found = _diverge(student, candidates)
            known = [candidate for candidate in candidates if candidate.left is None]
            _write(run, identity, known, found, written, shard)
            done += len(known)
            if progress:
                progress(done, missing.height)
            _go_on(candidates, done, missing.height)
    of_student = run.scan("scores").filter(pl.col("student_id") == identity)
    counted = of_student.group_by("status", "status_detail").len().sort("len", "status_detail").collect()
    statuses: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for status, detail, number in counted.iter_rows():
        statuses[status] += number
        if detail is not None:
            reasons[status] = detail
    return ScoreResult(identity, missing.height, dict(sorted(statuses.items())), reasons)


def _loaded(student: Student) -> StudentModel:
    return EndpointStudent(student) if student.backend == "endpoint" else LocalStudent(student)


def _go_on(candidates: list[_Candidate], done: int, total: int) -> None:
    """Raise ScoreError where the student went away in the middle of these replies."""
    reasons = [candidate.left for candidate in candidates if candidate.left is not None]
    if reasons:
        raise ScoreError(
            f"{reasons[0]}. This call scored {done:,} replies, which are kept; {total - done:,} have no score yet. "
            "Start the server again and rerun builder score. If long rows end it, give vLLM a smaller "
            "--max-num-batched-tokens, or a smaller --max-model-len: it then refuses them, and they get a named status."
        )


def _missing(run: Run, identity: str) -> pl.DataFrame:
    """Ids of replies without a score for this student."""
    scored = run.scan("scores").filter(pl.col("student_id") == identity).select("response_id")
    replies = run.scan("responses").filter(pl.col("role").is_in(CANDIDATE_ROLES))
    wanted = replies.join(run.scan("prompts"), on="prompt_id", how="semi").select("response_id")
    return wanted.join(scored, on="response_id", how="anti").unique().collect()


def _chunks(run: Run, missing: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Replies with their logprobs, ascending by id within a block of parts, so that batches do not depend on parts."""
    logprobs = run.parts("logprobs")
    held = [pl.scan_parquet(part, glob=False).select("response_id", part=pl.lit(i)) for i, part in enumerate(logprobs)]
    places = pl.concat(held).collect() if held else pl.DataFrame(schema={"response_id": pl.String, "part": pl.Int32})
    for parts in _blocks(run.parts("responses")):
        block = (
            pl.scan_parquet(parts, glob=False)
            .select("response_id", "prompt_id", "reasoning", "answer", "logprobs_mode", "prefix_chars")
            .join(missing.lazy(), on="response_id", how="semi")
            .unique("response_id")
            .collect()
        )
        needed = places.join(block, on="response_id", how="semi")["part"].unique().sort().to_list()
        values = pl.scan_parquet([logprobs[i] for i in needed], glob=False) if needed else run.scan("logprobs").head(0)
        rows = block.lazy().join(values, on="response_id", how="left").sort("response_id").collect()
        for start in range(0, rows.height, _CHUNK):
            yield rows.slice(start, _CHUNK)


def _blocks(parts: list[Path]) -> Iterator[list[Path]]:
    """Parts in order, as many at once as `_BLOCK_BYTES` allow."""
    block: list[Path] = []
    size = 0
    for part in parts:
        size += part.stat().st_size
        if block and size > _BLOCK_BYTES:
            yield block
            block, size = [], part.stat().st_size
        block.append(part)
    if block:
        yield block


def _candidate(
    row: dict[str, Any],
    pieces: _TokenBytes,
    student: StudentModel,
    prompts: dict[str, list[Message]],
) -> _Candidate:
    """Everything about one reply that needs no forward pass."""
    text = canonical_text(row["reasoning"], row["answer"])
    candidate = _Candidate(row["response_id"], text, sentence_byte_ends(text))
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
            candidate.student_end = align(candidate.rendered.pieces, row["reasoning"], row["answer"])
        except AlignError as error:
            candidate.fail("align_error", f"student: {error}")
    if not text:
        candidate.fail("too_few_tokens", "the reply holds no text")
    return candidate


def _teacher_side(candidate: _Candidate, row: dict[str, Any], pieces: _TokenBytes) -> None:
    values = row["logprob"]
    if row["prefix_chars"] or not values:
        reason = "the endpoint gave no logprobs for this reply"
        if row["prefix_chars"]:
            reason = (
                f"its first {row['prefix_chars']} characters are the student's: teacher logprobs cover the rest only"
            )
        candidate.fail("no_teacher_logprobs", reason)
        return
    if row["logprobs_mode"] != "raw":
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
    candidate.teacher_logprobs, candidate.teacher_end = logprobs, offsets


def _align_by_ids(candidate: _Candidate, row: dict[str, Any], pieces: _TokenBytes) -> list[int] | None:
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


def _diverge(student: StudentModel, candidates: list[_Candidate]) -> dict[str, Divergence]:
    """One student pass over what can be scored; divergences by response id."""
    ready = [candidate for candidate in candidates if candidate.status == "ok"]
    logprobs = student.logprobs([candidate.rendered for candidate in ready if candidate.rendered is not None])
    result = {}
    for candidate, values in zip(ready, logprobs, strict=True):
        if candidate.teacher_end is None or candidate.student_end is None or candidate.teacher_logprobs is None:
            continue
        if isinstance(values, NoLogprobs):
            if values.lasting:
                candidate.fail("no_student_logprobs", values.reason)
            else:
                candidate.left = values.reason
            continue
        text = candidate.text.encode()
        if not np.isfinite(values).all():
            candidate.fail("student_cannot_render", "the student's logprobs are not finite")
            continue
        found = divergence(
            candidate.teacher_logprobs,
            sentence_of_tokens(candidate.teacher_end, text, candidate.byte_end),
            values,
            sentence_of_tokens(candidate.student_end, text, candidate.byte_end),
            len(candidate.byte_end),
        )
        result[candidate.response_id] = found
        if found.mean_delta is None:
            candidate.fail("too_few_tokens", f"all {found.short_sentences} sentences are shorter than 3 tokens")
    return result


def _write(
    run: Run, identity: str, candidates: list[_Candidate], found: dict[str, Divergence], written: set[str], shard: int
) -> None:
    """Sentences first, but those `written` already: a reply counts as scored once it is in `scores`."""
    sentences, scores = [], []
    for candidate in candidates:
        result = found.get(candidate.response_id)
        if result is not None and candidate.response_id not in written:
            sentences.append(
                {
                    "response_id": candidate.response_id,
                    "student_id": identity,
                    "byte_end": candidate.byte_end,
                    "teacher_tokens": result.teacher_tokens.tolist(),
                    "student_tokens": result.student_tokens.tolist(),
                    "p_teacher": [None if np.isnan(value) else value for value in result.p_teacher.tolist()],
                    "p_student": [None if np.isnan(value) else value for value in result.p_student.tolist()],
                }
            )
        counted = result if candidate.status == "ok" else None
        scores.append(
            {
                "response_id": candidate.response_id,
                "student_id": identity,
                "status": candidate.status,
                "status_detail": candidate.detail,
                "sentence_count": len(candidate.byte_end),
                "short_sentences": result.short_sentences if result else None,
                "teacher_counts": counted.teacher_counts if counted else None,
                "student_counts": counted.student_counts if counted else None,
                "mean_delta": counted.mean_delta if counted else None,
                "log_ratio_nats": counted.log_ratio_nats if counted else None,
                "student_tokens": candidate.rendered.training_tokens if candidate.rendered else None,
            }
        )
    run.append("sentences", columns_table("sentences", sentences), shard=shard)
    run.append("scores", columns_table("scores", scores), shard=shard)


def _teacher_bytes(teacher: Teacher) -> dict[int, bytes] | None:
    """Bytes of the teacher's tokens; None where its tokenizer is not to be had (token texts may do without)."""
    serialised = tokenizer_json(teacher)
    return None if serialised is None else token_bytes(serialised)
