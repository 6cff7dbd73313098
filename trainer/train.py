"""Train every stage of a release in order, one TRL trainer each, skipping what --output already holds."""

import math
import shutil
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, TrainerCallback, integrations
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from trainer import config, lineage, plan, render, schedule
from trainer.errors import RecipeError, StageError
from trainer.lineage import Record
from trainer.schedule import Stage

Finished = namedtuple("Finished", "stage directory trained weights_sha256 train_loss")
PACKAGES = ("tempered", "torch", "transformers", "trl", "accelerate", "datasets", "tokenizers")
ADVICE = config.ARGUMENTS["failures"]
EVERY_S = 30.0  # between two lines where there is no terminal


def run(job: plan.Job) -> list[Finished]:
    """Train the job's stages into its output, going on where an earlier run stopped. Raises TrainerError."""
    # Whatever can be refused is refused before the first step, too long rows included.
    arguments = {stage.name: trl_arguments(job, stage) for stage in job.asked}
    missing = [stage for stage in job.stages if plan.held(job, stage) is None]
    folder, first = job.output / ".rendered", arguments[job.asked[0].name]
    with first.main_process_first(local=False):  # of several processes the first renders, the others read
        if first.process_index == 0 and missing:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        rows = {stage.name: plan.rendered(job, stage, folder) for stage in missing}

    # One stage after the other, each from the weights that its `init` names.
    finished: list[Finished] = []
    for stage in job.asked:
        args, directory = arguments[stage.name], job.output / stage.directory
        if stage in missing:
            wanted = plan.identity(job, stage)
            with args.main_process_first(local=False):
                checkpoint = lineage.start(Path(str(args.output_dir)), wanted | {"processes": args.world_size})
            begin = f"{rows[stage.name][0][1]['rows']:,} rows, from {checkpoint.name if checkpoint else stage.init}"
            for line in [*plan.notes(job, stage), begin] if not job.quiet and args.process_index == 0 else ():
                print(f"stage {stage.name}: {line}", file=sys.stderr, flush=True)
            try:
                train_stage(job, stage, wanted, args, rows[stage.name], checkpoint)
            except Exception as error:
                if not (advice := [text for words, text in ADVICE.items() if words in repr(error).lower()]):
                    raise
                raise StageError(f"Stage {stage.name} stopped: {advice[0]}. Work is kept: run it again.") from error
        done = plan.held(job, stage) or {}
        finished.append(Finished(stage.name, directory, stage in missing, done["weights_sha256"], done["train_loss"]))

    # `final` is the last stage of this run; the rendered rows have served.
    with first.main_process_first(local=False):
        if first.process_index == 0:
            lineage.link_final(job.output, directory)
            shutil.rmtree(folder, ignore_errors=True)
    return finished


def trl_arguments(job: plan.Job, stage: Stage) -> SFTConfig:
    """The stage's settings as TRL takes them. Raises RecipeError with TRL's own words where it refuses them."""
    settings: Record = {"disable_tqdm": job.quiet or not sys.stderr.isatty(), "logging_nan_inf_filter": False}
    settings |= {name: value for name, value in job.settings[stage.name].items() if name not in config.OURS}
    settings["dataset_kwargs"] = {"skip_prepare_dataset": not settings.get("packing", False)}  # all else is ours
    output_dir, eos_token = str(job.output / f".{stage.directory}.partial"), job.renderer.added_stop
    try:
        LoraConfig(**job.settings[stage.name].get("peft", {}))
        args = SFTConfig(output_dir=output_dir, eos_token=eos_token, **settings)
        for report in integrations.get_reporting_integration_callbacks(args.report_to):  # type: ignore
            report()  # says so where its package is not installed
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise RecipeError(f"Stage {stage.name}: TRL refuses the settings: {error}") from error
    return args


def train_stage(job: plan.Job, stage: Stage, wanted: Record, args: Any, rows: list[Any], checkpoint: Any) -> None:
    """Train one stage or go on with it, and put its directory in place."""
    # TRL changes the tokenizer it is given: each stage starts from the base's own.
    tokenizer = render.Renderer(job.base.path, job.base.name).tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data: Record = dict(zip(("train_dataset", "eval_dataset"), (split for split, _ in rows), strict=False))
    asked, partial = job.settings[stage.name].get("peft"), Path(args.output_dir)
    peft = LoraConfig(task_type="CAUSAL_LM", **asked) if asked else None
    trainer = ScheduledTrainer(str(job.initial(stage)), args, **data, processing_class=tokenizer, peft_config=peft)
    if peft and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise StageError(f"Stage {stage.name}: peft merges whole weights, so not with FSDP or DeepSpeed.")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress(stage.name, says=args.disable_tqdm and not job.quiet))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    record = wanted | record_of(job, stage, rows[0][1], trainer)
    # What the last step breaks shows in its gradients alone.
    loss, last = record["train_loss"], record["losses"][-1]["grad_norm"]
    if not math.isfinite(loss + (last or 0)):
        with args.main_process_first(local=False):
            shutil.rmtree(partial, ignore_errors=True)
        raise StageError(f"Stage {stage.name}: gradient {last}, loss {loss}; nothing was kept. Lower learning_rate.")

    # The directory gets its name only when everything in it is on disk.
    if peft:
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model()
    if args.process_index == 0:
        weights = {"weights_sha256": lineage.weights_sha256(partial)}
        lineage.commit(partial, job.output / stage.directory, record | weights)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()


def record_of(job: plan.Job, stage: Stage, counts: dict[str, int], trainer: SFTTrainer) -> Record:
    """What `training.json` holds beside the stage's identity and its weights."""
    args, kept = trainer.args, ("step", "epoch", "loss", "learning_rate", "grad_norm")
    history: list[Record] = trainer.state.log_history
    losses: list[Record] = [{key: entry.get(key) for key in kept} for entry in history if "loss" in entry]
    held_out = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    ends: list[int] = [0, *(entry["step"] for entry in losses)]
    total = sum(entry["loss"] * (entry["step"] - before) for before, entry in zip(ends, losses, strict=False))
    known: Record = counts | stage.model_dump(include={"number", "init"}) | {"recipe": job.recipe}
    known |= {"dataset": job.origin() | {"config": stage.config}, "base_model": job.base.name}
    known |= {"base_revision": job.base.revision, "base_weights_sha256": job.base.weights_sha256}
    known |= {"steps": trainer.state.global_step, "processes": args.world_size, "losses": losses, "held_out": held_out}
    known |= {"seeds": {"seed": args.seed, "data_seed": args.data_seed}, "train_loss": total / max(ends)}
    return known | {"packages": {package: version(package) for package in PACKAGES}}


class EpochSampler(SequentialSampler):
    """The schedule's order of the epoch that the trainer is in. Its own state says which: with several processes,
    `set_epoch` does not reach a sampler whose first batches are skipped (accelerate 1.15)."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer.train_dataset)
        self.trainer = trainer

    def __iter__(self) -> Iterator[int]:
        args, epoch = self.trainer.args, int(self.trainer.state.epoch or 0)
        return iter(schedule.epoch_order(len(self), epoch, args.seed if args.data_seed is None else args.data_seed))


class ScheduledTrainer(SFTTrainer):
    """SFTTrainer that takes rows in the schedule's order instead of at random."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return EpochSampler(self)


class Progress(TrainerCallback):
    """A plain line every 30 s where there is no bar; losses at each checkpoint and the end, or a restart loses them."""

    def __init__(self, stage: str, says: bool) -> None:
        self.stage, self.says, self.shown = stage, says, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        control.should_log |= control.should_save or state.global_step >= state.max_steps
        if self.says and state.is_world_process_zero and time.monotonic() - self.shown >= EVERY_S:
            self.shown, losses = time.monotonic(), [entry["loss"] for entry in state.log_history if "loss" in entry]
            said = f"stage {self.stage}: {state.global_step:,} of {state.max_steps:,} steps"
            print(said, *(f"loss {loss:.3f}" for loss in losses[-1:]), file=sys.stderr, flush=True)

    on_epoch_end = on_step_end
