"""What verdicts cost: `python tests/benchmarks/verify.py [--times N] [--data FOLDER]`.

Code: seconds per test for a program that prints, beside a bare `python` that runs the same program, and for a program
whose function is called, which takes two processes. Needs bubblewrap, as `builder verify` does: what runs without it is
not what is measured. Arms take turns; medians. Ratios hold on any machine; absolute numbers do not.

Answers: with `--data`, verdicts a second beside bare math-verify (`verify_answers.py`).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from verify_answers import measure_answers

from builder.code_verifier import code
from builder.sandbox import sandbox_problem

PRINTS = "print(sum(map(int, input().split())))"
ADDS = "def add(a, b):\n    return a + b"
PAIR = json.dumps({"language": "python", "tests": [{"stdin": "1 2\n", "stdout": "3\n"}]})
ASSERT = "assert add(1, 2) == 3"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=30, help="runs of each arm")
    parser.add_argument("--data", type=Path, help="folder with questions/ and responses/, as docs/verification.md says")
    options = parser.parse_args()
    measure_sandbox(options.times)
    if options.data:
        measure_answers(options.data)


def measure_sandbox(times: int) -> None:
    """Print seconds per test of each arm and their ratios; says why where there is no sandbox."""
    if problem := sandbox_problem():
        print(f"code: not measured. {problem}")
        return
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program.py")
        program.write_text(PRINTS)
        arms: dict[str, Callable[[], None]] = {
            "bare python": lambda: run_bare(program),
            "stdin and stdout": lambda: judge(PRINTS, PAIR),
            "asserts": lambda: judge(ADDS, ASSERT),
        }
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(times + 1):  # the first round warms the file cache
            for name, arm in arms.items():
                started = time.perf_counter()
                arm()
                seconds[name].append(time.perf_counter() - started)
    bare = statistics.median(seconds["bare python"][1:])
    for name, measured in seconds.items():
        median = statistics.median(measured[1:])
        print(f"{name:>18}  {1000 * median:7.1f} ms a test  {median / bare:5.2f} × bare python")


def run_bare(program: Path) -> None:
    subprocess.run([sys.executable, str(program)], input=b"1 2\n", stdout=subprocess.DEVNULL, check=True)


def judge(program: str, gold: str) -> None:
    """One verdict; raises RuntimeError for any but `correct`, since its time would say nothing."""
    outcome = code(gold, "python_tests", f"```python\n{program}\n```", False)
    if outcome.verdict != "correct":
        raise RuntimeError(f"the benchmark's program came out as {outcome.votes[0]}")


if __name__ == "__main__":
    main()
