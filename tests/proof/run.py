"""Run the proof: `python tests/proof/run.py [--quick] [--out proof]`; `page.py` writes docs/proof.md from it.

Two chains run at a time, one thread each. Whatever is there is kept: run it again after a kill, and it goes on. Below
`--out`:

    settings.json                    what proof this is
    <task>-<seed>/log.txt            every command, its seconds, what went wrong
    <task>-<seed>/arms/<arm>.json    one arm that is done: release, rows, tokens, seconds
    <task>-<seed>/runs/<task>/       the run: releases, and the evaluations' tables, which are all that page.py reads
    r1-<seed>/                       the R1 ladder, by docs/r1-loop.sh
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Final

from chain import HERE, SIZES, say
from tasks import Part

LADDER: Final = HERE.parents[1] / "docs" / "r1-loop.sh"
ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "10000",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
}


def start(name: str, out: Path, options: list[str]) -> int:
    """One chain in a process of its own, its output in its log; the exit code."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    task, _, seed = name.partition("-")
    command, more = [sys.executable, str(HERE / "chain.py"), task, seed, *options], {}
    if task == "r1":
        if len(list(folder.glob("runs/r1-zero-smoke/eval/distilled-*.json"))) == 2:  # questions and stories, the last
            return 0
        command = ["bash", str(LADDER), str(folder)]
        more = {"SEED": seed, "PORT": str(8110 + 2 * int(seed)), "EDITOR_PORT": str(8111 + 2 * int(seed))}
        more["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    began = time.monotonic()
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name}: another run of the proof works on {folder}; wait for it, or end it.")
            return 1
        environment = os.environ | ENVIRONMENT | more
        # the child inherits the lock: it holds for as long as anything works in the folder
        code = subprocess.run(
            command, cwd=folder, env=environment, stdout=log, stderr=log, pass_fds=[log.fileno()], check=False
        ).returncode
    say(f"{name}: {f'failed, see {folder}/log.txt' if code else 'done'} ({time.monotonic() - began:.0f} s)")
    return code


def settle(out: Path, name: str, part: str) -> None:
    """Write down what the proof in this folder is of. Raises SystemExit where the folder holds another one."""
    size = SIZES[name]
    settings = {"size": name, "part": part} | asdict(size)
    place, told = out / "settings.json", json.dumps(settings, indent=2) + "\n"
    if place.is_file() and place.read_text(encoding="utf-8") != told:
        raise SystemExit(
            f"{out} holds a proof with other settings ({' '.join(place.read_text('utf-8').split())}); its numbers and "
            "new ones would not compare. Choose another --out, or remove that folder."
        )
    if "r1" in size.seeds and "SEED" not in LADDER.read_text(encoding="utf-8"):
        raise SystemExit(f"{LADDER} reads no SEED, so its seeds would be one and the same. Nothing was run.")
    out.mkdir(parents=True, exist_ok=True)
    place.write_text(told, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few rows, ten minutes: shows that all runs")
    parser.add_argument("--tuning", action="store_true", help="ask tuning questions, on which sizes are chosen")
    parser.add_argument("--out", type=Path, default=Path("proof"), help="where everything goes; kept between runs")
    given = parser.parse_args()
    name = "quick" if given.quick else "full"
    part: Part = "tuning" if given.tuning else "held-out"
    size = SIZES[name]
    out = given.out.resolve()
    settle(out, name, part)
    # one seed of each task after the other, so that a run that is broken off has whole comparisons
    each = range(max(size.seeds.values()))
    names = [f"{task}-{seed}" for seed in each for task, seeds in size.seeds.items() if seed < seeds]
    options = ["--size", name, "--part", part]
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda name: start(name, out, options), names))
    sys.exit(any(codes))


if __name__ == "__main__":
    main()
