"""How each step grows with the number of candidates: `python tests/benchmarks/scale.py [--quick] [--rows N …]`.

Candidates with short texts, eight to a prompt, 1,000 to 1,000,000 of them (`--quick`: 1,000 and 10,000; `--rows
1800000` is DASD's number). Every step is the command that a user gives, in a process of its own; columns hold seconds,
CPU seconds, the most memory of all its processes together, bytes that it leaves on disk a row, and the exponent of its
CPU seconds between this size and the one before: 1 is linear. `generate` and `seal` cost a request or a body each and
are measured up to 100,000; the student's pass of `score` is measured by `score.py`, here only what stays without it.
`--in-flight` holds 2,000
requests at once, `--disk` compares `builder plan` with what a run takes.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scale_data import write_journal, write_recipe, write_run
from scale_process import Cost, bytes_below, measure

from builder.recipe import load_recipe
from builder.store import Run

ROWS = (1_000, 10_000, 100_000, 1_000_000)
LIMIT_BYTES = 4 * 2**30
MOST_REQUESTS = 100_000
TOKENS = 80
_HERE = Path(__file__).parent
_CHANGED = "selection.params.max_sentence_repeats=3"


@dataclass(frozen=True)
class Size:
    """One number of candidates: where its recipe and its runs are."""

    rows: int
    folder: Path

    @property
    def run(self) -> Path:
        """The run with all tables."""
        return self.folder / "run"

    @property
    def asked(self) -> Path:
        """The run whose replies came from a server."""
        return self.folder / "asked"

    @property
    def recipe(self) -> Path:
        return self.folder / "scale.yaml"

    def builder(self, *words: str, run: Path | None = None) -> list[str]:
        """A command on this recipe and a run of it, the table's unless told."""
        verb, *rest = words
        where = [str(self.recipe), "--run", str(run or self.run)]
        return [sys.executable, "-m", "builder.cli", verb, *where, "--quiet", *rest]

    def child(self, step: str) -> list[str]:
        """A step that has no command of its own."""
        return [sys.executable, str(_HERE / "scale.py"), "--child", step, str(self.run)]


@dataclass(frozen=True)
class Step:
    """One line of the table: its name, how it is run, and the paths whose bytes are its own."""

    name: str
    run: Callable[[Size], Cost]
    leaves: Callable[[Size], list[Path]] = lambda size: []
    most: int = 10**12


@contextmanager
def serving(tokens: int, *, logprobs: bool, latency_s: float, bodies: int) -> Iterator[tuple[str, list[int]]]:
    """An endpoint in a process of its own: its address, and after the block the most requests that it held."""
    numbers = [str(tokens), str(int(logprobs)), str(latency_s), str(bodies)]
    command = [sys.executable, str(_HERE / "scale_server.py"), *numbers]
    held: list[int] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin and server.stdout
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1", held
        finally:
            server.stdin.close()
            held.append(int(server.stdout.readline() or 0))


def generate(size: Size) -> Cost:
    """Every request asked, every reply stored and sealed."""
    with serving(TOKENS, logprobs=True, latency_s=0.05, bodies=8192) as (url, _):
        return measure(size.builder("generate", f"teacher.endpoints.0.url={url}", run=size.asked))


def seal(size: Size) -> Cost:
    """Replies that a journal holds and no table: parsed, written as parts, read back, pruned."""
    root = size.folder / "sealed"
    write_journal(root, load_recipe(size.recipe), TOKENS)
    return measure(size.builder("generate", run=root))


def plan(size: Size) -> Cost:
    """A plan of a recipe whose replies are all stored."""
    words = [word for word in size.builder("plan", run=size.asked) if word != "--quiet"]
    return measure(words)


def diff(size: Size) -> Cost:
    """Two releases that differ."""
    releases = [str(size.run / "releases" / version) for version in ("v1", "v2")]
    return measure([sys.executable, "-m", "builder.cli", "diff", *releases], good=(1,))


def tables(*names: str) -> Callable[[Size], list[Path]]:
    """Folders of tables."""
    return lambda size: [size.run / "tables" / name for name in names]


STEPS = (
    Step("generate", generate, lambda size: [size.asked], MOST_REQUESTS),
    Step("seal", seal, lambda size: [size.folder / "sealed" / "tables"], MOST_REQUESTS),
    Step("plan", plan, most=MOST_REQUESTS),
    Step("score, nothing new", lambda size: measure(size.builder("score"))),
    Step("verify", lambda size: measure(size.builder("verify")), tables("verdicts")),
    Step("features", lambda size: measure(size.child("features")), tables("features")),
    Step("duplicates", lambda size: measure(size.child("duplicates")), tables("signatures", "duplicates")),
    Step(
        "select, first", lambda size: measure(size.builder("select")),
        lambda size: [size.run / "run.duckdb", *tables("rejections", "selection")(size)],
    ),
    Step("select, a parameter", lambda size: measure(size.builder("select", _CHANGED))),
    Step(
        "release", lambda size: measure(size.builder("release")), lambda size: [size.run / "releases" / "v1"]
    ),
    Step("release, another", lambda size: measure(size.builder("release", "selection.selector=longest"))),
    Step("report", lambda size: measure(size.builder("report")), lambda size: [size.run / "report.html"]),
    Step("diff", diff),
)  # fmt: skip


def child(step: str, root: Path) -> None:
    """A step in this process."""
    if step == "features":
        from builder.features import update_features

        update_features(Run(root))
    else:
        from builder.dedup import update_duplicates

        update_duplicates(Run(root))


def line(step: Step, rows: int, cost: Cost, left: int, before: "tuple[int, Cost] | None") -> str:
    """A row of the table."""
    grows = ""
    if before is not None:
        grows = f"{math.log(cost.cpu_s / before[1].cpu_s) / math.log(rows / before[0]):.2f}"
    memory = f"{cost.peak_bytes / 2**20:,.0f} MiB" + (" **over**" if cost.peak_bytes > LIMIT_BYTES else "")
    disk = f"{left / rows:,.0f}" if left else ""
    return f"| {step.name} | {rows:,} | {cost.seconds:,.1f} | {cost.cpu_s:,.1f} | {memory} | {disk} | {grows} |"


def growth(sizes: list[int], only: str | None, keep: Path | None) -> None:
    """Print the table, a line as soon as it is known."""
    print("| step | candidates | seconds | CPU s | memory | bytes a row on disk | exponent |")
    print("|---|---|---|---|---|---|---|")
    before: dict[str, tuple[int, Cost]] = {}
    for rows in sizes:
        with tempfile.TemporaryDirectory(dir=keep) as name:
            size = Size(rows, Path(name))
            write_run(size.run, load_recipe(write_recipe(size.folder, rows)), rows)
            for step in STEPS:
                if rows > step.most:
                    continue
                cost = step.run(size)
                left = bytes_below(*step.leaves(size))
                if only in (None, step.name):
                    print(line(step, rows, cost, left, before.get(step.name)), flush=True)
                before[step.name] = (rows, cost)
                if step.name == only:
                    break


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", help="numbers of candidates; default 1,000 to 1,000,000")
    parser.add_argument("--quick", action="store_true", help="1,000 and 10,000 candidates; about two minutes")
    parser.add_argument("--only", help="print one step; those before it are run as well")
    parser.add_argument("--folder", type=Path, help="where the data is written; default a temporary folder")
    parser.add_argument("--in-flight", action="store_true", help="2,000 requests in flight, short and long replies")
    parser.add_argument("--disk", action="store_true", help="what builder plan says, and what a run takes")
    parser.add_argument("--child", nargs=2, help="(internal) run one step here")
    given = parser.parse_args()
    if given.child:
        return child(given.child[0], Path(given.child[1]))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    print(f"{os.cpu_count()} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}\n")
    started = time.perf_counter()
    if given.in_flight or given.disk:
        from scale_run import disk, in_flight

        (in_flight if given.in_flight else disk)(quick=given.quick)
    else:
        growth(given.rows or list(ROWS[:2] if given.quick else ROWS), given.only, given.folder)
    print(f"\n{time.perf_counter() - started:.0f} s, load {os.getloadavg()[0]:.1f}")
    return None


if __name__ == "__main__":
    main()
