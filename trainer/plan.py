"""What a run will do, decided once for `trainer plan` and `trainer run`."""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trl import SFTConfig  # type: ignore[attr-defined]

from trainer import config, data, lineage, render, schedule
from trainer.errors import StageError
from trainer.schedule import Stage

TRAINED = "sft"
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
DEFAULTS = (*BATCH, "num_train_epochs", "max_steps", "learning_rate", "packing")


@dataclass(frozen=True)
class Job:
    """Everything that is known before anything is trained."""

    release: data.Release
    recipe: str
    stages: list[Stage]
    settings: dict[str, dict[str, Any]]
    base: lineage.Base
    renderer: render.Renderer
    output: Path
    drop_too_long: bool

    def initial(self, stage: Stage) -> Path:
        """Directory of the weights that a stage starts from."""
        earlier = (self.output / other.directory for other in self.stages if other.name == stage.init)
        return next(earlier, self.base.path)


def prepare(
    dataset: str, model: str, output: str | Path, recipe_name: str | Path, overrides: Iterable[str] = (), *,
    until: str | None = None, model_revision: str | None = None, drop_too_long: bool = False, weights: bool = True,
) -> Job:  # fmt: skip
    """Resolve and check all inputs: recipe first, then data, then model. Raises TrainerError."""
    how = config.load(recipe_name, overrides)
    release = data.resolve(dataset)
    stages = schedule.stages(release.manifest.schedule, until)
    settings = config.settle(how, stages, [stage.name for stage in release.manifest.schedule])
    for stage in stages:
        data.check_stage(release, stage, settings[stage.name].get("mask_prefix", False))
    base = lineage.resolve_base(model, model_revision, weights)
    renderer = render.load(base.path, base.name)
    return Job(release, how.name, stages, settings, base, renderer, Path(output), drop_too_long)


class Held(NamedTuple):
    """A stage in --output: its record, what in it differs from what is asked, and what is known of its start."""

    record: dict[str, Any] | None
    differs: list[str]
    initial_weights_sha256: str | None


def identity(job: Job, stage: Stage, initial_weights_sha256: str | None) -> dict[str, Any]:
    """What decides the weights of a stage: a directory with the same record is finished. None is not known."""
    return {"stage": stage.name, "kind": stage.kind, "rowset_hash": stage.rowset_hash} | {
        "settings": job.settings[stage.name],
        "dropped_rows": None if job.drop_too_long else 0,
        "tokenizer_sha256": lineage.tokenizer_sha256(job.base.path),
        "base_revision": job.base.revision if initial_weights_sha256 is None and stage.init == "base" else None,
        "initial_weights_sha256": initial_weights_sha256,
    }


def states(job: Job) -> dict[str, Held]:
    """What --output holds of each stage. Where initial weights are not here yet, records are compared without them."""
    weights, found = {"base": job.base.weights_sha256}, {}
    for stage in job.stages:
        record, initial = lineage.read(job.output / stage.directory), weights[stage.init]
        differs = lineage.differences(record, identity(job, stage, initial)) if record else []
        weights[stage.name] = record["weights_sha256"] if record and not differs else None
        found[stage.name] = Held(record, differs, initial)
    return found


def off_policy(job: Job, stage: Stage, initial_weights_sha256: str | None) -> list[str]:
    """A warning where a stage's mixed rows begin with text of another student than the one that trains on them.

    None for the very weights that wrote it, nor where what would have to be compared is not known.
    """
    rollout, base = job.release.manifest.rollout or {}, job.base
    origin, weights = rollout.get("base"), rollout.get("weights_sha256")
    if not rollout or not data.holds_rollouts(job.release, stage.config):
        return []
    if weights and weights == initial_weights_sha256:
        return []
    by_name = base.revision is not None and "@" in (origin or "")  # else by the weights
    ours = f"{base.name}@{base.revision}" if by_name else base.weights_sha256
    if origin and ours and ours != origin:
        return [
            f"its mixed rows were rolled out from a student trained from {origin}; this one starts from "
            f"{ours if by_name else f'{base.name} ({ours})'}: they are off-policy for it (they show mistakes that "
            "another student makes). Train from that base, or run `builder mix` with your own checkpoint."
        ]
    if weights and initial_weights_sha256:
        return [
            f"its mixed rows were rolled out from weights {weights}, not from {initial_weights_sha256} of {stage.init} "
            "here: near, but not on-policy, as usual when you train the published dataset yourself."
        ]
    return []


def refuse_other_work(directory: Path, differs: list[str]) -> None:
    if differs:
        raise StageError(
            f"{directory} holds this stage trained otherwise ({'; '.join(differs)}). Finished weights are never "
            "overwritten: choose another --output, or remove that directory to train the stage again."
        )


def rendered(job: Job, stage: Stage, folder: Path) -> render.Rendered:
    """The stage's rows as tokens below `folder`, rendered unless they are there."""
    path, settings = folder / f"{stage.directory}.arrow", job.settings[stage.name]
    rows = data.read(job.release, stage.config, settings.get("mask_prefix", False))
    how = {"limit": settings["max_length"], "drop": job.drop_too_long}
    return render.read(path) or render.write(rows, job.renderer, path, stage=stage.name, **how)


def report(job: Job, rows: dict[str, render.Rendered]) -> dict[str, Any]:
    """The plan as `--json` prints it. Stages of kinds that are not trained have no entry in `rows`."""
    held = states(job)
    return {"dataset": job.release.origin, "recipe": job.recipe, "output": str(job.output)} | {
        "model": {"name": job.base.name, "revision": job.base.revision},
        "stages": [_line(job, stage, held[stage.name], rows.get(stage.name)) for stage in job.stages],
        "warnings": job.renderer.warnings(),
    }


def _line(job: Job, stage: Stage, held: Held, rows: render.Rendered | None) -> dict[str, Any]:
    settings = {name: getattr(SFTConfig, name) for name in DEFAULTS} | job.settings[stage.name]
    line = stage.model_dump(by_alias=True) | {"settings": job.settings[stage.name], "steps": None}
    line |= {"epochs": settings["num_train_epochs"], "learning_rate": settings["learning_rate"]}
    line |= {"directory": str(job.output / stage.directory), "differs": held.differs}
    line["state"] = "differs" if held.differs else "done" if held.record else "to train"
    line["warnings"] = off_policy(job, stage, held.initial_weights_sha256)
    if rows is None:
        return line | {"state": "refused", "warnings": [f"this version trains {TRAINED} stages only"]}
    line |= asdict(rows) | {"rows": len(rows.order), "dropped_rows": rows.dropped}
    if rows.dropped:
        line["warnings"] += [f"{rows.dropped:,} rows exceed max_length {settings['max_length']:,} and are left out"]
    samples = len(rows.order)
    if settings["packing"]:
        samples = -(-rows.tokens // settings["max_length"])  # as if every window filled up
        line["warnings"] += ["packing: order holds between blocks of 1,000 rows, not inside; steps are at least these"]
    batch = settings["per_device_train_batch_size"] * int(os.environ.get("WORLD_SIZE", "1"))
    steps = schedule.optimizer_steps(samples, line["epochs"], batch, settings["gradient_accumulation_steps"])
    line["steps"] = settings["max_steps"] if settings["max_steps"] > 0 else steps
    return {name: value for name, value in line.items() if name not in ("path", "order", "dropped")}
