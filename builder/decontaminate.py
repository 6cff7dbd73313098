"""Prompts that a benchmark holds as well: the longest run of words that both share, kept as evidence.

A prompt and a row share an n-gram exactly when they share a run of n words or more, so one comparison answers for every
n from 8 up, and n is a parameter of the rule: 10 as DeepSeek-R1 (arXiv:2501.12948), 8 as open-r1 and s1, 13 as GPT-3.
Words are those of `builder.words`, signs left out. A question of fewer than n words shares no run; it matches when it
is the same, sign by sign but for the end of the sentence. The user's messages are compared, not the replies; a
paraphrase is not found. A hash of 64 bits stands for a run of 8 words.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.config import Benchmark
from builder.errors import SourceError
from builder.identity import canonical_json, sha256_hex
from builder.prompts import open_source
from builder.store import Run, columns_table
from builder.words import Hashes, Words, batch_hashes, ngram_hashes, split_words

FLOOR_WORDS: Final = 8
"""Length of the shortest shared run that is kept, words."""
_MAX_PLACES: Final = 64
"""Places of one 8-gram in one text that are looked at. A text that repeats it more often still shares 71 words."""
_BATCH_ROWS: Final = 1000
_SENTENCE_END: Final = " \t\r\n.,;:?…。，？"

Numbers = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
"""Gets the name of a step, what is done of it, and how much there is."""


@dataclass(frozen=True)
class BenchmarkText:
    """One text of a benchmark: where it stands, and how many words it has. Rows count from 1."""

    benchmark: str
    revision: str
    row: int
    column: str
    words: int


@dataclass(frozen=True)
class Index:
    """Texts of benchmarks. `grams` are their 8-grams, ascending; `owners` and `places` say whose, and at which word.

    `wholes` finds texts by all that they hold, signs included.
    """

    texts: list[BenchmarkText]
    wholes: Mapping[bytes, list[int]]
    grams: Hashes
    owners: Numbers
    places: Numbers


def update_contaminations(run: Run, benchmarks: Mapping[str, Benchmark], progress: Progress = lambda *_: None) -> int:
    """Bring table `contaminations` up to date with `prompts` and the benchmarks; returns how many prompts were new.

    Another benchmark, or another revision of one, is compared with every prompt; else only new prompts are. Raises
    SourceError for a benchmark that cannot be read, naming the row.
    """
    compared_with = benchmarks_id(benchmarks)
    ids = run.columns("prompts", ["prompt_id"])["prompt_id"]
    before = run.columns("contaminations")
    alike = pc.is_in(before["compared_with"], value_set=pl.Series([compared_with]).to_arrow())
    stays = before.filter(pc.and_(alike, pc.is_in(before["prompt_id"], value_set=ids)))
    new = ids.filter(pc.invert(pc.is_in(ids, value_set=stays["prompt_id"]))).combine_chunks()
    if not len(new) and stays.num_rows == before.num_rows:
        return 0
    tables, seen = [stays], 0
    for table in _compared(run, benchmarks, new, compared_with, progress) if len(new) else ():
        tables.append(table)
        seen += table.num_rows
        progress("compare with benchmarks", seen, len(new))
    run.replace("contaminations", pa.concat_tables(tables))
    return len(new)


def _compared(
    run: Run, benchmarks: Mapping[str, Benchmark], new: "pa.Array[Any]", compared_with: str, progress: Progress
) -> Iterator[pa.Table]:
    """Rows of `contaminations` for the new prompts, in batches."""
    index = build_index(_texts(benchmarks, progress), progress)
    progress("compare with benchmarks", 0, len(new))
    for part in run.parts("prompts"):
        with pq.ParquetFile(part) as file:
            picked = pc.is_in(file.read(columns=["prompt_id"]).column(0), value_set=new).to_numpy()
            done = 0
            for batch in file.iter_batches(_BATCH_ROWS, columns=["prompt_id", "messages"], use_threads=False):
                chosen = np.flatnonzero(picked[done : done + batch.num_rows])
                done += batch.num_rows
                rows = batch.take(pl.Series(chosen).to_arrow()).to_pylist()
                texts = [_question(row["messages"]) for row in rows]
                close = may_match(index, texts)
                compared = [
                    {
                        "prompt_id": row["prompt_id"],
                        "compared_with": compared_with,
                        "matches": find_matches(index, text) if place in close else [],
                    }
                    for place, (row, text) in enumerate(zip(rows, texts, strict=True))
                ]
                yield columns_table("contaminations", compared)


def benchmarks_id(benchmarks: Mapping[str, Benchmark]) -> str:
    """Hash of what decides the comparison, 16 hex digits. A file is known by its bytes, a Hub dataset by its commit.

    Raises SourceError for a file that cannot be read.
    """
    decides = [
        [
            name,
            source.revision if source.is_hub else _open(name, source)[0],
            source.model_dump(include={"config", "split", "prompt", "messages", "gold"}),
        ]
        for name, source in benchmarks.items()
    ]
    return sha256_hex(canonical_json([FLOOR_WORDS, decides]))[:16]


def build_index(texts: Iterable[tuple[BenchmarkText, Words, bytes]], progress: Progress = lambda *_: None) -> Index:
    """Index of texts, each with its words and the key of the whole."""
    named: list[BenchmarkText] = []
    wholes: dict[bytes, list[int]] = defaultdict(list)
    grams, owners, places = [], [], []
    for number, (text, words, whole) in enumerate(texts):
        named.append(text)
        if whole:
            wholes[whole].append(number)
        found = ngram_hashes(words.hashes, FLOOR_WORDS)
        grams.append(found)
        owners.append(np.full(found.size, number))
        places.append(np.arange(found.size))
    progress("index benchmarks", 0, len(named))
    all_grams, all_owners, all_places = (np.concatenate(column) for column in (grams, owners, places))
    order = np.lexsort((all_places, all_owners, all_grams))
    all_grams, all_owners, all_places = all_grams[order], all_owners[order], all_places[order]
    starts = np.flatnonzero(_differs(all_grams) | _differs(all_owners))
    nth = np.arange(all_grams.size) - np.repeat(starts, np.diff(starts, append=all_grams.size))
    few = nth < _MAX_PLACES
    return Index(named, wholes, all_grams[few], all_owners[few], all_places[few])


def find_matches(index: Index, text: str) -> list[dict[str, Any]]:
    """Texts of each benchmark that are closest, as rows of `BENCHMARK_MATCHES`.

    First the same question; else the longest shared run, then shorter runs that cover more of their text.
    """
    words = split_words(text, signs=False)
    runs = _shared_runs(index, words)
    for owner in index.wholes.get(whole_key(text), ()):
        runs[owner] = (index.texts[owner].words, 0, True)
    matches = [_match(index.texts[owner], words, run) for owner, run in sorted(runs.items())]
    matches.sort(
        key=lambda match: (match["benchmark"], not match["is_whole"], -match["shared_words"], -match["row_share"])
    )
    covered: dict[str, float] = defaultdict(float)
    closest = []
    for match in matches:
        if match["row_share"] > covered[match["benchmark"]]:
            covered[match["benchmark"]] = match["row_share"]
            closest.append(match)
    return closest


def whole_key(text: str) -> bytes:
    """What two questions share when they are the same: words and signs but for the end; empty for no words."""
    return split_words(text.strip(_SENTENCE_END), signs=True).hashes.tobytes()


def may_match(index: Index, texts: list[str]) -> set[int]:
    """Places of the texts that may match a benchmark; no other has a match. Ten times as fast as to look at each."""
    hashes, ends = batch_hashes(texts, signs=False)
    grams = ngram_hashes(hashes, FLOOR_WORDS)  # some reach over the end of a text, and find too much, never too little
    at = np.searchsorted(index.grams, grams)
    known = np.flatnonzero(index.grams[np.minimum(at, index.grams.size - 1)] == grams) if index.grams.size else at[:0]
    found = set(np.searchsorted(ends, known, "right").tolist())
    signs, ends = batch_hashes((text.strip(_SENTENCE_END) for text in texts), signs=True)
    starts = [0, *ends[:-1].tolist()]
    return found | {
        place
        for place, (start, end) in enumerate(zip(starts, ends.tolist(), strict=False))
        if signs[start:end].tobytes() in index.wholes
    }


def _match(text: BenchmarkText, words: Words, run: tuple[int, int, bool]) -> dict[str, Any]:
    length, first, is_whole = run
    return {
        "benchmark": text.benchmark,
        "revision": text.revision,
        "benchmark_row": text.row,
        "benchmark_column": text.column,
        "shared_words": length,
        "row_share": length / text.words if text.words else 1.0,
        "is_whole": is_whole,
        "shared_text": words.span(first, first + length - 1),
    }


def _shared_runs(index: Index, words: Words) -> dict[int, tuple[int, int, bool]]:
    """The longest run that each text shares: its length in words, its first word in `words`, and False."""
    grams = ngram_hashes(words.hashes, FLOOR_WORDS)
    low = np.searchsorted(index.grams, grams, "left")
    count = np.searchsorted(index.grams, grams, "right") - low
    if not count.any():
        return {}
    here = np.repeat(np.arange(grams.size), count)
    hits = np.arange(here.size) + np.repeat(low - (np.cumsum(count) - count), count)
    owner, shift = index.owners[hits], index.places[hits] - here
    order = np.lexsort((here, shift, owner))
    here, owner, shift = here[order], owner[order], shift[order]
    # A run goes on where the next word of the prompt meets the next word of the same text.
    starts = np.flatnonzero(_differs(owner) | _differs(shift) | _differs(here - np.arange(here.size)))
    lengths = np.diff(starts, append=here.size) + FLOOR_WORDS - 1
    runs: dict[int, tuple[int, int, bool]] = {}
    for text, length, first in zip(owner[starts].tolist(), lengths.tolist(), here[starts].tolist(), strict=True):
        if text not in runs or length > runs[text][0]:
            runs[text] = (length, first, False)
    return runs


def _differs(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each value differs from the one before it; the first does."""
    return np.concatenate((np.ones(min(values.size, 1), dtype=bool), values[1:] != values[:-1]))


def _texts(benchmarks: Mapping[str, Benchmark], progress: Progress) -> Iterator[tuple[BenchmarkText, Words, bytes]]:
    for place, (name, source) in enumerate(benchmarks.items()):
        progress(f"read benchmark {name}", place, len(benchmarks))
        revision, rows = _open(name, source)
        number = 0
        for number, row in enumerate(rows, start=1):
            for column, text in _row_texts(source, f"Benchmark {name} ({source.source}) row {number}", row):
                words = split_words(text, signs=False)
                yield BenchmarkText(name, revision, number, column, words.hashes.size), words, whole_key(text)
        if number == 0:
            raise SourceError(
                f"Benchmark {name} ({source.source}) holds no rows, so it would pass every prompt. Check the file, "
                "the config and the split."
            )


def _open(name: str, source: Benchmark) -> tuple[str, Iterable[dict[str, Any]]]:
    """Revision and rows, as of a prompt source."""
    try:
        return open_source(source)
    except SourceError as error:
        raise SourceError(f"Benchmark {name} (decontamination.benchmarks.{name}): {error}") from error


def _row_texts(source: Benchmark, where: str, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Column and text of what is compared of a row: its question and, where `gold` names one, its solution."""
    question = (
        source.messages or source.prompt or ("messages" if "messages" in row and "prompt" not in row else "prompt")
    )
    for column in filter(None, (question, source.gold)):
        assert isinstance(column, str)
        if column not in row:
            raise SourceError(
                f"{where} has no column {column!r}; it has {', '.join(sorted(row)) or 'none'}. Name the column of the "
                "question with decontamination.benchmarks.NAME.prompt, that of a solution with gold."
            )
        value = row[column]
        if isinstance(value, list) and all(isinstance(message, dict) for message in value):
            yield column, _question(value)
        elif isinstance(value, str):
            yield column, value
        elif value is None and column == source.gold:
            continue
        else:
            raise SourceError(
                f"{where}: column {column!r} holds {type(value).__name__}, neither text nor messages. Without its text "
                "no prompt can be compared with the row; name another column, or remove the row."
            )


def _question(messages: Iterable[Mapping[str, Any]]) -> str:
    """What the user says."""
    return "\n".join(str(message.get("content") or "") for message in messages if message.get("role") == "user")
