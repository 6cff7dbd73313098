"""`docs/slurm.sh` as Slurm runs it: each task of the array in a process of its own, all at once; then the last job."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import yaml
from endpoint import endpoint

from builder.release import latest_release
from builder.store import Run

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "slurm.sh"
PROMPTS, TASKS = 12, 3


def job(folder: Path, recipe: Path, **variables: str) -> "subprocess.Popen[bytes]":
    """The script with the variables that Slurm sets, and `builder` of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(["bash", str(SCRIPT), str(recipe)], cwd=folder, env=environment)


def rowset(run: Run) -> list[str]:
    release = latest_release(run)
    assert release is not None
    return [stage["rowset_hash"] for stage in release.manifest["schedule"]]


def test_the_array_and_its_last_job_release_what_one_process_does(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {number} + {number}?", "gold": str(2 * number)} for number in range(PROMPTS)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = tmp_path / "toy.yaml"
    with endpoint() as server:
        source = {"source": str(tmp_path / "questions.jsonl"), "prompt": "prompt", "gold": "gold"}
        values = {
            "name": "toy",
            "prompts": [{**source, "gold_type": "number"}],
            "teacher": {"model": "toy", "endpoints": [{"url": server.url}]},
            "generation": {"temperatures": [0.6], "samples": 2, "max_tokens": 64},
            "selection": {"selector": "random", "rules": []},
        }
        recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
        folders = [tmp_path / "array", tmp_path / "alone"]
        for folder in folders:
            folder.mkdir()
        array = {"SLURM_ARRAY_TASK_COUNT": str(TASKS), "SLURM_ARRAY_JOB_ID": "7"}
        tasks = [job(folders[0], recipe, SLURM_ARRAY_TASK_ID=str(index), **array) for index in range(TASKS)]
        assert [task.wait(120) for task in tasks] == [0] * TASKS
        assert latest_release(Run(folders[0] / "runs" / "toy")) is None
        asked = Counter(json.dumps(ask.body, sort_keys=True) for ask in server.asks)
        assert len(asked) == PROMPTS * 2 and set(asked.values()) == {1}
        assert [job(folder, recipe, LAST="1").wait(120) for folder in folders] == [0, 0]
    runs = [Run(folder / "runs" / "toy") for folder in folders]
    assert rowset(runs[0]) == rowset(runs[1])
