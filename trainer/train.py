"""Train every stage of a release in order, one TRL trainer each, skipping what --output already holds."""

import math
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch.utils.data import Sampler
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from trainer import config, lineage, plan, render, schedule
from trainer.errors import RecipeError, StageError
from trainer.plan import Job
from trainer.progress import StageProgress, WholeLosses
from trainer.schedule import Stage

Record = dict[str, Any]
# A stage that --output holds when `run` returns; `trained` is false where it was there before.
Finished = namedtuple("Finished", "stage directory trained weights_sha256 train_loss")
PACKAGES = ("tempered", "torch", "transformers", "trl", "accelerate", "datasets", "tokenizers")
MEMORY = (
    "memory ran out. Lower per_device_train_batch_size and raise gradient_accumulation_steps, lower max_length, set "
    "activation_checkpointing: true, train with peft, or shard over more devices"
)
DISK = "the disk is full. Free some of it, or lower save_total_limit"
FAILURES = {"out of memory": MEMORY, "can't allocate memory": MEMORY, "no space left": DISK, "file write failed": DISK}


def run(job: Job, *, quiet: bool = False) -> list[Finished]:
    """Train the job's stages into its output, going on where an earlier run stopped. Raises TrainerError."""
    # Whatever can be refused is refused before the first step of training, too long rows included.
    arguments = {stage.name: trl_arguments(job, stage, quiet) for stage in job.asked}
    held, told = plan.states(job), set[tuple[str, str]]()

    def tell(stage: Stage, *lines: str) -> None:
        for line in lines if not quiet and arguments[stage.name].process_index == 0 else ():
            if (stage.name, line) not in told:
                print(f"stage {stage.name}: {line}", file=sys.stderr, flush=True)
            told.add((stage.name, line))

    for stage in job.asked:
        plan.refuse_other_work(job.output / stage.directory, held[stage.name].differs)
    rows = render_missing(job, arguments)
    for stage in (stage for stage in job.asked if stage.name in rows):
        tell(stage, *plan.notes(job, stage, held[stage.name].initial_weights_sha256))

    # One stage after the other, each from the weights that its `init` names.
    finished: list[Finished] = []
    for stage in job.asked:
        directory, record, args = job.output / stage.directory, held[stage.name].record, arguments[stage.name]
        known = job.base.weights_sha256 if stage.init == "base" else None
        wanted = plan.identity(job, stage, known or lineage.weights_sha256(job.initial(stage)))
        if trained := record is None:
            with args.main_process_first(local=False):
                checkpoint = lineage.start(Path(str(args.output_dir)), wanted | {"processes": args.world_size})
            at = f", going on at {checkpoint.name}" if checkpoint else ""
            tell(stage, *plan.notes(job, stage, wanted["initial_weights_sha256"]))
            tell(stage, f"{len(rows[stage.name][0].order):,} rows, from {stage.init}{at}")
            with explained(stage):
                record = train_stage(job, stage, wanted, args, rows[stage.name], checkpoint, quiet)
        plan.refuse_other_work(directory, lineage.differences(record, wanted))
        finished.append(Finished(stage.name, directory, trained, record["weights_sha256"], record["train_loss"]))

    # `final` is the last stage of this run; the rendered rows have served.
    with args.main_process_first(local=False):
        if args.process_index == 0:
            lineage.link_final(job.output, directory)
            lineage.discard(job.output / ".rendered")
    return finished


def trl_arguments(job: Job, stage: Stage, quiet: bool = False) -> SFTConfig:
    """The stage's settings as TRL takes them. Raises RecipeError with TRL's own words where it refuses them."""
    if stage.kind != plan.TRAINED:
        only = f"Stage {stage.name} is of kind {stage.kind}; this version trains {plan.TRAINED} stages only"
        raise StageError(f"{only}. Stop before it with --until STAGE, or choose another dataset.")
    settings: Record = {"disable_tqdm": quiet or not sys.stderr.isatty(), "logging_nan_inf_filter": False}
    settings |= {name: value for name, value in job.settings[stage.name].items() if name not in config.OURS}
    # Rows come with tokens and labels; packing is the one preparation left to TRL.
    settings["dataset_kwargs"] = {"skip_prepare_dataset": not settings.get("packing", False)}
    output_dir, eos_token = str(job.output / f".{stage.directory}.partial"), job.renderer.added_stop
    try:
        lora(job, stage)
        return SFTConfig(output_dir=output_dir, eos_token=eos_token, **settings)
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"Stage {stage.name}: TRL refuses the settings: {error}") from error


def lora(job: Job, stage: Stage) -> Any:
    """The stage's LoraConfig, None where all weights are trained."""
    from peft import LoraConfig

    asked = job.settings[stage.name].get("peft")
    return LoraConfig(task_type="CAUSAL_LM", **asked) if asked else None


def render_missing(job: Job, arguments: dict[str, SFTConfig]) -> dict[str, list[render.Rendered]]:
    """Trained and held-out rows of the stages to train. Of several processes the first renders, the others read."""
    rows: dict[str, list[render.Rendered]] = {}
    folder = job.output / ".rendered"
    for stage in (stage for stage in job.asked if not (job.output / stage.directory).exists()):
        with (args := arguments[stage.name]).main_process_first(local=False):
            if args.process_index == 0 and not rows:
                lineage.discard(folder)
                folder.mkdir(parents=True)
            splits = ["train", "validation"][: 1 + plan.evaluated(job.settings[stage.name])]
            rows[stage.name] = [plan.rendered(job, stage, folder, split) for split in splits]
    return rows


def train_stage(
    job: Job, stage: Stage, wanted: Record, args: SFTConfig, rows: list[render.Rendered], checkpoint: Path | None,
    quiet: bool,
) -> Record:  # fmt: skip
    """Train one stage or go on with it, put its directory in place, return its record."""
    # TRL changes the tokenizer it is given: each stage starts from the base's own.
    tokenizer = render.load(job.base.path, job.base.name).tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data: Record = dict(zip(("train_dataset", "eval_dataset"), (split.dataset() for split in rows), strict=False))
    init, peft, partial = str(job.initial(stage)), lora(job, stage), Path(str(args.output_dir))
    trainer = ScheduledTrainer(init, args, **data, processing_class=tokenizer, peft_config=peft)
    if peft and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise StageError(
            f"Stage {stage.name}: an adapter is merged into whole weights: no peft with FSDP or DeepSpeed."
        )
    trainer.remove_callback(PrinterCallback)
    for callback in [WholeLosses(), *([StageProgress(stage.name)] if not quiet and args.disable_tqdm else [])]:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    record = wanted | record_of(job, stage, rows[0], trainer)
    if not math.isfinite(loss := record["train_loss"]):
        with args.main_process_first(local=False):
            lineage.discard(partial)
        raise StageError(f"Stage {stage.name} ended with loss {loss}; nothing was kept. Lower its learning_rate.")

    # The directory gets its name only when everything in it is on disk.
    if peft:
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model()
    if args.process_index == 0:
        weights = {"weights_sha256": lineage.weights_sha256(partial)}
        lineage.commit(partial, job.output / stage.directory, record | weights)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    return lineage.read(job.output / stage.directory) or {}


def record_of(job: Job, stage: Stage, rows: render.Rendered, trainer: SFTTrainer) -> Record:
    """What `training.json` holds beside the stage's identity and its weights."""
    args, kept = trainer.args, ("step", "epoch", "loss", "learning_rate", "grad_norm")
    history: list[Record] = trainer.state.log_history
    losses: list[Record] = [{key: entry.get(key) for key in kept} for entry in history if "loss" in entry]
    held_out = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    ends: list[int] = [0, *(entry["step"] for entry in losses)]
    total = sum(entry["loss"] * (entry["step"] - before) for before, entry in zip(ends, losses, strict=False))
    return (
        stage.model_dump(include={"number", "init"})
        | {"dataset": job.release.origin | {"config": stage.config}, "recipe": job.recipe}
        | {"base_model": job.base.name, "base_revision": job.base.revision}
        | {"base_weights_sha256": job.base.weights_sha256, "rows": len(rows.order), "dropped_rows": rows.dropped}
        | {"tokens": rows.tokens, "trained_tokens": rows.trained_tokens}
        | {"steps": trainer.state.global_step, "processes": args.world_size, "losses": losses, "held_out": held_out}
        | {"seeds": {"seed": args.seed, "order": order_seed(args)}, "train_loss": total / max(ends)}
        | {"packages": {package: version(package) for package in PACKAGES}}
    )


@contextmanager
def explained(stage: Stage) -> Iterator[None]:
    """Failures of the machine, told as what to do. Checkpoints and earlier stages are kept."""
    try:
        yield
    except Exception as error:
        for words, advice in FAILURES.items():
            if words in str(error).lower():
                kept = "Finished stages and the last checkpoint are kept: run it again to go on"
                raise StageError(f"Stage {stage.name} stopped: {advice}. {kept}.") from error
        raise


def order_seed(args: Any) -> int:
    return int(args.seed if args.data_seed is None else args.data_seed)


class EpochSampler(Sampler[int]):
    """The schedule's order of one epoch; the Trainer announces each through `set_epoch`."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed, self.epoch = rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(schedule.epoch_order(self.rows, self.epoch, self.seed))

    def __len__(self) -> int:
        return self.rows


class ScheduledTrainer(SFTTrainer):
    """SFTTrainer that takes rows in the schedule's order instead of at random."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return EpochSampler(len(rows), order_seed(self.args))
