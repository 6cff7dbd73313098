"""What a run takes on disk when all its replies are there: journal, tables, run.duckdb and one release.

Constants were measured on bodies as vLLM writes them, of 64 to 8,000 tokens (docs/scale.md). Where the run holds a part
already, what that takes corrects them: texts and logprobs of another model compress otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from builder.config import Recipe
from builder.store import Run

_TEXT: Final = 1.35
"""Bytes a token of text, zstd-3 in Parquet; DuckDB's own compression comes to as much."""
_ATTEMPT: Final = 400.0
_SEGMENT_REPLIES: Final = 4096
_SEGMENT_TOKENS: Final = 4_000_000
"""Raw replies stay in the journal until a segment of them is sealed; the next one fills meanwhile."""
_RAW_SHARE: Final = 0.001
"""Raw replies that stay."""
_ENOUGH_BYTES: Final = 2**18
"""A part that takes less is mostly footers and says little of what a reply takes."""


@dataclass(frozen=True)
class _Part:
    """Bytes of one part of a run: for each reply, for each completion token, and those that it has anyway."""

    reply: float
    token: float = 0.0
    fixed: float = 0.0

    def bytes(self, replies: float, tokens: float) -> float:
        """Of so many replies with so many completion tokens in all."""
        return self.fixed + self.reply * replies + self.token * tokens


_RAW: Final = _Part(650, 20.0)
_RAW_WITHOUT_LOGPROBS: Final = _Part(260, 1.4)
_RESPONSES: Final = _Part(44, _TEXT)
_TABLES: Final = {
    "verdicts": _Part(22),
    "features": _Part(69),
    "signatures": _Part(214),
    "duplicates": _Part(20),
    "rejections": _Part(6),
    "selection": _Part(6),
}
_LOGPROBS: Final = {"logprobs": _Part(32, 5.25)}
_DATABASE: Final = _Part(340, _TEXT, 2.6e6)
_CANDIDATES: Final = _Part(90, _TEXT)  # of a release, and the rows of its stages
_STAGES: Final = _Part(55, _TEXT)
_SCORED: Final = {"scores": _Part(37), "sentences": _Part(25, 0.6)}  # a sentence is 20 tokens, as reasoning has them


def disk_bytes(run: Run, recipe: Recipe, replies: int, tokens: Sequence[float]) -> list[float]:
    """Bytes of journal, tables, run.duckdb and one release with so many teacher replies, for each number of completion
    tokens a reply.

    Left out: rewrites, rollouts and what a judge says; further releases, whose unchanged configs are the same files;
    raw replies kept because their tokens do not align with their text; and, while commands write, up to 64 MB of
    SQLite's log and what DuckDB spills.
    """
    held = run.scan("responses").select(pl.len(), pl.col("completion_tokens").sum()).collect().row(0)
    logged = recipe.generation.logprobs
    journal = _ratio(run.journal_dir, _journal(*held, logged=logged))
    text = _ratio(run.table_dir("responses"), _RESPONSES.bytes(*held))
    tables = _TABLES | (_LOGPROBS if logged else {}) | (_SCORED if recipe.student else {})
    ratios = {name: _ratio(run.table_dir(name), part.bytes(*held)) for name, part in tables.items()}
    kept = min(1.0, recipe.selection.keep / recipe.generation.samples)
    sizes = []
    for each in tokens:
        total = replies * each
        size = journal * _journal(replies, total, logged=logged)
        size += sum(ratios[name] * part.bytes(replies, total) for name, part in tables.items())
        size += text * (_RESPONSES.bytes(replies, total) + _CANDIDATES.bytes(replies, total))
        size += text * _STAGES.bytes(replies * kept, total * kept)
        sizes.append(size + _DATABASE.bytes(replies, text * total))
    return sizes


def _journal(replies: float, tokens: float, *, logged: bool) -> float:
    """Bytes of a journal: a record for each request, and raw replies up to two segments of them."""
    if not replies:
        return 0.0
    raw = _RAW if logged else _RAW_WITHOUT_LOGPROBS
    waiting = min(replies, 2 * min(_SEGMENT_REPLIES, _SEGMENT_TOKENS * replies / max(tokens, 1.0)))
    waiting += (replies - waiting) * _RAW_SHARE
    return _ATTEMPT * replies + raw.bytes(waiting, waiting * tokens / replies)


def _ratio(folder: Path, expected: float) -> float:
    """What a part takes, over what was expected of it; 1 where it says too little."""
    size = sum(file.stat().st_size for file in folder.glob("*")) if folder.is_dir() else 0
    return size / expected if size >= _ENOUGH_BYTES and expected else 1.0
