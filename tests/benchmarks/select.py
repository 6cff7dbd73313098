"""What an experiment costs beside its bare DuckDB statements: `python tests/benchmarks/select.py [--quick]`.

1.8 million synthetic candidates (`--quick`: 180,000), 15 rules, two stages. One changed thing at a time: a parameter,
the rule set, the selector. `bare` runs the same files on the same tables in one DuckDB connection, checks nothing and
stores nothing; `call` is `builder.selection.select`, which checks every row of SQL that it must not trust and leaves
the tables; `command` is `builder select` from a shell. Sides take turns; quoted are medians of wall time. Ratios
compare sides of this run and hold on any machine; the absolute numbers do not.
"""

import sys

# Python looks into this folder first, where this file would stand for the standard library's `select`.
sys.path.append(sys.path.pop(0))
if __name__ == "select":  # a benchmark beside this one asked for that module
    del sys.modules["select"]
    import select  # noqa: F401
else:
    import argparse
    import json
    import os
    import resource
    import statistics
    import subprocess
    import tempfile
    import time
    from pathlib import Path

    import duckdb
    import yaml
    from select_data import REPLIES, make_run

    from builder.recipe import load_recipe
    from builder.rules import catalogue
    from builder.selection import select as select_rows
    from builder.staging import build_staging, staging_variables
    from builder.store import Run

GOAL = 1.5
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
# By name: what changes against the recipe, another value in every round.
EXPERIMENTS = {
    "changed parameter": lambda turn: [f"selection.params.max_sentence_repeats={3 + turn}"],
    "another rule set": lambda turn: [f"selection.rules=[{', '.join(RULES[turn : 9 + turn])}]"],
    "another selector": lambda turn: [f"selection.selector={['longest', 'mean_delta', 'teacher_share'][turn % 3]}"],
}


def bare(run: "Run", path: "Path", overrides: list[str]) -> float:
    """Seconds of the statements alone: rules, survivors, ranks, stages, funnel and spread."""
    recipe = load_recipe(path, overrides)
    texts = {
        (kind, name): file.read_text(encoding="utf-8").strip().removesuffix(";")
        for kind in ("rules", "selectors", "reports")
        for name, file in catalogue(kind).items()
    }
    config = {"memory_limit": f"{GOAL_MB}MiB"}
    started = time.perf_counter()
    with duckdb.connect(str(run.database), read_only=True, config=config) as connection:
        for name, value in (recipe.selection.params | {"ranked_by": recipe.selection.selector}).items():
            connection.execute(f"set variable {name} = ?", [value])
        rules = [
            f"select *, '{name}' as rule_name from (\n{texts['rules', name]}\n)" for name in recipe.selection.rules
        ]
        stages = [
            f"select '{name}' as stage, 'sft' as kind, response_id as grain_id, "
            f"row_number() over (order by md5(response_id || ':0'), response_id) as position "
            f"from stg_candidates semi join kept using (response_id) where {stage.where}"
            for name, stage in recipe.stages.items()
        ]
        for name, sql in {
            "stg_rejections": " union all ".join(rules),
            "survivors": "select response_id, prompt_id, temperature from stg_responses anti join "
            "(from stg_rejections) as broken using (response_id) where role = 'teacher'",
            "ranked": texts["selectors", recipe.selection.selector],
            "kept": "from ranked where rank = 1",
            "stg_selection": " union all ".join(stages),
            "funnel": texts["reports", "funnel"],
            "spread": texts["reports", "spread"],
        }.items():
            connection.execute(f"create temp table {name} as select * from (\n{sql}\n)")
    return time.perf_counter() - started


def call(run: "Run", path: "Path", overrides: list[str]) -> float:
    """Seconds of the call in a process that is already up."""
    recipe = load_recipe(path, overrides)
    started = time.perf_counter()
    select_rows(run, recipe)
    return time.perf_counter() - started


def command(run: "Run", path: "Path", overrides: list[str]) -> float:
    """Seconds of the command in a process of its own."""
    words = [sys.executable, "-m", "builder.cli", "select", str(path), "--run", str(run.root), "--quiet", *overrides]
    started = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - started


def show(title: str, seconds: dict[str, list[float]]) -> None:
    """One line: medians, and ratios to the bare statements."""
    middle = {side: statistics.median(times) for side, times in seconds.items()}
    ratios = {side: f"{middle[side]:5.2f} s = {middle[side] / middle['bare']:.2f} ×" for side in ("call", "command")}
    verdict = "met   " if middle["call"] <= GOAL * middle["bare"] else "MISSED"
    print(f"  {verdict}  {title:<18} bare {middle['bare']:5.2f} s", end="", flush=True)
    print(f"   call {ratios['call']}   command {ratios['command']}   goal {GOAL} ×", flush=True)


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
        run = make_run(Path(folder, "run"), replies)
        started = time.perf_counter()
        build_staging(run, staging_variables(load_recipe(path)))
        loading = time.perf_counter() - started
        print(f"  loading alone {loading:.2f} s; first builder select {command(run, path, []):.2f} s", flush=True)
        for title, change in EXPERIMENTS.items():
            seconds: dict[str, list[float]] = {"bare": [], "call": [], "command": []}
            for turn in range(given.rounds):
                seconds["bare"].append(bare(run, path, change(turn)))
                seconds["call"].append(call(run, path, change(turn)))
                seconds["command"].append(command(run, path, change(turn)))
            show(title, seconds)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        verdict = "met   " if peak < GOAL_MB else "MISSED"
        print(f"  {verdict}  largest process {peak:,} MB, goal under {GOAL_MB:,} MB")
        print(json.dumps({"replies": replies, "peak_mb": peak}))


if __name__ == "__main__":
    main()
