"""What a run will do, decided once for `trainer plan` and `trainer run`."""

import io
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets.utils import tqdm
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, integrations
from trl.import_utils import is_vllm_available

from trainer import config, data, lineage, render, rewards, schedule
from trainer.errors import ModelError, RecipeError, ReleaseError, StageError
from trainer.lineage import Record
from trainer.schedule import Stage

EVERY_S = 30.0  # between two lines where there is no terminal
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
        self.base = lineage.resolve_base(model, model_revision, weights)
        self.renderer = render.Renderer(self.base.path, self.base.name)
        for stage in self.asked:
            self.check(stage)

    def check(self, stage: Stage) -> None:
        """Refuse what reinforcement learning cannot have, before anything is trained."""
        if stage.kind != "reward" and self.scores(self.initial(stage)) is not None:
            raise ReleaseError(f"Stage {stage.name} starts from {stage.init}, a reward model, which writes nothing.")
        if stage.kind != "sft" and (self.renderer.final or "<think>" in self.renderer.tokenizer.all_special_tokens):
            told = f"Stage {stage.name}: {self.base.name} marks thoughts by special tokens, which TRL's rollouts lose"
            raise ModelError(f"{told}, so no reward could tell them from the answer. Choose another model.")
        for name, directory in self.reward_models(stage).items():
            scores, problem = self.scores(directory), "is neither an earlier stage of kind reward nor a directory"
            if name in rewards.PREFERENCES and (directory.parent == self.output or directory.is_dir()):
                problem = "is no reward model: its head would be random" if scores is None else ""
                problem = f"was trained to score {scores}" if scores and scores != name else problem
            if problem:
                told = f"stages.{stage.name}.reward_models.{name}: {directory} {problem}"
                raise RecipeError(f"{told}. Name one for {' or '.join(rewards.PREFERENCES)}.")
        if stage.kind == "grpo":
            rewards.functions(self.settings[stage.name], stage.name)

    def reward_models(self, stage: Stage) -> dict[str, Path]:
        """Directories of the preference models that a grpo stage uses; an earlier stage's name stands for its own."""
        earlier = {other.name: self.output / other.directory for other in self.stages[: stage.number - 1]}
        wanted = (self.settings[stage.name].get("reward_models") or {}).items()
        return {name: earlier.get(str(where), Path(str(where))) for name, where in wanted if where}

    def scores(self, directory: Path) -> str | None:
        """What the model of a directory or of a stage scores, empty if it does not say; None for one that writes."""
        for stage in (stage for stage in self.stages if self.output / stage.directory == directory):
            return self.settings[stage.name].get("scores", "") if stage.kind == "reward" else None
        found = [lineage.content(directory / name) for name in ("config.json", lineage.RECORD)]
        kind, record = [one if isinstance(one, dict) else {} for one in found]
        if not str([*(kind.get("architectures") or []), ""][0]).endswith("ForSequenceClassification"):
            return None
        return str((record.get("settings") or {}).get("scores", ""))

    def initial(self, stage: Stage) -> Path:
        earlier = (self.output / other.directory for other in self.stages if other.name == stage.init)
        return next(earlier, self.base.path)

    def splits(self, stage: Stage) -> list[str]:
        """What is read of a stage: with an eval_strategy also held-out rows, for their loss."""
        return ["train", "validation"] if self.settings[stage.name].get("eval_strategy", "no") != "no" else ["train"]

    def origin(self) -> Record:
        known: Record = self.release.manifest.model_dump(include={"recipe_name", "version", "build_id"})
        return known | {"source": self.release.source, "commit": self.release.commit}


def identity(job: Job, stage: Stage) -> Record:
    """What decides the weights of a stage: a directory with the same record is finished. None is not known yet."""
    before = None if stage.init == "base" else lineage.read(job.initial(stage))
    weights = job.base.weights_sha256 if stage.init == "base" else before and before["weights_sha256"]
    known: Record = {"stage": stage.name, "kind": stage.kind, "rowset_hash": stage.rowset_hash}
    known |= {"settings": job.settings[stage.name], "dropped_rows": None if job.drop_too_long else 0}
    known |= {"tokenizer_sha256": data.sha256_in(job.base.path, *lineage.TOKENIZER)}
    known |= {"base_revision": job.base.revision if weights is None and stage.init == "base" else None}
    models = job.reward_models(stage)
    hashes = {name: lineage.weights_sha256(path) for name, path in models.items() if path.is_dir()}
    known |= {"reward_models_sha256": hashes if len(hashes) == len(models) else None} if models else {}
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
    found, settings, places = [], job.settings[stage.name], job.renderer.places
    limit, most = settings.get("max_length"), "max_length"
    if stage.kind == "grpo":  # what the models' places leave for the prompt
        longest, readers = settings["max_completion_length"], job.reward_models(stage).values()
        places = min(filter(None, [places, *(render.places(path) for path in readers if path.is_dir())]), default=None)
        limit, most = places and places - longest, f"what max_completion_length {longest:,} leaves of {places} places,"
    for split in job.splits(stage):
        path, thoughts = folder / f"{stage.directory}.{split}.arrow", settings.get("scores") == "harmlessness"
        how: Record = {"stage": stage.name, "kind": stage.kind, "limit": limit, "most": most, "thoughts": thoughts}
        dataset, counts = render.tokens(batches(job, stage, split), job.renderer, path, drop=job.drop_too_long, **how)
        counts |= rewards.golds(dataset["solution"][:], dataset["gold_type"][:]) if stage.kind == "grpo" else {}
        found.append((dataset, counts))
    return found


def batches(job: Job, stage: Stage, split: str) -> Iterator[Any]:
    """Rows of a split in batches, and how many have served: a bar on a terminal, a line every 30 s elsewhere."""
    rows = data.read(job.release, stage.config, "mask_prefix" in job.settings[stage.name], split, stage.kind)
    what, total = f"render {stage.name} {split}".removesuffix(" train"), {"train": stage.rows}.get(split)
    shown, there = time.monotonic(), sys.stderr if sys.stderr.isatty() else io.StringIO()
    with tqdm(desc=what, total=total, unit=" rows", leave=False, file=there, disable=job.quiet, ascii=True) as bar:
        for batch in rows:
            yield batch
            bar.update(len(batch))
            if not job.quiet and there is not sys.stderr and time.monotonic() - shown >= EVERY_S:
                shown = time.monotonic()
                print(bar, file=sys.stderr, flush=True)


def arguments(job: Job, stage: Stage) -> Any:
    """The stage's settings as TRL takes them. Raises RecipeError with TRL's own words where it refuses them."""
    settings: Record = {"disable_tqdm": job.quiet or not sys.stderr.isatty(), "logging_nan_inf_filter": False}
    settings |= {name: value for name, value in job.settings[stage.name].items() if name not in config.OWN}
    settings |= {"output_dir": str(job.output / f".{stage.directory}.partial"), "train_sampling_strategy": "sequential"}
    if stage.kind == "grpo":
        settings.setdefault("use_vllm", torch.cuda.is_available() and is_vllm_available())
        settings |= {"shuffle_dataset": False, "reward_weights": [*rewards.weights(job.settings[stage.name]).values()]}
    else:
        settings["eos_token"] = job.renderer.added_stop
    if stage.kind == "sft":
        settings["dataset_kwargs"] = {"skip_prepare_dataset": not settings.get("packing", False)}  # all else is ours
    try:
        LoraConfig(**job.settings[stage.name].get("peft", {}))
        args = config.KINDS[stage.kind](**settings)
        for report in integrations.get_reporting_integration_callbacks(args.report_to):  # type: ignore
            report()  # says so where its package is not installed
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise RecipeError(f"Stage {stage.name}: TRL refuses the settings: {error}") from error
    if stage.kind == "grpo" and args.save_strategy != "no" and not args.save_only_model:
        _check_checkpoints(stage, args)
    return args


def _check_checkpoints(stage: Stage, args: Any) -> None:
    """A killed stage goes on as if it had not been only from between two rollouts, and from where the reference model
    is the policy itself: a checkpoint keeps neither rollouts nor reference."""
    once, each = args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps
    when, served, every = args.save_strategy.value, max(once // each, 1), args.ref_model_sync_steps
    # Why one would not, and whether it is so here.
    told, alpha = f"save_steps {args.save_steps:g} is no multiple of", args.ref_model_mixup_alpha
    odd = f"a rollout serves {once} batches, a step takes {each}, save_strategy is {when}"
    cut = f"{told} the {served} steps that one rollout serves"
    old = f"{told} ref_model_sync_steps {every}, or ref_model_mixup_alpha {alpha} is not 1, or save_strategy {when}"
    wrong = {odd: (once % each and each % once) or when == "best", cut: when == "steps" and args.save_steps % served}
    wrong[old] = args.sync_ref_model and (when != "steps" or args.save_steps % every or alpha != 1)
    advice = "a run that goes on would differ. Change it, or set save_strategy to no."
    for why in (why for why, holds in wrong.items() if holds):
        raise RecipeError(f"Stage {stage.name}: {why}: {advice}")


def samples(job: Job, stage: Stage, args: Any, counts: dict[str, int]) -> tuple[int, list[str]]:
    """Rows, or replies to prompts, that an epoch trains on, and what to know. Raises RecipeError where it is none."""
    rows = counts["rows"]
    if stage.kind != "grpo":
        return rows, []
    prompts = args.generation_batch_size // args.num_generations
    if rows < prompts:
        told = f"{rows:,} prompts do not fill a batch of rollouts, which takes {prompts:,}"
        asked = f"generation_batch_size {args.generation_batch_size:,} / num_generations {args.num_generations}"
        raise RecipeError(f"Stage {stage.name}: {told} ({asked}). Lower it, or the batch that it is made of.")
    left = rows % prompts
    note = f"the last {left:,} prompts of each epoch's order do not fill a batch of {prompts:,} and are left out of it"
    found = [note] * (left > 0) + rewards.earnable(rewards.weights(job.settings[stage.name]), counts, stage.name)
    return rows // prompts * args.generation_batch_size * args.num_iterations, found


def report(job: Job, counts: dict[str, dict[str, int]]) -> Record:
    """The plan as `--json` prints it, from the counts of rendered rows by stage."""
    known: Record = {"recipe": job.recipe, "output": str(job.output), "warnings": job.renderer.warnings()}
    known |= {"dataset": job.origin(), "model": {"name": job.base.name, "revision": job.base.revision}}
    return known | {"stages": [_line(job, stage, counts[stage.name]) for stage in job.asked]}


def _line(job: Job, stage: Stage, counts: dict[str, int]) -> Record:
    """One stage. Bytes before sharding and hours of one device are arithmetic, explained in docs/training.md."""
    args = arguments(job, stage)
    (number, more), window, tokens = samples(job, stage, args, counts), counts["longest"], counts["tokens"]
    warnings = notes(job, stage) + more
    epochs, batch = args.num_train_epochs, args.per_device_train_batch_size
    own, processes = job.settings[stage.name], int(os.environ.get("WORLD_SIZE", "1"))
    if dropped := counts["dropped_rows"]:
        warnings += [f"{dropped:,} rows are too long and are left out"]
    if getattr(args, "packing", False):
        window, number = args.max_length, -(-tokens // args.max_length)  # if all filled up
        warnings += ["packing: order holds between blocks of 1,000 rows, not inside; steps are at least these"]
    steps = schedule.optimizer_steps(number, epochs, batch * processes, args.gradient_accumulation_steps)
    asked = args.max_steps if args.max_steps > 0 else steps
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job.base.path))  # type: ignore[no-untyped-call]
    text, size = model.config.get_text_config(), 4 if args.model_init_kwargs["dtype"] == "float32" else 2
    again = own.get("activation_checkpointing", own.get("gradient_checkpointing", True))
    passes, copies = (8 if again else 6), 1 if own.get("peft") else 4
    if stage.kind == "grpo":  # each reply is written, and read by the reference, before it is trained on
        window, tokens = window + args.max_completion_length, number * (window + args.max_completion_length)
        passes, copies = passes + 2 + 2 * (args.beta > 0), copies + (args.beta > 0)
        warnings += [f"hours are for replies of {args.max_completion_length:,} tokens, the most; shorter take less"]
    work = model.num_parameters() * tokens * epochs * asked / steps
    width = window * batch * (2 if stage.kind == "reward" else 1)  # both sides of a pair at once
    activation = width * text.hidden_size * text.num_hidden_layers * size * (1 if again else 17)
    line: Record = {"state": "done" if held(job, stage) else "to train", "directory": str(job.output / stage.directory)}
    line |= {"settings": own, "learning_rate": args.learning_rate, "warnings": warnings}
    line |= {"steps": asked, "epochs": epochs, "state_bytes": model.num_parameters() * size * copies}
    line |= {"activation_bytes": activation, "device_hours": passes * work / FLOPS / 3600}
    return stage.model_dump(by_alias=True) | counts | line
