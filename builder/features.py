"""Features of replies: lengths, flags, repetition, scripts. What SQL should not recompute is measured once, here."""

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.claim import claimed
from builder.errors import TableError, VerifyError
from builder.identity import sha256_hex
from builder.ngrams import CODE, FORMULA, PROSE, Codes, Marks
from builder.refusals import refuses
from builder.repeats import (
    MIN_PARAGRAPH_CHARS,
    MIN_SENTENCE_CHARS,
    Span,
    longest,
    most_repeated,
    paragraph_spans,
    tail_loop_chars,
)
from builder.repetition import compiled, repetition
from builder.schema import FEATURES, RESPONSES
from builder.scripts import OTHER, SCRIPTS, kinds
from builder.shards import Shard, rewriting, shard_rows
from builder.store import Run, check_schema
from builder.supervised import supervised
from builder.text import QuietSpan, canonical_text, quiet_spans, sentence_ends

if TYPE_CHECKING:
    import polars as pl  # every worker process would load it for nothing

LONGEST_FORMULA: Final = 200
"""Characters up to which a formula is exempt from the repetition measures."""
_BATCH_ROWS: Final = 500
_SMALL_BYTES: Final = 16 * 2**20
"""Up to so much text one process does all; starting others and compiled code takes as long as its features."""
_WORKER_LIMIT_S: Final = 3600.0
_WORKER_BYTES: Final = 8 * 2**30

_THINK_TAG: Final = re.compile(r"</?think>", re.IGNORECASE)
_CHANNEL_MARKER: Final = re.compile(r"<\|(?:start|end|message|channel|constrain|return|call)\|>")
_FENCE_LINE: Final = re.compile(r"\n[ \t]{0,16}(?:```|~~~)")
_CLOSED: Final = re.compile(r"\n[ \t]*(?:`{3,}|~{3,})\s*\Z")
_LATEX_TABLE: Final = re.compile(r"\\begin\{(array|tabular|[a-zA-Z]?matrix)\}.{0,4000}?\\end\{\1\}", re.DOTALL)

Row = dict[str, int | float | str | bool | None]
Reply = tuple[str, str | None, str | None]
"""response_id, reasoning, answer."""


class _Counted(NamedTuple):
    """What is found in Python or, five times as fast, by compiled code; `letters` are characters of prose by kind."""

    sentences: int
    longest_paragraph: int
    sentence_repeats: int
    paragraph_repeats: int
    letters: list[int]
    collapsed: str


def compute_features(responses: "pl.DataFrame") -> pa.Table:
    """Features of every row of `responses` (columns response_id, reasoning, answer), in table FEATURES' schema.

    Time is linear in the length of a text but for one sort of its words.
    """
    return _table([_row(reply) for reply in responses.select("response_id", "reasoning", "answer").iter_rows()])


def update_features(
    run: Run,
    *,
    shard: Shard = (0, 1),
    workers: int | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> int:
    """Compute what table `features` lacks for the replies of the shard and append it; returns how many replies.

    Waits for processes that compute features of the same replies.

    One part of features for each part of responses, whatever `workers`, by default one a core; little text is done in
    this process. Memory holds a few batches of text for each worker, and an interruption loses one part. `progress`
    gets a name, the replies done and their number. Raises TableError where a part of responses cannot be read or no
    worker can be started.
    """
    with claimed(run, "features", shard, wait=True):
        return _update_features(run, shard, workers, progress)


def _update_features(run: Run, shard: Shard, workers: int | None, progress: Callable[[str, int, int], None]) -> int:
    drop_outdated(run)
    missing = _missing(run, shard)
    batches = ((index, replies) for index, (part, ids) in enumerate(missing) for replies in _replies(part, ids))
    number = sum(len(ids) for _, ids in missing)
    if sum(_text_bytes(part, len(ids)) for part, ids in missing) <= _SMALL_BYTES:
        done: Iterator[tuple[int, list[Row]]] = ((index, [_row(reply) for reply in some]) for index, some in batches)
    else:
        done = _in_workers(batches, workers or _cores())
    count = 0
    for _, group in itertools.groupby(done, key=lambda found: found[0]):
        rows: list[Row] = []
        for _, some in group:
            rows += some
            progress("features", count + len(rows), number)
        run.append("features", _table(rows), shard=shard[0])
        count += len(rows)
    return count


def drop_outdated(run: Run) -> int:
    """Delete the parts of `features` that another version computed or that cannot be read; returns how many parts.

    They cost processor time and no request, so `update_features` simply computes them again; events.jsonl says so. The
    first of several shards drops them, of all shards.
    """
    if all(map(_is_current, run.parts("features"))):
        return 0
    with rewriting(run):
        # looked at again, because the name of one that another shard dropped may be that of its new part by now
        outdated = [part for part in run.parts("features") if not _is_current(part)]
        for part in outdated:
            part.unlink()
    if outdated:
        run.event("features", {"parts_dropped": len(outdated), "reason": "computed by another version, or unreadable"})
    return len(outdated)


def _is_current(part: Path) -> bool:
    try:
        found = pq.read_schema(part)
    except (OSError, pa.ArrowException):
        return False
    wanted = FEATURES.schema
    return found.equals(wanted) and (found.metadata or {}).get(b"version") == wanted.metadata[b"version"]


def _missing(run: Run, shard: Shard) -> list[tuple[Path, "pa.Array[Any]"]]:
    """Parts of responses with the shard's ids in each that lack features; an id counts for the first part it is in."""
    known = _ids(run.parts("features"))
    found = []
    for part in run.parts("responses"):
        check_schema(RESPONSES, part)
        ids = _ids([part], shard)
        missing = ids.filter(pc.invert(pc.is_in(ids, value_set=known)))
        if len(missing):
            found.append((part, missing))
            known = pa.concat_arrays([known, missing])
    return found


def _ids(parts: Iterable[Path], shard: Shard = (0, 1)) -> "pa.Array[Any]":
    """Ids of replies in these parts; of one shard only in parts of responses, which say whose prompt each answers."""
    names = ["response_id"] if shard[1] == 1 else ["response_id", "prompt_id"]
    rows = (shard_rows(pq.read_table(part, columns=names), shard) for part in parts)
    columns = [some.column("response_id").combine_chunks() for some in rows]
    return pa.concat_arrays([pa.array([], pa.string()), *columns])


def _text_bytes(part: Path, rows: int) -> int:
    """About how much text so many rows of a part of responses hold, bytes; from its footer."""
    footer = pq.read_metadata(part)
    columns = [
        footer.row_group(group).column(index)
        for group in range(footer.num_row_groups)
        for index in range(footer.num_columns)
    ]
    text = sum(column.total_uncompressed_size for column in columns if column.path_in_schema in ("reasoning", "answer"))
    return text * rows // max(1, footer.num_rows)


def _replies(part: Path, ids: "pa.Array[Any]") -> Iterator[list[Reply]]:
    """Texts of these replies of a part, in batches."""
    with pq.ParquetFile(part) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=["response_id", "reasoning", "answer"]):
            rows = batch.filter(pc.is_in(batch.column(0), value_set=ids))
            if rows.num_rows:
                yield list(zip(*(column.to_pylist() for column in rows.columns), strict=True))


def _in_workers(batches: Iterable[tuple[int, list[Reply]]], workers: int) -> Iterator[tuple[int, list[Row]]]:
    """Features of each batch, in the order of `batches`, by worker processes; what kills a worker is tried here."""
    sent: dict[int, tuple[int, list[Reply]]] = {}

    def calls() -> Iterator[tuple[list[Reply]]]:
        for number, batch in enumerate(batches):
            sent[number] = batch
            yield (batch[1],)

    results = supervised(
        "builder.features:batch_features",
        calls(),
        workers=workers,
        deadline_s=_WORKER_LIMIT_S,
        memory_bytes=_WORKER_BYTES,
    )
    ready: dict[int, list[Row]] = {}
    following = 0
    try:
        for result in results:
            replies = sent[result.index][1]
            ready[result.index] = result.value if result.status == "ok" else [_row(reply) for reply in replies]
            while following in ready:
                yield sent.pop(following)[0], ready.pop(following)
                following += 1
    except VerifyError as error:
        reason = str(error).partition(". ")[0]
        raise TableError(
            f"No process that computes features could be started ({reason}). Table features lacks the replies that are "
            "left. Is the machine overloaded or out of memory? Rerun the same command; finished parts "
            "are kept."
        ) from error


def batch_features(replies: list[Reply]) -> list[Row]:
    """Features of some replies, by compiled code; what a worker process runs."""
    return [_row(reply, fast=True) for reply in replies]


def _row(reply: Iterable[str | None], *, fast: bool = False) -> Row:
    response_id, reasoning, answer = reply
    return {"response_id": response_id, **text_features(reasoning, answer, fast=fast)}


def _table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=FEATURES.schema)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def text_features(reasoning: str | None, answer: str | None, *, fast: bool = False) -> Row:
    """All features of one reply but its id; `fast` asks for compiled code, which takes half a second to load."""
    thinking, final = reasoning or "", answer or ""
    text = canonical_text(reasoning, answer)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    spans, paragraphs = quiet_spans(text), paragraph_spans(text)
    quiet = quiet_marks(text, spans)
    is_compiled = fast and compiled() is not None
    repeated = repetition(codes, quiet, fast=is_compiled)
    counted = (_by_loops if is_compiled else _by_python)(text, codes, quiet, spans, paragraphs)
    return {
        "reasoning_chars": len(thinking.strip()),
        "answer_chars": len(final.strip()),
        "paragraph_count": len(paragraphs),
        "longest_paragraph_chars": counted.longest_paragraph,
        "sentence_count": counted.sentences,
        "think_tags": len(_THINK_TAG.findall(thinking)) + len(_THINK_TAG.findall(final)),
        "channel_markers": len(_CHANNEL_MARKER.findall(thinking)) + len(_CHANNEL_MARKER.findall(final)),
        "sentence_repeats": counted.sentence_repeats,
        "paragraph_repeats": counted.paragraph_repeats,
        "ngram_repeats": repeated.most,
        "distinct_4gram_share": repeated.different / repeated.fours if repeated.fours else None,
        "tail_loop_chars": max(tail_loop_chars(thinking), tail_loop_chars(final)),
        **{f"{script}_chars": counted.letters[kind] for script, kind in SCRIPTS.items()},
        "code_fences": _fence_lines(thinking if thinking.strip() else final),
        "refuses": refuses(final),
        "text_hash": sha256_hex(counted.collapsed.lower()),
    }


def _by_python(text: str, codes: Codes, quiet: Marks, spans: list[QuietSpan], paragraphs: list[Span]) -> _Counted:
    ends = sentence_ends(text, spans)
    sentences = list(zip([0, *ends], ends, strict=False))
    exempt = np.concatenate(([0], np.cumsum(quiet != PROSE))) if quiet.any() else None
    return _Counted(
        sentences=len(ends),
        longest_paragraph=longest(paragraphs, exempt),
        sentence_repeats=most_repeated(text, sentences, exempt, MIN_SENTENCE_CHARS),
        paragraph_repeats=most_repeated(text, paragraphs, exempt, MIN_PARAGRAPH_CHARS),
        letters=np.bincount(kinds()[codes[quiet == PROSE]], minlength=OTHER + 1).tolist(),
        collapsed=" ".join(text.split()),
    )


def _by_loops(text: str, codes: Codes, quiet: Marks, spans: list[QuietSpan], paragraphs: list[Span]) -> _Counted:
    """The same, compiled."""
    loops = _loops()
    sentences = loops.sentence_spans(codes, spans)
    sentence_repeats, _ = loops.span_repeats(codes, quiet, sentences, MIN_SENTENCE_CHARS)
    blocks = np.array(paragraphs, dtype=np.int64).reshape(-1, 2)
    paragraph_repeats, longest_paragraph = loops.span_repeats(codes, quiet, blocks, MIN_PARAGRAPH_CHARS)
    return _Counted(
        sentences=len(sentences),
        longest_paragraph=longest_paragraph,
        sentence_repeats=sentence_repeats,
        paragraph_repeats=paragraph_repeats,
        letters=loops.letters(codes, quiet),
        collapsed=loops.collapsed(codes),
    )


@cache
def _loops() -> ModuleType:
    from builder import feature_loops

    return feature_loops


def _fence_lines(text: str) -> int:
    # Most texts hold no fence, and looking for its signs takes a third of the time of looking at every line.
    return len(_FENCE_LINE.findall("\n" + text)) if "```" in text or "~~~" in text else 0


def quiet_marks(text: str, spans: list[QuietSpan]) -> Marks:
    """What each character stands in: PROSE, FORMULA (LaTeX tables as well) or CODE; `spans` are its `quiet_spans`.

    Formulas over 200 characters and code fences that never close count as prose: there loops hide, not repetition that
    a formula or a program needs.
    """
    marks = np.zeros(len(text), dtype=np.uint8)
    if "\\begin{" in text:
        for match in _LATEX_TABLE.finditer(text):
            marks[match.start() : match.end()] = FORMULA
    for start, end, is_code in spans:
        if is_code and (end < len(text) or _CLOSED.search(text, start, end)):
            marks[start:end] = CODE
        elif not is_code:
            marks[start:end] = FORMULA if end - start <= LONGEST_FORMULA else PROSE
    return marks
