"""Memory and speed of near-duplicates and decontamination: `python dedup.py [--quick]`.

2 GB of replies (--quick: 200 MB), eight to a prompt, in which some replies are others with one to three of their twenty
paragraphs replaced: a similarity of about 0.9, 0.8 and 0.7. Beside it, one plain scan of the same texts. Goal: the step
stays under 400 MB of resident memory, libraries included, and finds every planted pair from 0.7 up.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from builder.config import Benchmark
from builder.store import Run, columns_table

WORDS, PARAGRAPHS, PER_REPLY, PER_PROMPT = 20_000, 20_000, 20, 8
PART_ROWS = 10_000
GRAM_WORDS, FLOOR = 5, 0.7
LIMIT_MB = 400


def paragraphs() -> list[str]:
    """Paragraphs of 60 words, some 400 characters, from which replies are put together."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 10))) for _ in range(WORDS)]
    return [" ".join(draw.choices(words, k=60)) + "." for _ in range(PARAGRAPHS)]


def write_replies(run: Run, size: int) -> tuple[int, int]:
    """Replies of `size` bytes together; how many there are, and how many pairs are at least as similar as the floor."""
    pool, draw = paragraphs(), random.Random(1)
    rows: list[dict[str, Any]] = []
    number = written = planted = 0
    while written < size:
        number += 1
        picked = draw.sample(range(PARAGRAPHS), PER_REPLY)
        if number % PER_PROMPT == 1:
            first = picked
        if number % PER_PROMPT == 0 and draw.random() < 0.5:
            picked = [*first]
            for place in draw.sample(range(PER_REPLY), draw.randint(1, 3)):
                picked[place] = draw.randrange(PARAGRAPHS)
            planted += similarity(pool, first, picked) >= FLOOR
        text = "\n\n".join(pool[index] for index in picked)
        written += len(text)
        rows.append({
            "response_id": f"{number:032x}", "prompt_id": f"{number // PER_PROMPT:032x}", "role": "teacher",
            "model": "m", "sample_index": 0, "temperature": 0.6, "reasoning": text, "answer": "4",
            "reasoning_format": "field", "tool_calls": 0, "replaced_characters": 0, "prefix_chars": 0,
        })  # fmt: skip
        if len(rows) == PART_ROWS or written >= size:
            run.append("responses", columns_table("responses", rows))
            rows = []
    return number, planted


def similarity(pool: list[str], first: list[int], second: list[int]) -> float:
    """Jaccard similarity of two replies by their 5-grams, as plainly as it can be said."""
    sets = []
    for picked in (first, second):
        words = " . ".join(pool[index].removesuffix(".") for index in picked).split()
        words += [".", "4"]
        sets.append({tuple(words[start : start + GRAM_WORDS]) for start in range(len(words) - GRAM_WORDS + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def write_prompts(run: Run, folder: Path, number: int, rows: int) -> Path:
    """Prompts of 40 words, one in a hundred of which stands in a benchmark of `rows` rows."""
    draw = random.Random(2)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 10))) for _ in range(WORDS)]
    texts = [" ".join(draw.choices(words, k=40)) for _ in range(number)]
    run.append("prompts", columns_table("prompts", [
        {"prompt_id": f"{index:032x}", "messages": [{"role": "user", "content": text}], "sources": [],
         "gold_conflicts": 0}
        for index, text in enumerate(texts)
    ]))  # fmt: skip
    path = folder / "benchmark.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for index in range(rows):
            text = texts[index * 100] if index * 100 < number else " ".join(draw.choices(words, k=40))
            file.write(f'{{"prompt": "{text}"}}\n')
    return path


def scan(run: Run) -> float:
    """Seconds to read the texts and do nothing."""
    started = time.perf_counter()
    for part in run.parts("responses"):
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(64, columns=["response_id", "reasoning", "answer"]):
                batch.column("reasoning").to_pylist()
    return time.perf_counter() - started


def child(step: str, folder: Path) -> None:
    """One step in a process of its own: prints seconds, CPU seconds, peak MB, and what it found."""
    run = Run(folder)
    started = time.perf_counter()
    if step == "contaminations":
        from builder.decontaminate import update_contaminations

        update_contaminations(run, {"bench": Benchmark(source=str(folder / "benchmark.jsonl"))})
        found = int(run.read("contaminations", ["matches"])["matches"].list.len().gt(0).sum())
    else:
        from builder.dedup import update_duplicates

        update_duplicates(run)
        found = int(run.read("duplicates", ["earlier_ids"])["earlier_ids"].list.len().sum())
    print(time.perf_counter() - started, time.process_time(), peak_mb(), found)


def peak_mb() -> float:
    """Most resident memory that this process ever had, MB. Not ru_maxrss, which counts the parent before exec too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def measure(step: str, folder: Path) -> tuple[float, float, float, int]:
    """Seconds, CPU seconds, peak resident MB, and what was found."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(said[0]), float(said[1]), float(said[2]), int(said[3])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 MB of replies")
    parser.add_argument("--folder", type=Path, help="where the data is written; default a temporary folder")
    parser.add_argument("--step", help="(internal) run one step here")
    given = parser.parse_args()
    if given.step:
        return child(given.step, given.folder)
    size, limit = 200_000_000 if given.quick else 2_000_000_000, LIMIT_MB
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        run = Run(folder)
        replies, planted = write_replies(run, size)
        print(f"{size / 1e6:,.0f} MB in {replies:,} replies, {planted:,} planted pairs; plain scan {scan(run):.1f} s")
        for title in ("all replies are new", "nothing is new"):
            seconds, cpu, peak, found = measure("duplicates", folder)
            verdict = "met   " if peak < limit and found == planted else "MISSED"
            print(
                f"  {verdict}  near-duplicates, {title}: {seconds:.1f} s, {cpu:.1f} CPU s, peak {peak:.0f} MB of "
                f"{limit} MB, {found:,} pairs found"
            )
        number, rows = (10_000, 500) if given.quick else (100_000, 2_000)
        write_prompts(run, folder, number, rows)
        seconds, cpu, peak, found = measure("contaminations", folder)
        expected = len(range(0, number, 100)) if rows * 100 >= number else rows
        verdict = "met   " if peak < limit and found == expected else "MISSED"
        print(
            f"  {verdict}  decontamination, {number:,} prompts and {rows:,} rows: {seconds:.1f} s, {cpu:.1f} CPU s, "
            f"peak {peak:.0f} MB, {found:,} of {expected:,} planted"
        )
    return None


if __name__ == "__main__":
    main()
