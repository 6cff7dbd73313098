"""`builder demo`: the whole path on this machine, by the commands that a user would type, printed as they run."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from builder.errors import BuilderError, UsageError
from builder.report_numbers import evaluations, readings
from builder.store import Run, write_text

QUESTIONS: Final = 600
HELD_OUT: Final = 200
SEED: Final = 0
_TRAINING: Final = (
    "defaults.learning_rate=7e-3",
    "defaults.lr_scheduler_type=cosine",
    "defaults.num_train_epochs=8",
)


class DemoFailed(BuilderError):
    """A command of the demo ended with an error; its own message stands above."""


@dataclass
class _Demo:
    """The folder of a demo and its output."""

    folder: Path
    console: Console
    quiet: bool
    as_json: bool = False
    # Threads that spin for long while they wait make torch five times slower as soon as anything else runs.
    environment: dict[str, str] = field(default_factory=lambda: {"GOMP_SPINCOUNT": "10000", **os.environ})
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """A paragraph between commands."""
        if not self.quiet:
            self.console.print(f"\n[bold]{text}[/bold]")

    def command(self, program: str, *arguments: str) -> str:
        """Run one command in the folder and show what it prints; returns its stdout."""
        if self.quiet:
            arguments += ("--quiet",) if program != "python" else ()
        else:
            self.console.print(
                f"[{time.monotonic() - self.started:4.0f} s] $ {program} {' '.join(arguments)}", markup=False
            )
        module = {"builder": "builder.cli", "trainer": "trainer.cli", "python": ""}[program]
        line = [sys.executable, *(("-m", module) if module else ()), *arguments]
        shows = subprocess.PIPE if program != "trainer" else sys.stderr if self.as_json else None
        done = subprocess.run(line, cwd=self.folder, env=self.environment, stdout=shows, text=True, check=False)
        if done.stdout and not self.quiet and "--json" not in arguments:
            self.console.print(done.stdout.rstrip("\n"), markup=False, highlight=False)
        if done.returncode:
            raise DemoFailed(
                f"`{program} {' '.join(arguments)}` ended with exit code {done.returncode}. What it made so far is in "
                f"{self.folder}; run the demo again in a new folder, or the command itself there with --debug."
            )
        return done.stdout or ""

    def train(self, version: str) -> None:
        """Train the stages of a release that are not trained yet, beside the other models."""
        where = ("--dataset", f"runs/demo/releases/{version}", "--model", "models/student", "--output", "models")
        self.command("trainer", "run", *where, "--recipe", "smoke", *_TRAINING)

    def accuracy(self, label: str, model: str) -> dict[str, Any]:
        """pass@1 of one model on the held-out questions, greedy sampling left aside: T = 1.0."""
        out = self.command(
            "builder", "eval", "demo", "--model", model, "--label", label, "--questions", "held-out.jsonl", "--json"
        )
        found: dict[str, Any] = json.loads(out)["eval"]
        self.console.print(
            f"         {label}: {found['pass_at_1']:.1%} [{found['low']:.1%}, {found['high']:.1%}]", highlight=False
        )
        return found


def run_demo(folder: Path, *, quiet: bool = False, as_json: bool = False) -> dict[str, Any]:
    """Leave models, a run with its release and results.json in `folder`, print the table; returns the results.

    With `as_json` all of that goes to stderr. Raises UsageError when the folder holds something else, DemoFailed
    when a command fails.
    """
    _claim(folder)
    shown_on = sys.stderr if as_json else sys.stdout
    console = Console(stderr=as_json, highlight=False, soft_wrap=not shown_on.isatty())
    demo = _Demo(folder.resolve(), console, quiet, as_json)
    demo.say("A toy teacher that this project trained, a student that knows the form only, and questions.")
    _materials(demo)
    with _teacher(demo):
        demo.say("Pay the teacher once: every reply is journalled with its logprobs.")
        demo.command("builder", "generate", "demo")
        demo.say("What does the student not know yet? Sentence by sentence, by bytes: the two tokenizers differ.")
        demo.command("builder", "score", "demo")
        demo.command("builder", "verify", "demo")
        demo.say("Choose with SQL, as often as you like; then release.")
        demo.command("builder", "select", "demo")
        demo.command("builder", "release", "demo")
        demo.say("Train the student on schedule: low temperature, then high.")
        demo.train("v1")
        demo.say("Mixed policy: the trained student begins, the teacher finishes; only sound endings stay.")
        demo.command("builder", "mix", "demo", "--student", "models/2-high-temperature")
    demo.command("builder", "release", "demo")
    demo.say("Train again: the finished stages are kept, only the third is new.")
    demo.train("v2")
    demo.say(f"Accuracy on {HELD_OUT} held-out questions, one reply each at T = 1.0.")
    results = _results(demo)
    write_text(json.dumps(results, indent=2) + "\n", folder / "results.json")
    demo.command("builder", "report", "demo", "--out", "report.html", "--quiet")
    _show(demo, results)
    return results


def _claim(folder: Path) -> None:
    """A new folder, or one that an earlier demo made: that one starts anew, so that its numbers are today's."""
    marker = folder / ".tempered-demo"
    if folder.exists() and any(folder.iterdir()):
        if not marker.is_file():
            raise UsageError(f"{folder} is not empty and was not made by builder demo; choose another folder.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()


def _materials(demo: _Demo) -> None:
    from builder.toy.task import problems
    from builder.toy.train import TEACHER

    shutil.copytree(TEACHER, demo.folder / "models" / "teacher")
    for name, found in (
        ("questions", problems(QUESTIONS, SEED, "train", carries=False)),
        ("held-out", problems(HELD_OUT, SEED, "held-out", carries=False)),
    ):
        rows = [{"prompt": problem.question, "gold": problem.gold, "gold_type": "integer"} for problem in found]
        write_text("".join(json.dumps(row) + "\n" for row in rows), demo.folder / f"{name}.jsonl")
    demo.command("python", "-m", "builder.toy.train", "student", "models/student")


@contextmanager
def _teacher(demo: _Demo) -> Iterator[None]:
    """The teacher behind a real HTTP server; commands find it through OPENAI_BASE_URL."""
    from builder.local_server import running_server

    demo.console.print(
        f"[{time.monotonic() - demo.started:4.0f} s] $ builder serve models/teacher --model-name toy-teacher &",
        markup=False,
    )
    with running_server(demo.folder / "models" / "teacher", model_name="toy-teacher") as url:
        demo.environment["OPENAI_BASE_URL"] = url
        demo.console.print(f"         export OPENAI_BASE_URL={url}")
        yield
    del demo.environment["OPENAI_BASE_URL"]


def _results(demo: _Demo) -> dict[str, Any]:
    """Accuracy of student, each stage and teacher, with rows and seconds."""
    stages = sorted(path for path in (demo.folder / "models").glob("[0-9]*-*") if path.is_dir())
    models = {"student": "models/student"}
    models |= {f"after {path.name.partition('-')[2]}": f"models/{path.name}" for path in stages}
    models |= {"teacher": "models/teacher"}
    accuracy = {label: demo.accuracy(label, model) for label, model in models.items()}
    manifest = json.loads((demo.folder / "runs/demo/releases/v2/.builder/manifest.json").read_text("utf-8"))
    return {
        "accuracy": accuracy,
        "rows": {entry["stage"]: entry["rows"] for entry in manifest["schedule"]},
        "replies": manifest["calls"]["replies"],
        "rollouts": manifest["calls"]["rollouts"],
        "seconds": round(time.monotonic() - demo.started),
    }


def _show(demo: _Demo, results: Mapping[str, Any]) -> None:
    """The table, and in words what the intervals allow to say."""
    table = Table(title=f"pass@1 on {HELD_OUT} held-out questions", title_justify="left", box=None, pad_edge=False)
    for column in ("model", "correct", "pass@1", "95% interval"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for label, found in results["accuracy"].items():
        interval = f"{found['low']:.1%} … {found['high']:.1%}"
        table.add_row(label, f"{found['correct']} of {found['replies']}", f"{found['pass_at_1']:.1%}", interval)
    demo.console.print()
    demo.console.print(table)
    for reading in readings(evaluations(Run(demo.folder / "runs" / "demo")))[:-1]:  # all but the teacher's
        demo.console.print(f"{reading.before} → {reading.after}: {reading.gain:+.1%}, {reading.words}")
    demo.console.print(
        f"\n{results['seconds']} s, one student, one seed: the run shows the path, not that each step helps."
    )
    demo.console.print(f"Look: {demo.folder.name}/report.html (models/, runs/demo/ and results.json lie beside it).")
    demo.console.print(
        f"Change a filter: cd {demo.folder.name}; builder compare demo --with selection.selector=longest",
        markup=False,
    )
