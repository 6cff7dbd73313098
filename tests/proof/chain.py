"""One chain of the proof: one task and one seed, every arm of arms.yaml, in the working directory.

`run.py` starts it; by hand, in a folder of its own: `python …/tests/proof/chain.py words 0 --size quick`.
Questions, a student, replies paid for once, then every arm as a release of that run, a training and an evaluation, each
by the public command or function, in this process. What is there is kept, so a killed chain goes on.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import tasks
import yaml

HERE: Final = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Size:
    """How large a proof is: seeds of each task, of which the first so many have the arms of sensitivity; questions of
    both halves together, of which so many rows of a half train, and epochs of a stage, by task."""

    seeds: dict[str, int]
    sensitivity: dict[str, int]
    questions: dict[str, int]
    rows: dict[str, int]
    epochs: dict[str, int]
    held_out: int


SIZES: Final = {
    "full": Size(
        {"words": 5, "rows": 3, "r1": 2}, {"words": 2},
        {"words": 780, "rows": 1300}, {"words": 320, "rows": 580}, {"words": 16, "rows": 12}, 500,
    ),
    "quick": Size(
        {"words": 1, "rows": 1}, {},
        {"words": 200, "rows": 200}, {"words": 80, "rows": 80}, {"words": 4, "rows": 4}, 100,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """One task and seed of a proof of some size, in a folder of its own, which is the working directory."""

    task: str
    seed: int
    size: Size
    part: tasks.Part

    def builder(self, command: str, *arguments: str) -> dict[str, Any]:
        """A command of `builder` on proof.yaml, in this process, which saves the imports; what its --json prints."""
        from builder.cli import app

        given = [command, "proof.yaml", *arguments, f"name={self.task}", f"generation.seed={self.seed}"]
        say(f"$ builder {shlex.join(given)}")
        began, out = time.monotonic(), io.StringIO()
        with contextlib.redirect_stdout(out):
            code = app([*given, "--json"], standalone_mode=False)
        if code:
            raise SystemExit(f"builder {command} ended with exit code {code}; its message stands above.")
        say(f"  {time.monotonic() - began:.1f} s")
        found: dict[str, Any] = json.loads(out.getvalue())
        return found

    def train(self, arm: "Arm", version: str) -> None:
        """Every stage of a release, into models/<arm>, by the function behind `trainer run`."""
        from trainer import plan, train
        from trainer.errors import TrainerError

        release, output = f"runs/{self.task}/releases/{version}", f"models/{arm.name}"
        how = [f"defaults.seed={self.seed}", f"defaults.num_train_epochs={self.size.epochs[self.task]}", *arm.more]
        where = ["--dataset", release, "--model", "models/student", "--output", output, "--recipe", "train.yaml"]
        say(f"$ {shlex.join(['trainer', 'run', *where, *how])}")
        began = time.monotonic()
        try:
            train.run(plan.Job(release, "models/student", output, "train.yaml", how))
        except TrainerError as error:
            raise SystemExit(str(error)) from None
        say(f"  {time.monotonic() - began:.1f} s")

    def accuracy(self, label: str, model: str) -> dict[str, Any]:
        """pass@1 of a model on the questions of the chain's part, one reply each at T = 1.0."""
        found = self.builder("eval", "--model", model, "--label", label, "--questions", f"{self.part}.jsonl")["eval"]
        say(f"  {label}: {found['pass_at_1']:.1%}")
        return {"pass_at_1": found["pass_at_1"]}


@dataclass(frozen=True)
class Arm:
    """An entry of arms.yaml: its stages with their `where`, what selects, and overrides of the trainer."""

    name: str
    given: dict[str, Any]
    half: dict[str, str]
    whole: str

    @property
    def stages(self) -> list[str]:
        return list(self.given.get("stages", [self.name]))

    @property
    def uncut(self) -> str:
        """The arm that this one is cut from."""
        return self.name.removesuffix("-tokens")

    @property
    def more(self) -> list[str]:
        return [f"stages.mixed-policy.{name}={value}" for name, value in self.given.get("train", {}).items()]

    def overrides(self, size: Size, task: str, cut: int | None = None) -> list[str]:
        """What makes proof.yaml this arm's recipe; `cut` are the rows of a stage that is cut to a number of tokens."""
        base = yaml.safe_load((HERE / "proof.yaml").read_text(encoding="utf-8"))["selection"]
        selection = {
            "selector": self.given.get("selector", "random"),
            "rules": base["rules"] + self.given.get("rules", []),
            "params": base["params"] | self.given.get("params", {}),
        }
        rows = size.rows[task]
        stages = {
            name: {
                "where": self.half.get(name, self.whole),
                "quotas": {"rows": rows if name in self.half else cut or 2 * rows, "weights": {task: 1}},
            }
            for name in self.stages
        }
        recipe: dict[str, Any] = {"selection": selection, "stages": stages}
        if self.given.get("mixed"):
            recipe["mixed_policy"] = {"prompts": rows, "keep": "all", "off_policy_ratio": 1.0}
        return [f"{name}={json.dumps(value)}" for name, value in recipe.items()]


def arms_of(task: str, *, sensitivity: bool) -> list[Arm]:
    """The arms of a task in the order of arms.yaml."""
    table = yaml.safe_load((HERE / "arms.yaml").read_text(encoding="utf-8"))
    found = [Arm(name, given, table["half"], table["whole"]) for name, given in table["arms"].items()]
    asked = [arm for arm in found if task in arm.given.get("tasks", [task])]
    return [arm for arm in asked if sensitivity or not arm.given.get("sensitivity")]


def run_chain(chain: Chain) -> None:
    """Everything of one task and seed, in the working directory."""
    sensitivity = chain.seed < chain.size.sensitivity.get(chain.task, 0)
    _materials(chain)
    _once("data", lambda: _data(chain, sensitivity=sensitivity))
    _once("base", lambda: chain.accuracy("base", "models/student"))
    _once("teacher", lambda: chain.accuracy("teacher", "models/teacher"))
    for arm in arms_of(chain.task, sensitivity=sensitivity):
        _once(arm.name, functools.partial(_arm, chain, arm))
        if arm.name == "low-to-high":
            _once("low-one", lambda: chain.accuracy("low-one", "models/low-to-high/1-low-one"))


def _materials(chain: Chain) -> None:
    """Questions, recipes and models. Models take their names when they are whole."""
    draw, kind = {"words": (tasks.word_problems, "integer"), "rows": (tasks.row_problems, "exact_text")}[chain.task]
    train = draw(chain.size.questions[chain.task], chain.seed, "train")
    asked = {one.question for one in train}
    for name, found in (
        ("questions", train),
        (chain.part, [one for one in draw(chain.size.held_out, chain.seed, chain.part) if one.question not in asked]),
    ):
        rows = [{"prompt": one.question, "gold": one.gold, "gold_type": kind, "domain": chain.task} for one in found]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name in ("proof.yaml", "train.yaml", "sample_beyond.sql"):
        shutil.copy(HERE / name, name)
    _model("student", lambda out: tasks.student(chain.task, out, chain.seed))
    _model("teacher", lambda out: tasks.teacher(chain.task, out, Path("../teachers"), say))


def _model(name: str, make: Callable[[Path], None]) -> None:
    place, partial = Path("models") / name, Path("models") / f".{name}.partial"
    if not place.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(exist_ok=True)
        make(partial)
        partial.rename(place)


@contextlib.contextmanager
def _teacher() -> Iterator[None]:
    from builder.local_server import running_server

    with running_server(Path("models/teacher"), model_name="toy-teacher") as url:
        os.environ["OPENAI_BASE_URL"] = url
        try:
            yield
        finally:
            del os.environ["OPENAI_BASE_URL"]


def _data(chain: Chain, *, sensitivity: bool) -> dict[str, Any]:
    """Replies, scores and verdicts: the teacher is asked once for what all arms need."""
    asked = [("[0.6]", 1, 1), ("[1.0]", 4, 5)] + ([("[0.3, 1.4]", 1, 7), ("[1.0]", 8, 11)] if sensitivity else [])
    with _teacher():
        for temperatures, samples, in_all in asked:
            how = (f"generation.temperatures={temperatures}", f"generation.samples={samples}")
            try:
                chain.builder("generate", *how)
            except SystemExit:  # a teacher that ends at once does so again: such requests stay without a reply
                stored = chain.builder("status", *how)["tables"]["responses"]
                if stored < 0.999 * in_all * chain.size.questions[chain.task]:
                    raise
                say(f"  {stored} replies are enough")
    chain.builder("score")
    chain.builder("verify")
    return {}


def _arm(chain: Chain, arm: Arm) -> dict[str, Any]:
    """Release, train, evaluate."""
    cut = _rows_within(arm) if "cut_to" in arm.given else None
    if cut == 2 * chain.size.rows[chain.task]:  # the arm of fewest tokens is its own cut
        return _read(arm.uncut) | chain.accuracy(arm.name, f"models/{arm.uncut}/final")
    overrides = arm.overrides(chain.size, chain.task, cut)
    seconds = {}
    if arm.given.get("mixed"):
        _once("mix", lambda: _mix(chain, arm, overrides))
    began = time.monotonic()
    version = chain.builder("release", *overrides)["release"]["version"]
    seconds["release"] = time.monotonic() - began
    manifest = json.loads(Path(f"runs/{chain.task}/releases/{version}/.builder/manifest.json").read_text("utf-8"))
    _check_rows(arm, manifest["schedule"], overrides)
    _share(arm)
    began = time.monotonic()
    chain.train(arm, version)
    seconds["train"] = time.monotonic() - began
    began = time.monotonic()
    reached = chain.accuracy(arm.name, f"models/{arm.name}/final")
    seconds["eval"] = time.monotonic() - began
    return {
        "version": version,
        "build_id": manifest["build_id"],
        "overrides": overrides,
        "stages": [{key: stage[key] for key in ("stage", "rows", "tokens")} for stage in manifest["schedule"]],
        "seconds": seconds,
        **reached,
    }


def _mix(chain: Chain, arm: Arm, overrides: list[str]) -> dict[str, Any]:
    with _teacher():
        return chain.builder("mix", "--student", f"models/low-to-high/2-{arm.stages[-1]}", *overrides)


def _check_rows(arm: Arm, schedule: list[dict[str, Any]], overrides: list[str]) -> None:
    """Raise SystemExit where a stage has other rows than asked: arms of other sizes would not compare."""
    stages = json.loads(next(one for one in overrides if one.startswith("stages=")).removeprefix("stages="))
    for stage in schedule:
        asked = stages.get(stage["stage"], {}).get("quotas", {}).get("rows", stage["rows"])
        if stage["rows"] != asked:
            raise SystemExit(
                f"Arm {arm.name}: stage {stage['stage']} has {stage['rows']} rows and not {asked}, so it would not "
                "compare with the others. Draw more questions or ask for fewer rows (SIZES), in another --out."
            )


def _rows_within(arm: Arm) -> int:
    """Rows of a cut arm: at the mean length of its uncut arm they have the tokens of the shortest arm of `cut_to`."""
    done = {name: _read(name)["stages"][0] for name in arm.given["cut_to"] if Path(f"arms/{name}.json").is_file()}
    own = done[arm.uncut]
    return int(own["rows"] * min(stage["tokens"] for stage in done.values()) // own["tokens"])


def _share(arm: Arm) -> None:
    """Stages that another arm began with are taken from there; the trainer checks that they are what it would make."""
    for number in range(1, len(arm.stages) + 1):
        own = [f"{place}-{name}" for place, name in enumerate(arm.stages[:number], start=1)]
        target = Path("models") / arm.name / own[-1]
        for other in sorted(Path("models").iterdir()):
            if not target.is_dir() and all((other / name).is_dir() for name in own):
                partial = Path("models") / arm.name / ".shared"
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(other / own[-1], partial)
                partial.rename(target)


def _once(name: str, work: Callable[[], dict[str, Any]]) -> None:
    """Do it and write down what came of it, unless that was done."""
    place = Path("arms") / f"{name}.json"
    if place.is_file():
        return
    place.parent.mkdir(exist_ok=True)
    began, found = time.monotonic(), work()
    partial = place.with_suffix(".partial")
    partial.write_text(json.dumps(found | {"total_seconds": time.monotonic() - began}, indent=2), encoding="utf-8")
    partial.rename(place)


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"arms/{name}.json").read_text(encoding="utf-8"))
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(SIZES["quick"].seeds))
    parser.add_argument("seed", type=int)
    parser.add_argument("--size", choices=sorted(SIZES), default="quick")
    parser.add_argument("--part", choices=get_args(tasks.Part)[1:], default="held-out")
    given = parser.parse_args()
    run_chain(Chain(given.task, given.seed, SIZES[given.size], given.part))


if __name__ == "__main__":
    main()
