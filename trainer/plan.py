"""What a run will do, decided once for `trainer plan` and `trainer run`."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trl import SFTConfig  # type: ignore[attr-defined]

from trainer import config, data, lineage, render, schedule
from trainer.errors import StageError
from trainer.lineage import Record
from trainer.schedule import Stage

DEFAULTS = "per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps learning_rate packing"
FLOPS = 4e14  # a second and device: 40 % of the 989 TFLOP/s that an H100 has in bfloat16


class Job:
    """All that is known before anything is trained. Stages before `first` are taken from the output as they are."""

    def __init__(
        self, dataset: str, model: str, output: str | Path, recipe: str | Path = "sft", overrides: Iterable[str] = (),
        *, first: str | None = None, until: str | None = None, model_revision: str | None = None,
        drop_too_long: bool = False, weights: bool = True, quiet: bool = True,
    ) -> None:  # fmt: skip
        how = config.load(recipe, overrides)
        self.release, self.recipe, self.output = data.resolve(dataset), how.name, Path(output)
        self.first, self.drop_too_long, self.quiet = first, drop_too_long, quiet
        self.stages = schedule.stages(self.release.manifest.schedule, until, first)
        self.asked = self.stages[next((i for i, stage in enumerate(self.stages) if stage.name == first), 0) :]
        self.settings = config.settle(how, self.stages, self.release.manifest.schedule)
        for stage in self.stages:
            masks = self.settings[stage.name].get("mask_prefix", False)
            data.check_stage(self.release, stage, masks, len(self.splits(stage)) > 1)
            if stage.kind != "sft" and stage in self.asked:
                told = f"Stage {stage.name} is of kind {stage.kind}; this version trains sft stages only"
                raise StageError(f"{told}. Stop before it with --until STAGE, or choose another dataset.")
        self.base = lineage.resolve_base(model, model_revision, weights)
        self.renderer = render.Renderer(self.base.path, self.base.name)

    def initial(self, stage: Stage) -> Path:
        earlier = (self.output / other.directory for other in self.stages if other.name == stage.init)
        return next(earlier, self.base.path)

    def splits(self, stage: Stage) -> list[str]:
        """What is read of a stage: with an eval_strategy also held-out rows, for their loss."""
        evaluated = self.settings[stage.name].get("eval_strategy", "no") != "no"
        return ["train", "validation"] if evaluated else ["train"]

    def origin(self) -> Record:
        known: Record = self.release.manifest.model_dump(include={"version", "build_id"})
        return known | {"source": self.release.source, "commit": self.release.commit}


def identity(job: Job, stage: Stage) -> Record:
    """What decides the weights of a stage: a directory with the same record is finished. None is not known yet."""
    before = None if stage.init == "base" else lineage.read(job.initial(stage))
    weights = job.base.weights_sha256 if stage.init == "base" else before and before["weights_sha256"]
    known: Record = {"stage": stage.name, "kind": stage.kind, "rowset_hash": stage.rowset_hash}
    known |= {"settings": job.settings[stage.name], "dropped_rows": None if job.drop_too_long else 0}
    known |= {"tokenizer_sha256": data.sha256_in(job.base.path, *lineage.TOKENIZER)}
    known |= {"base_revision": job.base.revision if weights is None and stage.init == "base" else None}
    return known | {"initial_weights_sha256": weights}


def held(job: Job, stage: Stage) -> Record | None:
    """The record of a stage that --output holds. Raises StageError for other work, and for none before `first`."""
    directory = job.output / stage.directory
    record = lineage.read(directory)
    if record is None and stage not in job.asked:
        raise StageError(f"--from {job.first}: {job.output} has no stage {stage.name} yet. Train it first.")
    if record and stage in job.asked and (differs := lineage.differences(record, identity(job, stage))):
        told = f"{directory} holds this stage trained otherwise ({'; '.join(differs)}). Finished weights are never"
        raise StageError(f"{told} overwritten: choose another --output, or remove that directory to train it again.")
    return record


def notes(job: Job, stage: Stage) -> list[str]:
    """What to know about a stage: a dataset without manifest, rows rolled out from another student than this one."""
    if job.release.plain is not None:
        return ["this dataset has no manifest: one stage, rows in file order, nothing says what it should hold"]
    rollout, starts = job.release.manifest.rollout or {}, identity(job, stage)["initial_weights_sha256"]
    weights, origin = rollout.get("weights_sha256"), rollout.get("base") or ""
    base = f"{job.base.name}@{job.base.revision}" if job.base.revision and "@" in origin else job.base.weights_sha256
    foreign, near = origin and base and base != origin, weights and starts and weights != starts
    if not (foreign or near) or "mixed" not in data.values(job.release.files(stage.config), "policy"):
        return []
    told = f"its mixed rows were rolled out from weights {weights}, of {origin}; this stage starts from {starts or '-'}"
    told += f", of {base}: " + ("off-policy, another student's mistakes" if foreign else "near, but not on-policy")
    return [f"{told}. For rows of your own run `builder mix` with your checkpoint."]


def rendered(job: Job, stage: Stage, folder: Path) -> list[tuple[Any, dict[str, int]]]:
    """Rows of each split as tokens below `folder`, rendered unless they are there, with their counts."""
    found, settings = [], job.settings[stage.name]
    for split in job.splits(stage):
        rows = data.read(job.release, stage.config, settings.get("mask_prefix", False), split)
        path, how = folder / f"{stage.directory}.{split}.arrow", {"limit": settings["max_length"]}
        found.append(render.tokens(rows, job.renderer, path, stage=stage.name, drop=job.drop_too_long, **how))
    return found


def report(job: Job, counts: dict[str, dict[str, int]]) -> Record:
    """The plan as `--json` prints it, from the counts of rendered rows by stage."""
    known: Record = {"recipe": job.recipe, "output": str(job.output), "warnings": job.renderer.warnings()}
    known |= {"dataset": job.origin(), "model": {"name": job.base.name, "revision": job.base.revision}}
    return known | {"stages": [_line(job, stage, counts[stage.name]) for stage in job.asked]}


def _line(job: Job, stage: Stage, counts: dict[str, int]) -> Record:
    """One stage. Bytes before sharding and hours of one device are arithmetic, explained in docs/training.md."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {name: getattr(SFTConfig, name) for name in DEFAULTS.split()} | job.settings[stage.name]
    warnings, samples, window = notes(job, stage), counts["rows"], counts["longest"]
    epochs, batch = settings["num_train_epochs"], settings["per_device_train_batch_size"]
    if dropped := counts["dropped_rows"]:
        warnings += [f"{dropped:,} rows exceed max_length {settings['max_length']:,} and are left out"]
    if settings["packing"]:
        window, samples = settings["max_length"], -(-counts["tokens"] // settings["max_length"])  # if all filled up
        warnings += ["packing: order holds between blocks of 1,000 rows, not inside; steps are at least these"]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    steps = schedule.optimizer_steps(samples, epochs, batch * processes, settings["gradient_accumulation_steps"])
    asked = settings["max_steps"] if settings["max_steps"] > 0 else steps
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job.base.path))  # type: ignore[no-untyped-call]
    text, size = model.config.get_text_config(), 4 if settings["model_init_kwargs"]["dtype"] == "float32" else 2
    again = settings.get("activation_checkpointing", settings.get("gradient_checkpointing", True))
    work = model.num_parameters() * counts["tokens"] * epochs * asked / steps
    state = model.num_parameters() * size * (1 if settings.get("peft") else 4)
    activation = window * batch * text.hidden_size * text.num_hidden_layers * size * (1 if again else 17)
    line: Record = {"state": "done" if held(job, stage) else "to train", "directory": str(job.output / stage.directory)}
    line |= {"settings": job.settings[stage.name], "learning_rate": settings["learning_rate"], "warnings": warnings}
    line |= {"steps": asked, "epochs": epochs, "state_bytes": state, "activation_bytes": activation}
    return stage.model_dump(by_alias=True) | counts | line | {"device_hours": (8 if again else 6) * work / FLOPS / 3600}
