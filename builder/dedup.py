"""Near-duplicate replies: MinHash finds pairs that may be alike, exact Jaccard similarity decides.

What is compared is the set of word 5-grams of the canonical text: words as in `builder.words`, signs included; a text
of fewer words is one gram. 128 MinHash slots make 32 bands of 4. Two replies are looked at when one band agrees, which
misses a pair of similarity s with probability (1 − s⁴)³²: 1.5 in 10,000 at the floor of 0.7, 5 in 10⁸ at 0.8
(Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4). Pairs from the floor up are kept with their
exact similarity, so that a threshold is a parameter of a rule, never a new comparison. A hash of 64 bits stands for a
gram.

Out of core: texts are read in small batches, signatures take 128 bytes a reply, gram sets of possible pairs go to disk.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rensa import RMinHash  # type: ignore[import-untyped]

from builder.claim import claimed
from builder.errors import TableError
from builder.schema import CANDIDATE_ROLES, DUPLICATES, SIGNATURES
from builder.shards import Shard, shard_rows
from builder.store import Run
from builder.text import canonical_text
from builder.words import Hashes, ngram_hashes, split_words

GRAM_WORDS: Final = 5
FLOOR: Final = 0.7
"""Least Jaccard similarity that is kept."""
BANDS: Final = 32
BAND_SLOTS: Final = 4
MAX_IN_BAND: Final = 32
"""Where a band of more replies agrees, each is compared with this many first ones of them, over the run and over its
prompt: a thousand copies cost a thousand comparisons, not a million."""
_SEED: Final = 1
_EVERY_PAIRS: Final = 1000
_BATCH_ROWS: Final = 64
_STEP: Final = np.uint64(0xBF58476D1CE4E5B9)
_HALF: Final = np.uint64(32)

Numbers = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
Pairs = npt.NDArray[np.uint64]
"""Later number · 2³² + earlier number, ascending and different."""


def update_duplicates(run: Run, *, progress: Progress = lambda *_: None) -> int:
    """Bring tables `signatures` and `duplicates` up to date with `responses`; returns how many replies were new.

    Only replies of roles that a release may hold are compared. Every pair with a new reply is verified; what was found
    between others stays. The result does not depend on how often this ran. Waits for shards that sign replies. Raises
    TableError when the disk refuses.
    """
    with claimed(run, "signatures", wait=True):  # to the end, because places of rows count below
        _sign(run, (0, 1), progress)
        return _update_duplicates(run, progress)


def update_signatures(run: Run, *, shard: Shard = (0, 1), progress: Progress = lambda *_: None) -> int:
    """Sign the replies of a shard that table `signatures` lacks; returns how many. Raises as `update_duplicates`."""
    with claimed(run, "signatures", shard, wait=True):
        return _sign(run, shard, progress)


def _update_duplicates(run: Run, progress: Progress) -> int:
    names = run.columns("signatures", ["response_id", "prompt_id"])
    places = pc.sort_indices(names, sort_keys=[("prompt_id", "ascending"), ("response_id", "ascending")])
    names = names.take(places)
    ids = _ids(names)
    before = run.columns("duplicates")
    known = pc.is_in(ids, value_set=_ids(before)).to_numpy(zero_copy_only=False).copy()
    new = int(np.count_nonzero(~known))
    old, old_similarities = _kept(before, ids)
    gone = before.num_rows + new - len(ids) + len(pc.list_flatten(before["earlier_ids"])) - old.size
    if not new and not gone:
        return 0
    if gone:  # then a crowded band has other first replies, and pairs that were never looked at
        known[:] = False
    bands, has_words = _read_bands(run, places.to_numpy().astype(np.int64))
    prompts = names.column("prompt_id").combine_chunks()
    candidates = candidate_pairs(bands, np.cumsum(_changes(prompts)), np.flatnonzero(has_words))
    is_new = ~(known[_later(candidates)] & known[_earlier(candidates)])
    pairs, similarities = _verified(run, ids, candidates[is_new], progress)
    stays = np.isin(old, candidates[~is_new], assume_unique=True)
    pairs = np.concatenate((pairs, old[stays]))
    order = np.argsort(pairs)
    rows = _rows(ids, pairs[order], np.concatenate((similarities, old_similarities[stays]))[order])
    run.replace("duplicates", rows)
    return new


def signature_bands(grams: list[Hashes]) -> npt.NDArray[np.uint32]:
    """Band hashes of texts given by their gram hashes, shape (texts, 32); without grams they mean nothing."""
    ends = np.cumsum([0, *map(len, grams)]).astype(np.uint64)
    slots = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(grams), ends, BANDS * BAND_SLOTS, _SEED)
    matrix = np.array(slots.to_rows(), dtype=np.uint64).reshape(len(grams), BANDS, BAND_SLOTS)
    bands = np.zeros((len(grams), BANDS), dtype=np.uint64)
    for slot in range(BAND_SLOTS):
        bands = (bands ^ matrix[:, :, slot]) * _STEP
        bands ^= bands >> _HALF
    return (bands & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def jaccard(first: Hashes, second: Hashes) -> float:
    """Jaccard similarity of two ascending arrays of different values; 0 for two empty ones."""
    shared = np.intersect1d(first, second, assume_unique=True).size
    together = first.size + second.size - shared
    return shared / together if together else 0.0


def candidate_pairs(bands: npt.NDArray[np.uint32], prompts: Numbers, numbers: Numbers) -> Pairs:
    """Pairs of replies of which a band agrees. `numbers` are the replies to compare, ascending.

    Reply i has bands[i] and belongs to prompts[i], which ascends too.
    """
    found = np.zeros(0, dtype=np.uint64)
    for band in range(BANDS):
        values = bands[numbers, band]
        order = numbers[np.argsort(values, kind="stable")]  # stable: replies to a prompt stay beside one another
        agrees = bands[order[1:], band] == bands[order[:-1], band]
        same_prompt = agrees & (prompts[order[1:]] == prompts[order[:-1]])
        rows = order.astype(np.uint64)
        found = np.unique(np.concatenate((found, _pairs(rows, agrees), _pairs(rows, same_prompt))))
    return found


def _pairs(numbers: Hashes, agrees: npt.NDArray[np.bool_]) -> Pairs:
    """Each row of a run that agrees with those before it, paired with the first rows of the run."""
    if not agrees.any():
        return np.zeros(0, dtype=np.uint64)
    starts = np.flatnonzero(np.concatenate(([True], ~agrees)))
    start = np.repeat(starts, np.diff(starts, append=numbers.size))
    place = np.arange(numbers.size) - start
    parts = []
    for step in range(min(MAX_IN_BAND, int(place.max()))):
        later = np.flatnonzero(place > step)
        parts.append((numbers[later] << _HALF) | numbers[start[later] + step])
    return np.concatenate(parts)


def _later(pairs: Pairs) -> Numbers:
    return (pairs >> _HALF).astype(np.int64)


def _earlier(pairs: Pairs) -> Numbers:
    return (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _sign(run: Run, shard: Shard, progress: Progress) -> int:
    """Sign the shard's replies that have no signature yet, part by part: an interruption loses one part."""
    known = _ids(run.columns("signatures", ["response_id"]))
    replies = run.columns("responses", ["response_id", "role", "prompt_id"])
    ours = replies.filter(pc.is_in(replies["role"], value_set=pl.Series(CANDIDATE_ROLES).to_arrow()))
    ours = shard_rows(ours, shard)
    new = _ids(ours.filter(pc.invert(pc.is_in(ours["response_id"], value_set=known))))
    done = 0
    for part in run.parts("responses") if len(new) else []:
        tables = []
        for batch in _batches(part, new):
            tables.append(_signed(batch))
            done += batch.num_rows
            progress("sign replies", done, len(new))
        if tables:
            run.append("signatures", pa.concat_tables(tables), shard=shard[0])
    return done


def _read_bands(run: Run, order: Numbers) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Bands of all replies, shape (replies, 32), and which replies have words; reply i is row order[i] of the table."""
    bands = np.zeros((order.size, BANDS), dtype=np.uint32)
    has_words = np.zeros(order.size, dtype=bool)
    number = np.argsort(order)
    done = 0
    for part in run.parts("signatures"):
        with pq.ParquetFile(part, pre_buffer=False) as file:
            for batch in file.iter_batches(columns=["bands"], use_threads=False):
                lists: Any = batch.column("bands")
                rows = number[done : done + batch.num_rows]
                filled = pc.list_value_length(lists).to_numpy() > 0
                bands[rows[filled]] = lists.flatten().to_numpy().reshape(-1, BANDS)
                has_words[rows] = filled
                done += batch.num_rows
    return bands, has_words


def _changes(values: "pa.Array[Any]") -> npt.NDArray[np.bool_]:
    """Whether each value differs from the one before it; the first does not."""
    differs = pc.not_equal(values.slice(1), values.slice(0, max(len(values) - 1, 0)))
    return np.concatenate((np.zeros(min(len(values), 1), dtype=bool), differs.to_numpy(zero_copy_only=False)))


def _signed(batch: pa.RecordBatch) -> pa.Table:
    grams = [text_grams(text) for text in _texts(batch)]
    has_words = np.array([text.size > 0 for text in grams])
    ends = np.concatenate(([0], np.cumsum(np.where(has_words, BANDS, 0))))
    lists = _lists(ends, _arrow(signature_bands(grams)[has_words].ravel()))
    columns = [batch.column("response_id"), batch.column("prompt_id"), lists]
    return pa.Table.from_arrays(columns, schema=SIGNATURES.schema)


def _batches(part: Path, wanted: "pa.Array[Any]") -> Iterator[pa.RecordBatch]:
    """Rows of a part whose response_id is wanted, few at a time; a part without any is not read."""
    columns = ["response_id", "prompt_id", "reasoning", "answer"]
    # Buffered, not the whole row group of compressed texts at once.
    with pq.ParquetFile(part, pre_buffer=False, buffer_size=1 << 20) as file:
        ids = _ids(file.read(columns=["response_id"]))
        picked = pc.is_in(ids, value_set=wanted)
        if not pc.any(picked).as_py():
            return
        done = 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
            rows = batch.filter(picked.slice(done, batch.num_rows))
            done += batch.num_rows
            if rows.num_rows:
                yield rows


def _texts(batch: pa.RecordBatch) -> list[str]:
    parts = zip(batch.column("reasoning").to_pylist(), batch.column("answer").to_pylist(), strict=True)
    return [canonical_text(reasoning, answer) for reasoning, answer in parts]


def text_grams(text: str) -> Hashes:
    """Hashes of the word 5-grams of a text, in order; of all its words where there are fewer; empty without words."""
    words = split_words(text, signs=True).hashes
    return ngram_hashes(words, min(GRAM_WORDS, max(words.size, 1)))


def _verified(
    run: Run, ids: "pa.Array[Any]", pairs: Pairs, progress: Progress
) -> tuple[Pairs, npt.NDArray[np.float64]]:
    """The pairs whose Jaccard similarity is at least the floor, and that similarity."""
    try:
        # Beside the tables, because /tmp may be memory.
        with tempfile.TemporaryFile(prefix=".dedup-", dir=run.root) as file:
            return _verify(run, ids, pairs, file, progress)
    except OSError as error:
        raise TableError(
            f"Comparing {pairs.size:,} pairs of replies needs a temporary file in {run.root}, which failed: {error}. "
            "No pair was lost: table duplicates is as it was. Free space or mend the disk, then rerun the same command."
        ) from error


def _verify(
    run: Run, ids: "pa.Array[Any]", pairs: Pairs, file: IO[bytes], progress: Progress
) -> tuple[Pairs, npt.NDArray[np.float64]]:
    numbers = np.unique(np.concatenate((_later(pairs), _earlier(pairs))))
    places = _spill(run, ids, numbers, file)
    later, earlier = np.searchsorted(numbers, _later(pairs)), np.searchsorted(numbers, _earlier(pairs))
    sizes = places[:, 1] - places[:, 0]
    # The smaller set / the larger one bounds the similarity from above.
    possible = np.minimum(sizes[later], sizes[earlier]) >= FLOOR * np.maximum(sizes[later], sizes[earlier])
    similarities = np.zeros(pairs.size)
    held, grams = -1, np.zeros(0, dtype=np.uint64)
    for done, index in enumerate(np.flatnonzero(possible), start=1):
        if done % _EVERY_PAIRS == 0:
            progress("compare near copies", done, int(possible.sum()))
        if later[index] != held:
            held = later[index]
            grams = _read(file, places[held])
        similarities[index] = jaccard(grams, _read(file, places[earlier[index]]))
    alike = similarities >= FLOOR
    return pairs[alike], similarities[alike]


def _spill(run: Run, ids: "pa.Array[Any]", numbers: npt.NDArray[np.int64], file: IO[bytes]) -> npt.NDArray[np.int64]:
    """Write the set of grams of each numbered reply; where each begins and ends (in grams), shape (numbers, 2)."""
    wanted = ids.take(_arrow(numbers))
    sizes: list[int] = []
    order: list[pa.Array[Any]] = []
    for part in run.parts("responses") if numbers.size else []:
        for batch in _batches(part, wanted):
            for text in _texts(batch):
                grams = np.unique(text_grams(text))
                file.write(grams.tobytes())
                sizes.append(grams.size)
            order.append(batch.column("response_id"))
    file.flush()
    ends = np.cumsum([0, *sizes])
    at = pc.index_in(wanted, value_set=pa.concat_arrays([pa.nulls(0, pa.string()), *order])).to_numpy()
    return np.stack((ends[at], ends[at + 1]), axis=1)


def _read(file: IO[bytes], place: npt.NDArray[np.int64]) -> Hashes:
    file.seek(int(place[0]) * 8)
    return np.frombuffer(file.read(int(place[1] - place[0]) * 8), dtype=np.uint64)


def _kept(before: pa.Table, ids: "pa.Array[Any]") -> tuple[Pairs, npt.NDArray[np.float64]]:
    """Pairs of the table as it was, of replies that are still there."""
    lists = before.column("earlier_ids").combine_chunks()
    later = _ids(before).take(pc.list_parent_indices(lists))
    numbers = [pc.index_in(column, value_set=ids) for column in (later, pc.list_flatten(lists))]
    there = pc.and_(pc.is_valid(numbers[0]), pc.is_valid(numbers[1]))
    late, early = (column.filter(there).to_numpy().astype(np.uint64) for column in numbers)
    similarities = pc.list_flatten(before.column("jaccards").combine_chunks()).filter(there).to_numpy()
    return (late << _HALF) | early, similarities


def _rows(ids: "pa.Array[Any]", pairs: Pairs, similarities: npt.NDArray[np.float64]) -> pa.Table:
    """Table `duplicates` from ascending pairs: one row per reply that was compared."""
    ends = np.concatenate(([0], np.cumsum(np.bincount(_later(pairs), minlength=len(ids)))))
    columns = (ids.take(_arrow(_earlier(pairs))), _arrow(similarities))
    return pa.Table.from_arrays([ids, *(_lists(ends, values) for values in columns)], schema=DUPLICATES.schema)


def _ids(table: pa.Table) -> "pa.Array[Any]":
    # A nothing in front, because combining no chunks at all loads pandas.
    return pa.concat_arrays([pa.nulls(0, pa.string()), *table.column("response_id").chunks])


def _lists(ends: npt.NDArray[np.int64], values: "pa.Array[Any]") -> Any:
    """Lists that end at these places of `values`, the first of them 0."""
    offsets: Any = _arrow(ends).cast(pa.int32())
    return pa.ListArray.from_arrays(offsets, values)


def _arrow(values: npt.NDArray[Any]) -> "pa.Array[Any]":
    """By way of polars: `pa.array` looks for pandas objects, and loads pandas for it, which takes 47 MB."""
    return pl.Series(values).to_arrow()
