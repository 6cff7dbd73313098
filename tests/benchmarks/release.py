"""Speed, memory and upload of releases: `python release.py [--full]`.

45,000 candidate replies (--full: 450,000) of about 6,000 characters, eight to a prompt, a quarter of them selected into
two stages. Goals: writing a config ≤ 1.3 × a bare pyarrow write with the same options, both synced; a whole release
within 4 GB of resident memory; 5% more prompts upload about those 5%, chunk by chunk as the Hub's own client (hf_xet)
finds them against a store in a folder. Beside it, the same version without its parent, in order of ids alone.
"""

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from builder.config import Recipe, Stage, Student, Teacher
from builder.decision import plan_selection
from builder.models import student_id
from builder.release import release
from builder.release_files import PARQUET, put_config
from builder.selection import SelectionResult
from builder.store import Run

PER_PROMPT, PARAGRAPHS, PER_REPLY, PART_ROWS, ROUNDS = 8, 20_000, 15, 15_000, 5
LIMIT_MB, RATIO = 4000, 1.3
STUDENT = Student(model="org/student", revision="5" * 40)
RECIPE = Recipe(
    name="bench",
    teacher=Teacher(model="org/teacher", revision="7" * 40),
    student=STUDENT,
    stages={"low": Stage(where="temperature = 0.6"), "high": Stage(where="temperature = 1.0")},
)


def paragraphs() -> pl.Series:
    """Paragraphs of 60 words, some 400 characters, from which replies are put together."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 10))) for _ in range(20_000)]
    return pl.Series([" ".join(draw.choices(words, k=60)) + "." for _ in range(PARAGRAPHS)])


def write_rows(run: Run, start: int, stop: int) -> None:
    """Replies start … stop − 1 with their prompts, scores, verdicts and features."""
    pool = paragraphs()
    for first in range(start, stop, PART_ROWS):
        number = pl.Series("i", range(first, min(first + PART_ROWS, stop)))
        ids = pl.DataFrame({"i": number}).with_columns(
            response_id=_id("r", pl.col("i")), prompt_id=_id("p", pl.col("i") // PER_PROMPT)
        )
        draw = random.Random(first)
        picked = pl.Series([draw.randrange(PARAGRAPHS) for _ in range(len(number) * PER_REPLY)])
        texts = pool.gather(picked).reshape((len(number), PER_REPLY)).arr.to_list().list.join("\n\n")
        replies = ids.with_columns(
            role=pl.lit("teacher"), model=pl.lit("org/teacher"), model_revision=pl.lit("7" * 40),
            sample_index=pl.col("i") % 4, temperature=pl.when(pl.col("i") % 8 < 4).then(0.6).otherwise(1.0),
            seed="i", max_tokens=32768, reasoning=texts, answer=pl.lit("So it is 4."),
            reasoning_format=pl.lit("field"), finish_reason=pl.lit("stop"), prompt_tokens=150, completion_tokens=1500,
            tool_calls=0, replaced_characters=0, prefix_chars=0,
        )  # fmt: skip
        prompts = ids.filter(pl.col("i") % PER_PROMPT == 0).with_columns(
            messages=pl.concat_list(
                pl.struct(role=pl.lit("user"), content=pl.format("What is {} + {}, and why?", "i", "i"))
            ),
            domain=pl.lit("math"), gold=pl.col("i").cast(pl.String), sources=pl.lit([]), gold_conflicts=0,
        )  # fmt: skip
        scores = ids.with_columns(
            student_id=pl.lit(student_id(STUDENT)), status=pl.lit("ok"), sentence_count=60, short_sentences=3,
            teacher_counts=pl.concat_list([pl.col("i") % 50] * 10), student_counts=pl.concat_list([pl.lit(1)] * 10),
            mean_delta=(pl.col("i") % 997) / 997, log_ratio_nats=(pl.col("i") % 991) / 991, student_tokens=1600,
        )  # fmt: skip
        verdicts = ids.with_columns(
            verdict=pl.lit("correct"), verifier=pl.lit("number"), verifier_version=pl.lit("1"), extracted=pl.lit("4")
        )
        features = ids.with_columns(text_hash=_id("t", pl.col("i")), reasoning_chars=6000, refuses=pl.lit(value=False))
        for name, frame in (("prompts", prompts), ("responses", replies), ("scores", scores), ("verdicts", verdicts),
                            ("features", features)):  # fmt: skip
            run.append(name, _table(run, name, frame))


def _id(letter: str, number: pl.Expr) -> pl.Expr:
    """32 hex digits, in no order."""
    return pl.concat_str(pl.lit(letter), number.cast(pl.String)).map_batches(
        lambda names: pl.Series([_md5(name) for name in names]), return_dtype=pl.String
    )


def _md5(name: str) -> str:
    return hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()


def _table(run: Run, name: str, frame: pl.DataFrame) -> pa.Table:
    """The columns that are there, nulls or zeros in the others."""
    rows, schema = frame.to_arrow(compat_level=pl.CompatLevel.oldest()), run.schema(name)
    arrays = []
    for column in schema:
        if column.name in rows.column_names:
            arrays.append(rows[column.name].combine_chunks().cast(column.type))
        elif column.nullable:
            arrays.append(pa.nulls(len(rows), column.type))
        else:
            arrays.append(pa.array([0] * len(rows)).cast(column.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def select_first(run: Run) -> SelectionResult:
    """The first sample of every prompt and temperature, as a selection of today's recipe."""
    identity = plan_selection(RECIPE).selection_id
    first = run.scan("responses").filter(pl.col("sample_index") == 0).select("response_id", "temperature").collect()
    stage = pl.when(pl.col("temperature") == 0.6).then(pl.lit("low")).otherwise(pl.lit("high"))
    rows = first.with_columns(
        selection_id=pl.lit(identity), stage=stage, kind=pl.lit("sft"), grain_id="response_id", rank=1
    ).with_columns(position=pl.col("grain_id").reverse().rank("ordinal").over("stage") - 1)
    run.replace("selection", _table(run, "selection", rows))
    kinds = ("kept", "dropped", "outranked")
    lengths: dict[str, Any] = {f"{kind}_tokens_{which}": None for kind in ("mean", "median") for which in kinds}
    return SelectionResult(
        identity, run.rows("responses"), 0, rows.height, (), (), selector="", prompts=0, prompts_without=0,
        prompts_single=0, prompts_tied=None, prompts_with_spread=None, new_features=0, warnings=(), **lengths,
    )  # fmt: skip


def peak_mb() -> float:
    """Most resident memory that this process ever had, MB. Not ru_maxrss, which counts the parent before exec too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def child(step: str, folder: Path) -> None:
    """One step in a process of its own: prints seconds, CPU seconds and peak MB."""
    started = time.perf_counter()
    if step == "release":
        run = Run(folder)
        release(run, RECIPE, select_first(run))
        print(time.perf_counter() - started, time.process_time(), peak_mb())
    else:
        print(*write_times(folder))


def write_times(version: Path) -> tuple[float, ...]:
    """Seconds, and seconds of CPU, of a bare write of config candidates from memory, synced, and of ours: the best of
    some rounds.
    """
    path = min((version / "data/candidates").iterdir())
    with pq.ParquetFile(path) as held:
        groups = [held.read_row_group(index) for index in range(held.num_row_groups)]
    times: dict[str, list[float]] = {"bare": [], "ours": [], "bare cpu": [], "ours cpu": []}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=version.parent) as folder:
            started, cpu = time.perf_counter(), time.process_time()
            with (Path(folder) / "bare.parquet").open("wb") as file:
                with pq.ParquetWriter(file, groups[0].schema, **PARQUET) as writer:
                    for group in groups:
                        writer.write_table(group, row_group_size=group.num_rows)
                file.flush()
                os.fsync(file.fileno())
            times["bare"].append(time.perf_counter() - started)
            times["bare cpu"].append(time.process_time() - cpu)
            started, cpu = time.perf_counter(), time.process_time()
            put_config(Path(folder), "candidates", groups[0].schema, groups, None, [])
            times["ours"].append(time.perf_counter() - started)
            times["ours cpu"].append(time.process_time() - cpu)
    return tuple(min(found) for found in times.values())


def measure(step: str, folder: Path) -> list[float]:
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return [float(number) for number in said]


def new_bytes(store: Path, files: list[Path]) -> tuple[int, int]:
    """Bytes of files, and of those of their chunks that the store lacked: what an upload would send."""
    import hf_xet

    store.mkdir(exist_ok=True)
    commit: Any = hf_xet.XetSession().new_upload_commit(endpoint=f"local://{store}")
    for path in files:
        commit.start_upload_file(str(path))
    metrics = commit.wait_to_finish().dedup_metrics
    return metrics.total_bytes, metrics.new_bytes


def data(version: Path) -> list[Path]:
    return sorted((version / "data").rglob("*.parquet"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="450,000 replies: minutes, 15 GB of disk")
    parser.add_argument("--folder", type=Path, help="where the data is written; default a temporary folder")
    parser.add_argument("--step", help="(internal) run one step here")
    given = parser.parse_args()
    if given.step:
        return child(given.step, given.folder)
    rows = 450_000 if given.full else 45_000
    more = rows // 20 // PER_PROMPT * PER_PROMPT
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        root = Path(name)
        run = Run(root / "run")
        write_rows(run, 0, rows)
        seconds, cpu, peak = measure("release", run.root)
        first = run.releases / "v1"
        size = sum(path.stat().st_size for path in data(first))
        print(f"{rows:,} candidates, {size / 1e6:,.0f} MB: a release in {seconds:.1f} s ({cpu:.1f} s of CPU)")
        print(f"  peak memory {peak:,.0f} MB (goal: at most {LIMIT_MB:,})")
        bare, ours, bare_cpu, ours_cpu = measure("write", first)
        print(f"  writing: bare {bare:.2f} s, ours {ours:.2f} s, {ours / bare:.2f} × (goal: at most {RATIO})")
        print(f"    of CPU {bare_cpu:.2f} s and {ours_cpu:.2f} s: rows are hashed beside the writing, on another core")
        write_rows(run, rows, rows + more)
        seconds, cpu, again = measure("release", run.root)
        print(f"{more:,} more, 5%: the next release in {seconds:.1f} s ({cpu:.1f} s of CPU), peak {again:,.0f} MB")
        new_bytes(root / "store", data(first))
        total, new = new_bytes(root / "store", data(run.releases / "v2"))
        part = more / (rows + more)
        print(f"  to upload {new / 1e6:,.1f} of {total / 1e6:,.1f} MB, {new / total:.1%}; new rows are {part:.1%}")
        first = first.rename(root / "first")
        shutil.rmtree(run.releases)
        measure("release", run.root)
        new_bytes(root / "other store", data(first))
        scattered_total, scattered = new_bytes(root / "other store", data(run.releases / "v1"))
        print(f"  without its parent, in order of ids: {scattered / scattered_total:.1%}")
        if peak > LIMIT_MB or ours / bare > RATIO or new / total > 2 * part:
            sys.exit("a goal was missed")


if __name__ == "__main__":
    main()
