"""What looking costs at DASD's size: `python tests/benchmarks/compare.py [--quick]`.

1.8 million synthetic candidates (`--quick`: 180,000), 15 rules, two stages. `builder compare` with a changed parameter,
and `builder explain` of one reply, as commands beside `builder select` and beside `builder sql -c "select 1"`, which is
what starting costs. Sides take turns; quoted are medians of wall time, and the memory of the largest process.
"""

import sys

# Python looks into this folder first, where select.py would stand for the standard library's `select`.
sys.path.append(sys.path.pop(0))

import argparse
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import yaml
from select_data import REPLIES, make_run

GOAL_COMPARE = 2.0
GOAL_EXPLAIN_S = 1.0
GOAL_MB = 4096
RULES = [
    "answer_missing", "answer_unscorable", "answer_wrong", "channel_markers_left", "low_ngram_diversity",
    "ngram_repeated", "paragraph_repeated", "reasoning_missing", "response_truncated", "score_missing",
    "sentence_repeated", "tail_loop", "think_tags_broken", "too_long_for_student", "tool_call_present",
]  # fmt: skip
RECIPE = {
    "name": "experiment",
    "student": {"model": "org/student"},
    "selection": {"rules": RULES, "selector": "teacher_sentence_count"},
    "stages": {"low": {"where": "temperature = 0.6"}, "high": {"where": "temperature = 1.0"}},
}
FIRST_ID = "select response_id from stg_responses order by response_id limit 1"


def command(verb: str, path: Path, run: Path, *words: str) -> tuple[float, str]:
    """Seconds of a command in a process of its own, and what it prints."""
    whole = [sys.executable, "-m", "builder.cli", verb, str(path), *words, "--run", str(run)]
    started = time.perf_counter()
    done = subprocess.run(whole, check=True, capture_output=True, text=True)
    return time.perf_counter() - started, done.stdout


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="180,000 candidates")
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    replies = REPLIES // 10 if given.quick else REPLIES
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {replies:,} candidates, {len(RULES)} rules")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "experiment.yaml")
        path.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
        run = make_run(Path(folder, "run"), replies).root
        command("select", path, run)
        reply = command("sql", path, run, "--csv", "-c", FIRST_ID)[1].split()[-1]
        seconds: dict[str, list[float]] = {"sql": [], "select": [], "compare": [], "explain": []}
        for turn in range(given.rounds):
            change = f"selection.params.max_sentence_repeats={3 + turn}"
            seconds["sql"].append(command("sql", path, run, "-c", "select 1")[0])
            seconds["select"].append(command("select", path, run, change)[0])
            seconds["compare"].append(command("compare", path, run, "--with", change)[0])
            seconds["explain"].append(command("explain", path, run, reply)[0])
    middle = {side: statistics.median(times) for side, times in seconds.items()}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    ratio = middle["compare"] / middle["select"]
    beyond = middle["explain"] - middle["sql"]
    print(f"  starting {middle['sql']:.2f} s, select {middle['select']:.2f} s")
    for is_met, said in (
        (ratio <= GOAL_COMPARE, f"compare {middle['compare']:.2f} s = {ratio:.2f} × select, goal {GOAL_COMPARE} ×"),
        (
            beyond <= GOAL_EXPLAIN_S,
            f"explain {middle['explain']:.2f} s, {beyond:.2f} s beyond starting, goal {GOAL_EXPLAIN_S} s",
        ),
        (peak < GOAL_MB, f"largest process {peak:,} MB, goal under {GOAL_MB:,} MB"),
    ):
        print(f"  {'met   ' if is_met else 'MISSED'}  {said}")


if __name__ == "__main__":
    main()
