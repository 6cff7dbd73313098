"""How fast features are computed, MB of text a second and core: `python tests/benchmarks/features.py [--quick]`.

n-gram repetition beside a bare numba loop over Arrow buffers and beside plain Python, and the whole pass of features;
all in this process, in turns, on synthetic replies of 1 to 60 kB with formulas and code. Quoted are the best of three
rounds of CPU time. Ratios compare sides of this run and hold on any machine; the absolute numbers do not.
"""

import argparse
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from builder.features import quiet_marks, text_features
from builder.ngrams import DIVERSITY_WORDS, NGRAM_WORDS
from builder.repetition import compiled, repetition
from builder.text import quiet_spans

ROUNDS = 3
_VOCABULARY = (
    "so we have the sum of all values which is greater than zero and therefore let me check this again wait if the "
    "number of ways equals twelve then we can write it as a product hence by symmetry it follows that both sides agree"
)


def replies(megabytes: float) -> list[str]:
    """Texts of 1 to 60 kB."""
    draw = random.Random(0)
    texts: list[str] = []
    size = 0.0
    while size < megabytes * 1e6:
        wanted, pieces, length = draw.randint(1_000, 60_000), [], 0
        while length < wanted:
            pieces.append(sentence(draw))
            length += len(pieces[-1])
        texts.append("".join(pieces))
        size += length
    return texts


def sentence(draw: random.Random) -> str:
    """A sentence with its white space; one in four has a formula, behind one in forty comes a block of code."""
    text = " ".join(draw.choices(_VOCABULARY.split(), k=draw.randint(6, 25)))
    if draw.random() < 0.25:
        text += rf" $x_{draw.randint(1, 9)}^2 + \frac{{{draw.randint(1, 99)}}}{{{draw.randint(2, 99)}}}$"
    text += draw.choice((". ", ".\n", ".\n\n"))
    if draw.random() < 0.025:
        text += f"\n```python\nfor n in range({draw.randint(2, 99)}):\n    print(n)\n```\n"
    return text


def plain(texts: list[str]) -> list[tuple[int, int]]:
    """Occurrences of the most repeated 20-gram and different 4-grams, in plain Python, without formulas and code."""
    found = []
    for text in texts:
        words = re.findall(r"\w+|[^\w\s]", text)
        most, fours = (
            Counter(zip(*(words[start:] for start in range(size)), strict=False))
            for size in (NGRAM_WORDS, DIVERSITY_WORDS)
        )
        found.append((max(most.values(), default=0), len(fours)))
    return found


def bare() -> Callable[[list[str]], Any]:
    """The same in a plain numba loop over the buffers of an Arrow column, the column made beforehand."""
    from numba import njit  # type: ignore[import-not-found,import-untyped,unused-ignore]

    @njit(nogil=True)  # type: ignore[untyped-decorator,unused-ignore]
    def loop(data: Any, offsets: Any, classes: Any, out: Any) -> None:
        prime = np.uint64(0x9E3779B97F4A7C15)
        for row in range(offsets.size - 1):
            words = np.empty(offsets[row + 1] - offsets[row], np.uint64)
            count, inside = 0, False
            for place in range(offsets[row], offsets[row + 1]):
                byte = data[place]
                if classes[byte] == 2:
                    words[count - (1 if inside else 0)] = (
                        (words[count - 1] if inside else prime) ^ np.uint64(byte)
                    ) * prime
                    count += 0 if inside else 1
                    inside = True
                    continue
                inside = False
                if classes[byte] == 1:
                    words[count] = (prime ^ np.uint64(byte)) * prime
                    count += 1
            size = 16
            while size < 2 * count:
                size *= 2
            keys, seen = np.empty(size, np.uint64), np.empty(size, np.int32)
            for which in range(2):
                length = NGRAM_WORDS if which == 0 else DIVERSITY_WORDS
                seen[:] = 0
                oldest, gram = np.uint64(1), np.uint64(0)
                for _ in range(length):
                    oldest *= prime
                most = different = 0
                for index in range(count):
                    gram = gram * prime + words[index]
                    if index >= length:
                        gram -= oldest * words[index - length]
                    if index < length - 1:
                        continue
                    slot = (gram ^ (gram >> np.uint64(32))) & np.uint64(size - 1)
                    while seen[slot] and keys[slot] != gram:
                        slot = (slot + np.uint64(1)) & np.uint64(size - 1)
                    if not seen[slot]:
                        keys[slot] = gram
                        different += 1
                    seen[slot] += 1
                    most = max(most, seen[slot])
                out[row, which] = most if which == 0 else different

    classes = np.array([2 if chr(b).isalnum() or b >= 128 or b == 95 else int(b > 32) for b in range(256)], np.uint8)

    def run(column: Any) -> Any:
        _, offsets, data = column.buffers()
        out = np.zeros((len(column), 2), np.int64)
        loop(np.frombuffer(data, np.uint8), np.frombuffer(offsets, np.int64)[: len(column) + 1], classes, out)
        return out

    return run


def ours(prepared: list[tuple[Any, Any]], *, fast: bool) -> list[Any]:
    """Repetition of texts whose code points and formulas the pass of features has at hand."""
    return [repetition(codes, quiet, fast=fast) for codes, quiet in prepared]


def prepare(texts: list[str]) -> list[tuple[Any, Any]]:
    """Code points and what they stand in."""
    return [
        (np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32), quiet_marks(text, quiet_spans(text)))
        for text in texts
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Features, MB of text a second and core.")
    parser.add_argument("--quick", action="store_true", help="4 MB instead of 60; under a minute")
    texts = replies(4 if parser.parse_args().quick else 60)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {len(texts):,} replies, {megabytes:.0f} MB")
    prepared, column = prepare(texts), pa.array(texts, pa.large_string())
    fast = compiled() is not None
    sides: dict[str, Callable[[], Any]] = {
        "n-grams, plain Python": lambda: plain(texts),
        "n-grams, numpy": lambda: ours(prepared, fast=False),
        "all features, numpy": lambda: [text_features(text, None) for text in texts],
    }
    if fast:
        loop = bare()
        sides |= {
            "n-grams, bare numba loop": lambda: loop(column),
            "n-grams, compiled": lambda: ours(prepared, fast=True),
            "all features, compiled": lambda: [text_features(text, None, fast=True) for text in texts],
        }
    best: dict[str, float] = {}
    for attempt in range(ROUNDS + 1):
        for name, side in sides.items():
            started = time.process_time()
            side()
            if attempt:  # the first round warms up: pages, caches, compilers
                best[name] = min(best.get(name, 1e9), time.process_time() - started)
    for name, seconds in best.items():
        print(f"  {name}: {megabytes / seconds:,.1f} MB/s")
    if not fast:
        print("  numba is not installed here: no compiled loop, and nothing to compare it with")
        return
    for other, goal in (("bare numba loop", 0.8), ("plain Python", 10.0)):
        ratio = best[f"n-grams, {other}"] / best["n-grams, compiled"]
        print(f"  {'met   ' if ratio >= goal else 'MISSED'}  n-grams: {ratio:.2f} × {other}, goal ≥ {goal:g}")


if __name__ == "__main__":
    main()
