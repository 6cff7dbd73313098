"""What `builder score` costs beside the bare work, in one run: `python tests/benchmarks/score.py [--quick]`.

Synthetic replies of a few hundred to 20,000 tokens; every measurement is a process of its own (`score_arms.py`), where
both sides take turns. Quoted are medians of CPU time on one thread. Ratios compare sides of this run and hold on any
machine; the absolute numbers do not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ARMS = Path(__file__).parent / "score_arms.py"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "POLARS_MAX_THREADS": "1"}


def one(arm: str, folder: str, *numbers: int) -> dict[str, float]:
    """One process of one arm."""
    command = [sys.executable, str(_ARMS), arm, folder, *map(str, numbers)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | _ONE_THREAD)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{ended.stderr}")
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def _goal(what: str, value: float, goal: str, met: bool) -> None:
    print(f"  {'met   ' if met else 'MISSED'}  {what}: {value:,.2f}, goal {goal}")


def show_reduction(found: dict[str, float]) -> None:
    """Tokens a second, ours and numpy's."""
    rate = {side: found["tokens"] / found[side] / 1e6 for side in ("ours", "bare", "known")}
    print("\nSentence reduction, Mtok/s")
    print(f"  ours {rate['ours']:,.0f}; np.add.reduceat {rate['bare']:,.0f}, {rate['known']:,.0f} on known boundaries")
    ratio = rate["ours"] / rate["bare"]
    _goal("reduction", ratio, "≥ 0.8 × np.add.reduceat", ratio >= 0.8)


def show_alignment(found: dict[str, float]) -> None:
    """Bytes a second; there is no goal."""
    rate = {side: found["bytes"] / found[side] / 1e6 for side in ("ours", "bare")}
    print("\nSentences, tokens and their alignment, MB/s of text")
    print(f"  ours {rate['ours']:.2f}; a plain split and the tokenizer {rate['bare']:.2f}")
    print(f"          alignment: {found['ours'] / found['bare']:.2f} × its time")


def show_step(found: dict[str, float]) -> None:
    """CPU seconds of everything but the pass."""
    base = found["scan"] + found["tokenizer"]
    print("\nThe step without its pass, CPU s")
    print(f"  ours {found['ours']:.2f}; scan {found['scan']:.2f} and tokenizer {found['tokenizer']:.2f}")
    _goal("read, align, reduce, write", found["ours"] / base, "≤ 2 × scan and tokenizer", found["ours"] <= 2 * base)


def show_pass(found: dict[str, float]) -> None:
    """Tokens a second of the student."""
    rate = {side: found["tokens"] / found[side] for side in ("ours", "bare")}
    print("\nStudent pass, tokens/s")
    print(f"  ours {rate['ours']:,.0f}; a bare forward {rate['bare']:,.0f}")
    ratio = rate["ours"] / rate["bare"]
    _goal("student pass", ratio, "≥ 0.9 × a bare forward", ratio >= 0.9)


def show_memory(tokens: int, ours: dict[str, float], bare: dict[str, float]) -> None:
    """Peaks of whole processes, weights and libraries included."""
    whole = tokens * 150_000 * 4 / 2**30
    print(f"\nPeak memory, one row of {tokens:,} tokens, vocabulary of 150,000: all its logits are {whole:.0f} GiB")
    alone = f"hidden states alone {bare['peak_mib']:,.0f}, model loaded {ours['loaded_mib']:,.0f}"
    print(f"  ours {ours['peak_mib']:,.0f} MiB; {alone}")
    _goal("whole process, GiB", ours["peak_mib"] / 2**10, "< 2 GiB", ours["peak_mib"] < 2**11)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer replies and runs, a shorter row")
    quick = parser.parse_args().quick
    started = time.perf_counter()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    repetitions, tokens = (3, 4_096) if quick else (5, 65_536)
    with tempfile.TemporaryDirectory() as folder:
        replies = 60 if quick else 300
        print(f"{replies} replies, {one('make', folder, replies)['tokens']:,} tokens")
        show_reduction(one("reduce", folder, repetitions))
        show_alignment(one("alignment", folder, repetitions))
        show_step(one("step", folder, repetitions))
        show_pass(one("student_pass", folder, repetitions))
        show_memory(tokens, one("memory", folder, tokens, 1), one("memory", folder, tokens, 0))
    print(f"\n{time.perf_counter() - started:.0f} s, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
