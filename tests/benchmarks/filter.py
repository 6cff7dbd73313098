"""The first full filter of many replies beside other libraries: `python tests/benchmarks/filter.py [--rows N]`.

The same 13 rules on the same Parquet files of synthetic replies, 7 kB on average: `builder select` on a run without
features, and then with one parameter changed; `datasets` with a function, and with stored numbers; Polars expressions;
a datatrove pipeline, where `--datatrove-python` names the Python of an environment with `datatrove[io,processing]`.
Each is a process of its own. All must keep the same replies, else the benchmark ends with an error. Processor time is
that of a process and its children; memory the most that they held together, shared pages once. Ratios compare arms of
this run and hold on any machine; the absolute numbers do not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from filter_data import write_run

from builder.features import batch_features
from builder.store import Run

GOAL, GOAL_MB = 5.0, 1000.0
HERE = Path(__file__).parent
CHANGED = {"max_sentence_repeats": 7}
RULES = [
    "answer_missing", "channel_markers_left", "low_ngram_diversity", "mixed_language", "ngram_repeated",
    "paragraph_repeated", "paragraph_too_long", "reasoning_missing", "response_truncated", "sentence_repeated",
    "tail_loop", "think_tags_broken", "too_short",
]  # fmt: skip
RECIPE = {
    "name": "filter",
    "selection": {"rules": RULES, "selector": "longest"},
    "stages": {"all": {"where": "true"}},
}


class Cost(NamedTuple):
    """Seconds, processor seconds, MB of one process and its children."""

    wall: float
    cpu: float
    peak_mb: float


def measured(command: list[str], log: Path) -> Cost:
    """Run a command to its end; raises CalledProcessError with its last words where it fails."""
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        peak = [0.0]
        watch = threading.Thread(target=watch_memory, args=(process.pid, peak))
        watch.start()
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
    return Cost(wall, used.ru_utime + used.ru_stime, peak[0])


def watch_memory(root: int, peak: list[float]) -> None:
    """Follow a process and its children until it ends, ten times a second."""
    while Path(f"/proc/{root}/stat").exists() and (held := tree_mb(root)):
        peak[0] = max(peak[0], held)
        time.sleep(0.1)


def tree_mb(process: int) -> float:
    """Memory of a process and its children, MB, each page divided by those who share it; 0 once it has ended."""
    try:
        held = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").partition("Pss:")[2].split()[0]
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
    except (OSError, IndexError):
        return 0.0
    return int(held) / 1000 + sum(tree_mb(int(child)) for child in children)


def our_decisions(run: Run) -> dict[str, Any]:
    """The kept ids, and by rule the ids that break it, as `builder select` has stored them."""
    rejections = run.read("rejections", ["response_id", "rule_name"])
    rules = {rule: [] for rule in RULES} | {
        str(rule): sorted(rows["response_id"]) for (rule,), rows in rejections.group_by("rule_name")
    }
    return {"kept": sorted(run.read("selection", ["grain_id"])["grain_id"]), "rules": rules}


def check(arm: str, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """End with an error unless both decide the same."""
    sides = {"kept": (wanted["kept"], found["kept"])}
    if found["rules"]:
        sides |= {rule: (ids, found["rules"].get(rule, [])) for rule, ids in wanted["rules"].items()}
    for name, (first, second) in sides.items():
        if first != second:
            other = sorted(set(first) ^ set(second))
            sys.exit(f"{arm} differs in {name} for {len(other):,} replies, such as {', '.join(other[:5])}.")


def show(arm: str, rows: int, costs: list[Cost], base: float) -> None:
    """One line of the table; `base` are the rows per processor second of datasets."""
    first, again = costs
    ratio = rows / first.cpu / base
    print(
        f"  {arm:<17}{rows / first.wall:>9,.0f}{rows / first.cpu:>12,.0f}{ratio:>12.2f} ×{first.peak_mb:>9,.0f} MB"
        f"{again.wall:>10.2f} s{again.cpu:>9.2f} CPU s",
        flush=True,
    )


def compare(folder: Path, rows: int, others: dict[str, Path]) -> None:
    """Run every arm twice, check that all decide the same, and print the table; `others` are arms with their Python."""
    recipe = folder / "filter.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    select = [sys.executable, "-m", "builder.cli", "select", str(recipe), "--run", str(folder), "--quiet"]
    wanted, ours = [], []
    for change in ({}, CHANGED):
        overrides = [f"selection.params.{name}={value}" for name, value in change.items()]
        ours.append(measured([*select, *overrides], folder / "log"))
        wanted.append(our_decisions(Run(folder)))
    kept = [len(decided["kept"]) for decided in wanted]
    print(f"  every arm must keep the same {kept[0]:,} replies, and {kept[1]:,} with {CHANGED}")
    print(
        f"  {'':<17}{'rows/s':>9}{'rows/CPU s':>12}{'× datasets':>14}{'peak':>12}{'changed parameter':>28}", flush=True
    )
    base, waiting = 0.0, {"builder": ours}
    for arm, python in others.items():
        costs = []
        for change, decided in zip(({}, CHANGED), wanted, strict=True):
            words = [str(python), str(HERE / "filter_arms.py"), arm, str(folder), json.dumps(change)]
            costs.append(measured(words, folder / "log"))
            check(arm, decided, json.loads((folder / "decisions.json").read_text(encoding="utf-8")))
        waiting[arm] = costs
        if arm.startswith("datasets"):
            base = max(base, rows / costs[0].cpu)
        if arm != "datasets-filter":  # the better of both is what others are compared with
            for name, done in waiting.items():
                show(name, rows, done, base)
            waiting = {}
    ratio, peak = rows / ours[0].cpu / base, ours[0].peak_mb
    print(f"  {'met   ' if ratio >= GOAL else 'MISSED'}  {ratio:.2f} × the better of datasets, goal ≥ {GOAL:g} ×")
    print(f"  {'met   ' if peak <= GOAL_MB else 'MISSED'}  {peak:,.0f} MB, goal ≤ {GOAL_MB:,.0f} MB")


def main() -> None:
    """Write the replies, measure, print."""
    options = argparse.ArgumentParser(description="The first full filter beside other libraries.")
    options.add_argument("--rows", type=int, default=20_000, help="replies; default 20,000")
    options.add_argument("--datatrove-python", type=Path, help="Python of an environment with datatrove[io,processing]")
    options.add_argument("--folder", type=Path, help="where the data is written; default a temporary folder")
    given = options.parse_args()
    others = {arm: Path(sys.executable) for arm in ("datasets-filter", "datasets-map", "polars")}
    if given.datatrove_python:
        others["datatrove"] = given.datatrove_python
    else:
        print("datatrove is left out: --datatrove-python names no environment that has it")
    batch_features([("0", "1", "2")])  # numba compiles once a machine
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        megabytes = write_run(Run(Path(name)), given.rows)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {given.rows:,} replies, {megabytes:,.0f} MB")
        compare(Path(name), given.rows, others)


if __name__ == "__main__":
    main()
