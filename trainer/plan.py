"""What a run will do, decided once for `trainer plan` and `trainer run`."""

import os
from collections import namedtuple
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trl import SFTConfig  # type: ignore[attr-defined]

from trainer import config, data, lineage, render, schedule
from trainer.errors import StageError
from trainer.schedule import Stage

TRAINED = "sft"
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
DEFAULTS = (*BATCH, "num_train_epochs", "max_steps", "learning_rate", "packing")
FLOPS = 4e14  # a second and device: 40 % of the 989 TFLOP/s that an H100 has in bfloat16
# A stage in --output: its record, what in it differs from what is asked, and what is known of its start.
Held = namedtuple("Held", "record differs initial_weights_sha256")


@dataclass(frozen=True)
class Job:
    """Everything that is known before anything is trained. Stages before `first` are taken from the output."""

    release: data.Release
    recipe: str
    stages: list[Stage]
    settings: dict[str, dict[str, Any]]
    base: lineage.Base
    renderer: render.Renderer
    output: Path
    drop_too_long: bool
    first: str | None = None

    @property
    def asked(self) -> list[Stage]:
        begin = next((stage.number for stage in self.stages if stage.name == self.first), 1)
        return [stage for stage in self.stages if stage.number >= begin]

    def initial(self, stage: Stage) -> Path:
        """Directory of the weights that a stage starts from."""
        earlier = (self.output / other.directory for other in self.stages if other.name == stage.init)
        return next(earlier, self.base.path)


def prepare(
    dataset: str, model: str, output: str | Path, recipe_name: str | Path, overrides: Iterable[str] = (), *,
    until: str | None = None, first: str | None = None, model_revision: str | None = None,
    drop_too_long: bool = False, weights: bool = True,
) -> Job:  # fmt: skip
    """Resolve and check all inputs: recipe first, then data, then model. Raises TrainerError."""
    how = config.load(recipe_name, overrides)
    release = data.resolve(dataset)
    stages = schedule.stages(release.manifest.schedule, until, first)
    settings = config.settle(how, stages, [stage.name for stage in release.manifest.schedule])
    for stage in stages:
        ours = settings[stage.name]
        data.check_stage(release, stage, ours.get("mask_prefix", False), evaluated(ours))
    base = lineage.resolve_base(model, model_revision, weights)
    renderer = render.load(base.path, base.name)
    return Job(release, how.name, stages, settings, base, renderer, Path(output), drop_too_long, first)


def evaluated(settings: dict[str, Any]) -> bool:
    """Whether the recipe asks for the loss on held-out rows."""
    return settings.get("eval_strategy", "no") not in ("no", False)


def identity(job: Job, stage: Stage, initial_weights_sha256: str | None) -> dict[str, Any]:
    """What decides the weights of a stage: a directory with the same record is finished. None is not known."""
    return {"stage": stage.name, "kind": stage.kind, "rowset_hash": stage.rowset_hash} | {
        "settings": job.settings[stage.name],
        "dropped_rows": None if job.drop_too_long else 0,
        "tokenizer_sha256": lineage.sha256_of(job.base.path, *lineage.TOKENIZER),
        "base_revision": job.base.revision if initial_weights_sha256 is None and stage.init == "base" else None,
        "initial_weights_sha256": initial_weights_sha256,
    }


def states(job: Job) -> dict[str, Held]:
    """What --output holds of each stage. Where initial weights are not here yet, records are compared without them."""
    weights, found = {"base": job.base.weights_sha256}, {}
    for stage in job.stages:
        record, initial = lineage.read(job.output / stage.directory), weights[stage.init]
        if record is None and stage not in job.asked:
            raise StageError(f"--from {job.first}: {job.output} has no stage {stage.name} yet. Train it first.")
        asked = identity(job, stage, initial)
        differs = lineage.differences(record, asked) if record and stage in job.asked else []
        weights[stage.name] = record["weights_sha256"] if record and not differs else None
        found[stage.name] = Held(record, differs, initial)
    return found


def notes(job: Job, stage: Stage, initial_weights_sha256: str | None) -> list[str]:
    """What to know about a stage: a dataset without manifest, rows rolled out from another student than this one."""
    rollout, base = job.release.manifest.rollout or {}, job.base
    origin, weights = rollout.get("base"), rollout.get("weights_sha256")
    if job.release.plain is not None:
        return ["this dataset has no manifest: one stage, rows in file order, nothing says what it should hold"]
    if not rollout or not data.holds_rollouts(job.release, stage.config) or weights == (initial_weights_sha256 or 0):
        return []
    by_name = base.revision is not None and "@" in (origin or "")  # else by the weights
    ours = f"{base.name}@{base.revision}" if by_name else base.weights_sha256
    if origin and ours and ours != origin:
        return [
            f"its mixed rows were rolled out from a student trained from {origin}; this one starts from "
            f"{ours if by_name else f'{base.name} ({ours})'}: they are off-policy for it (they show mistakes that "
            "another student makes). Train from that base, or run `builder mix` with your own checkpoint."
        ]
    near = f"its mixed rows were rolled out from weights {weights}, not from {initial_weights_sha256} of {stage.init} "
    near += "here: near, but not on-policy, as usual when you train the published dataset yourself."
    return [near] if weights and initial_weights_sha256 else []


def refuse_other_work(directory: Path, differs: list[str]) -> None:
    if differs:
        raise StageError(
            f"{directory} holds this stage trained otherwise ({'; '.join(differs)}). Finished weights are never "
            "overwritten: choose another --output, or remove that directory to train the stage again."
        )


def rendered(job: Job, stage: Stage, folder: Path, split: str = "train") -> render.Rendered:
    """The stage's rows as tokens below `folder`, rendered unless they are there."""
    path, settings = folder / f"{stage.directory}.{split}.arrow", job.settings[stage.name]
    rows = data.read(job.release, stage.config, settings.get("mask_prefix", False), split)
    how = {"limit": settings["max_length"], "drop": job.drop_too_long}
    return render.read(path) or render.write(rows, job.renderer, path, stage=stage.name, **how)


def report(job: Job, rows: dict[str, render.Rendered]) -> dict[str, Any]:
    """The plan as `--json` prints it. Stages of kinds that are not trained have no entry in `rows`."""
    held = states(job)
    return {"dataset": job.release.origin, "recipe": job.recipe, "output": str(job.output)} | {
        "model": {"name": job.base.name, "revision": job.base.revision},
        "stages": [_line(job, stage, held[stage.name], rows.get(stage.name)) for stage in job.asked],
        "warnings": job.renderer.warnings(),
    }


def _line(job: Job, stage: Stage, held: Held, rows: render.Rendered | None) -> dict[str, Any]:
    settings = {name: getattr(SFTConfig, name) for name in DEFAULTS} | job.settings[stage.name]
    line = stage.model_dump(by_alias=True) | {"settings": job.settings[stage.name], "steps": None}
    line |= {"epochs": settings["num_train_epochs"], "learning_rate": settings["learning_rate"]}
    line |= {"directory": str(job.output / stage.directory), "differs": held.differs}
    line["state"] = "differs" if held.differs else "done" if held.record else "to train"
    line["warnings"] = notes(job, stage, held.initial_weights_sha256)
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
    line |= estimate(job, settings, rows, line["epochs"] * line["steps"] / steps)
    return {name: value for name, value in line.items() if name not in ("path", "order", "dropped")}


def estimate(job: Job, settings: dict[str, Any], rows: render.Rendered, epochs: float) -> dict[str, Any]:
    """Bytes that a stage takes before sharding, and hours of one device at FLOPS: arithmetic, not measurement.

    Weights, gradients and Adam's two moments, weights alone with peft; activations: a hidden state a token and layer,
    17 without checkpointing (Korthikanti et al., arXiv:2205.05198). 6 operations a parameter and token, 8 with.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job.base.path))  # type: ignore[no-untyped-call]
    text, size = model.config.get_text_config(), 4 if settings["model_init_kwargs"]["dtype"] == "float32" else 2
    again = settings.get("activation_checkpointing", settings.get("gradient_checkpointing", True))
    window = settings["max_length"] if settings["packing"] else rows.longest
    kept = window * settings["per_device_train_batch_size"] * text.hidden_size * text.num_hidden_layers
    parameters = model.num_parameters()
    hours = (8 if again else 6) * parameters * rows.tokens * epochs / FLOPS / 3600
    memory = {"state_bytes": parameters * size * (1 if settings.get("peft") else 4)}
    return memory | {"activation_bytes": kept * size * (1 if again else 17), "device_hours": hours}
