"""responses → scores: teacher logprobs from the reply, student logprobs from one pass, divergence by sentence."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa

from builder.candidate import Candidate, StudentModel, candidate_of, teacher_bytes
from builder.claim import claimed, settings_of
from builder.config import Recipe, Student
from builder.divergence import Divergence, divergence
from builder.endpoint_student import EndpointStudent
from builder.errors import ScoreError
from builder.local_student import LocalStudent
from builder.models import quantisation, student_id
from builder.rescore import Rescored, rescorable, rescore, rescored_ids
from builder.schema import CANDIDATE_ROLES
from builder.shards import Shard, drop_rows, of_shard
from builder.store import Run, columns_table
from builder.student import NoLogprobs
from builder.tokens import sentence_of_spans
from builder.windows import Windowed

_CHUNK: Final = 1024
"""Replies scored between two parts: what a crash costs, in student passes."""

_BLOCK_BYTES: Final = 64_000_000
"""Parquet bytes read at once; every part is read once, and a run below this is batched alike however it was sealed."""


@dataclass(frozen=True)
class ScoreResult:
    """Replies of the shard scored now; statuses of all replies of this student, and the most frequent reason for each
    but `ok`.

    `notes` counts replies that are scored but not as usual: in windows, by a rescoring teacher, a quantised student.
    """

    student_id: str
    scored: int
    statuses: dict[str, int]
    reasons: dict[str, str]
    notes: dict[str, int] = field(default_factory=dict)
    rescored: Rescored = field(default_factory=Rescored)

    @property
    def nothing_scored(self) -> bool:
        """Whether there are replies and none of them has a score."""
        return bool(self.statuses) and "ok" not in self.statuses


def score(
    run: Run,
    recipe: Recipe,
    *,
    shard: Shard = (0, 1),
    student: StudentModel | None = None,
    retry: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreResult:
    """Score every reply that this student has no score for; parts appear chunk by chunk, so a rerun goes on.

    Where `teacher.rescore` is set, replies without logprobs are sent to the teacher first: the one thing here that is
    paid, once a reply. `retry` asks again about what a server did not give before, and it alone: replies that are
    `no_student_logprobs`, and those that could not be rescored.
    Raises ScoreError when the student cannot be loaded, or its endpoint goes away; what is scored by then is kept.
    ShardBusy where another process scores this shard. What cannot be scored gets a named status, never a number.
    """
    with claimed(run, "score", shard, settings=settings_of(recipe, "score")):
        return _score(run, recipe, shard, student, progress, retry=retry)


def _score(
    run: Run,
    recipe: Recipe,
    shard: Shard,
    student: StudentModel | None,
    progress: Callable[[int, int], None] | None,
    *,
    retry: bool,
) -> ScoreResult:
    identity = student_id(recipe.require_student())
    if retry and recipe.require_teacher().rescore:
        _drop(run, "logprobs", _ours(run, rescored_ids(run, failed=True), shard))
    unscored = rescorable(run, recipe, shard=shard)
    rescored = Rescored()
    if unscored.height:  # the student first: it may be at fault, and costs nothing
        student = student or _loaded(recipe.require_student())
        rescored = rescore(run, recipe, unscored, shard=shard, progress=progress)
    if outdated := _ours(run, _outdated(run, identity, retry), shard):
        student = student or _loaded(recipe.require_student())
        _drop(run, "scores", outdated, identity)
    missing = _missing(run, identity, shard)
    if missing.height:
        student = student or _loaded(recipe.require_student())
        quantised = quantisation(recipe.require_student())
        pieces = cache(partial(teacher_bytes, recipe.require_teacher()))
        prompts = dict(run.read("prompts", ["prompt_id", "messages"]).iter_rows())
        stored = run.scan("sentences").filter(pl.col("student_id") == identity).select("response_id").collect()
        written = set(stored["response_id"].to_list())  # by a call that ended before it wrote their scores
        done = 0
        for chunk in _chunks(run, missing):
            candidates = [candidate_of(row, pieces, student, prompts) for row in chunk.iter_rows(named=True)]
            found = _diverge(student, candidates)
            if quantised:
                _note(candidates, f"student: its weights are quantised ({quantised})")
            known = [candidate for candidate in candidates if candidate.left is None]
            _write(run, identity, known, found, written, shard[0])
            done += len(known)
            if progress:
                progress(done, missing.height)
            _go_on(candidates, done, missing.height)
    of_student = run.read("scores", ["student_id", "status", "status_detail"]).filter(student_id=identity)
    counted = of_student.group_by("status", "status_detail").len().sort("len", "status_detail")
    statuses: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for status, detail, number in counted.iter_rows():
        statuses[status] += number
        if detail is not None:
            reasons[status] = detail
    notes = {reason: number for status, reason, number in counted.iter_rows() if status == "ok" and reason}
    reasons.pop("ok", None)
    return ScoreResult(identity, missing.height, dict(sorted(statuses.items())), reasons, notes, rescored)


def _loaded(student: Student) -> StudentModel:
    return EndpointStudent(student) if student.backend == "endpoint" else LocalStudent(student)


def _go_on(candidates: list[Candidate], done: int, total: int) -> None:
    """Raise ScoreError where the student went away in the middle of these replies."""
    reasons = [candidate.left for candidate in candidates if candidate.left is not None]
    if reasons:
        raise ScoreError(
            f"{reasons[0]}. This call scored {done:,} replies, which are kept; {total - done:,} have no score yet. "
            "Start the server again and rerun builder score. If long rows end it, give vLLM a smaller "
            "--max-num-batched-tokens, or a smaller --max-model-len: it then refuses them, and windows score them."
        )


def _note(candidates: list[Candidate], text: str) -> None:
    for candidate in candidates:
        candidate.notes.append(text)


def _outdated(run: Run, identity: str, retry: bool) -> set[str]:
    """Replies whose score says what is so no more: they lacked teacher logprobs, and were rescored since.

    With `retry`, also those for which the student's server gave none: it may give them now.
    """
    scores = run.read("scores", ["response_id", "student_id", "status"]).filter(student_id=identity)
    found = set(scores.filter(pl.col("status") == "no_student_logprobs")["response_id"].to_list()) if retry else set()
    without = set(scores.filter(pl.col("status") == "no_teacher_logprobs")["response_id"].to_list())
    return found | (without & rescored_ids(run) if without else set())


def _ours(run: Run, ids: set[str], shard: Shard) -> set[str]:
    """Those of the replies that the shard holds."""
    if not ids or shard[1] == 1:
        return ids
    replies = run.scan("responses").filter(of_shard(shard)).select("response_id").collect()
    return ids & set(replies["response_id"].to_list())


def _drop(run: Run, table: str, ids: set[str], identity: str | None = None) -> None:
    """Take the rows of these replies out of a table, those of one student where it is named.

    A reply counts as scored by the row that it has: no reader meets two.
    """

    def gone(rows: pa.Table) -> list[bool]:
        students = rows["student_id"].to_pylist() if identity else [None] * rows.num_rows
        named = zip(rows["response_id"].to_pylist(), students, strict=True)
        return [response in ids and student == identity for response, student in named]

    if ids:
        drop_rows(run, table, gone, ["response_id", "student_id"] if identity else ["response_id"])


def _missing(run: Run, identity: str, shard: Shard) -> pl.DataFrame:
    """Replies of the shard without a score for this student: response_id, and the part that each stands in."""
    scored = run.read("scores", ["response_id", "student_id"]).filter(student_id=identity)
    prompts = run.read("prompts", ["prompt_id"])
    replies = run.scan("responses", paths_as="part").filter(pl.col("role").is_in(CANDIDATE_ROLES) & of_shard(shard))
    wanted = replies.join(prompts.lazy(), on="prompt_id", how="semi").select("response_id", "part")
    return wanted.join(scored.lazy(), on="response_id", how="anti").unique("response_id").collect()


def _chunks(run: Run, missing: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Replies with their logprobs, ascending by id within a block of parts, so that batches do not depend on parts."""
    logprobs: list[Path] = []
    held: list[pl.DataFrame] = []
    for part, ids in run.by_part("logprobs", ["response_id"]):  # one listing: another shard may add a part meanwhile
        held.append(pl.DataFrame(ids).with_columns(part=pl.lit(len(logprobs))))
        logprobs.append(part)
    places = pl.concat(held) if held else pl.DataFrame(schema={"response_id": pl.String, "part": pl.Int32})
    stand_in = {Path(part).name for part in missing["part"].unique()}
    for parts in _blocks([part for part in run.parts("responses") if part.name in stand_in]):
        block = (
            pl.scan_parquet(parts, glob=False)
            .select("response_id", "prompt_id", "reasoning", "answer", "logprobs_mode", "prefix_chars")
            .join(missing.lazy(), on="response_id", how="semi")
            .unique("response_id")
            .collect()
        )
        needed = places.join(block, on="response_id", how="semi")["part"].unique().sort().to_list()
        with ExitStack() as files:  # open, because another shard may replace them: see `Run.read`
            opened = [files.enter_context(logprobs[i].open("rb")) for i in needed]
            values = pl.scan_parquet(opened) if opened else run.scan("logprobs").head(0)
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


def _diverge(student: StudentModel, candidates: list[Candidate]) -> dict[str, Divergence]:
    """One student pass over what can be scored; divergences by response id."""
    ready = [candidate for candidate in candidates if candidate.status == "ok"]
    logprobs = student.logprobs([candidate.rendered for candidate in ready if candidate.rendered is not None])
    result = {}
    for candidate, values in zip(ready, logprobs, strict=True):
        if candidate.teacher_spans is None or candidate.student_spans is None or candidate.teacher_logprobs is None:
            continue
        if isinstance(values, NoLogprobs):
            if values.lasting:
                candidate.fail("no_student_logprobs", values.reason)
            else:
                candidate.left = values.reason
            continue
        student_logprobs = values.values if isinstance(values, Windowed) else values
        if isinstance(values, Windowed):
            candidate.notes.append(f"student: {values.said}")
        text = candidate.text.encode()
        if not np.isfinite(student_logprobs).all():
            candidate.fail("student_cannot_render", "the student's logprobs are not finite")
            continue
        found = divergence(
            candidate.teacher_logprobs,
            sentence_of_spans(candidate.teacher_spans, text, candidate.byte_end),
            student_logprobs,
            sentence_of_spans(candidate.student_spans, text, candidate.byte_end),
            len(candidate.byte_end),
        )
        result[candidate.response_id] = found
        if found.mean_delta is None:
            candidate.fail("too_few_tokens", f"all {found.short_sentences} sentences are shorter than 3 tokens")
    return result


def _write(
    run: Run, identity: str, candidates: list[Candidate], found: dict[str, Divergence], written: set[str], shard: int
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
                    "byte_end": np.asarray(candidate.byte_end, np.int32),
                    "teacher_tokens": result.teacher_tokens,
                    "student_tokens": result.student_tokens,
                    "p_teacher": result.p_teacher,
                    "p_student": result.p_student,
                }
            )
        counted = result if candidate.status == "ok" else None
        scores.append(
            {
                "response_id": candidate.response_id,
                "student_id": identity,
                "status": candidate.status,
                "status_detail": candidate.status_detail,
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
