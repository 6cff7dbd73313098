"""Train every stage of a release in order, one TRL trainer each, skipping what --output already holds."""

import math
import re
import shutil
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback
from trl import RewardTrainer, SFTTrainer  # type: ignore[attr-defined]
from trl.trainer.callbacks import SyncRefModelCallback

from trainer import config, lineage, plan, reinforce, render, rewards, schedule
from trainer.errors import StageError, TrainerError
from trainer.lineage import Record
from trainer.schedule import Stage

Finished = namedtuple("Finished", "stage directory trained weights_sha256 train_loss reached")
PACKAGES = ("tempered", "torch", "transformers", "trl", "accelerate", "datasets", "tokenizers")
ADVICE = config.ARGUMENTS["failures"]
KEPT = re.compile(r"reward|(accuracy|margin|kl|entropy|frac_reward_zero_std|completions/(mean_length|clipped_ratio))$")
LENGTH, LOSS = ("completions/mean_length", "tokens", ".0f"), ("loss", "loss", ".3f")
SHOWN = {"sft": [LOSS], "reward": [LOSS, ("accuracy", "accuracy", ".1%")]}  # of what TRL logs, by kind
SHOWN["grpo"] = [("reward", "reward", ".3f"), (rewards.EARNED("accuracy"), "accuracy", ".1%"), LENGTH]


def run(job: plan.Job) -> list[Finished]:
    """Train the job's stages into its output, going on where an earlier run stopped. Raises TrainerError."""
    # Whatever can be refused is refused before the first step, too long rows included.
    arguments = {stage.name: plan.arguments(job, stage) for stage in job.asked}
    missing = [stage for stage in job.stages if plan.held(job, stage) is None]
    folder, first = job.output / ".rendered", arguments[job.asked[0].name]
    with first.main_process_first(local=False):  # of several processes the first renders, the others read
        if first.process_index == 0 and missing:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        rows = {stage.name: plan.rendered(job, stage, folder) for stage in missing}
    told = {stage.name: plan.samples(job, stage, arguments[stage.name], rows[stage.name][0][1])[1] for stage in missing}

    # One stage after the other, each from the weights that its `init` names.
    finished: list[Finished] = []
    for stage in job.asked:
        args, directory = arguments[stage.name], job.output / stage.directory
        if stage in missing:
            wanted = plan.identity(job, stage)
            with args.main_process_first(local=False):
                checkpoint = lineage.start(Path(str(args.output_dir)), wanted | {"processes": args.world_size})
            begin = f"{rows[stage.name][0][1]['rows']:,} rows, from {checkpoint.name if checkpoint else stage.init}"
            says = args.process_index == 0 and not job.quiet
            for line in [*plan.notes(job, stage), *told[stage.name], begin] if says else ():
                print(f"stage {stage.name}: {line}", file=sys.stderr, flush=True)
            try:
                train_stage(job, stage, wanted, args, rows[stage.name], checkpoint)
            except Exception as error:
                advice = [text for words, text in ADVICE.items() if words in repr(error).lower()]
                if isinstance(error, TrainerError) or not advice:
                    raise
                raise StageError(f"Stage {stage.name} stopped: {advice[0]}. Work is kept: run it again.") from error
        done = plan.held(job, stage) or {}
        ended = (done["weights_sha256"], done["train_loss"], reached(stage.kind, done))
        finished.append(Finished(stage.name, directory, stage in missing, *ended))

    # `final` is the last stage of this run; the rendered rows have served.
    with first.main_process_first(local=False):
        if first.process_index == 0:
            lineage.link_final(job.output, directory)
            shutil.rmtree(folder, ignore_errors=True)
    return finished


def train_stage(job: plan.Job, stage: Stage, wanted: Record, args: Any, rows: list[Any], checkpoint: Any) -> None:
    """Train one stage or go on with it, and put its directory in place."""
    # TRL changes the tokenizer it is given: each stage starts from the base's own.
    tokenizer = render.Renderer(job.base.path, job.base.name).tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data: Record = dict(zip(("train_dataset", "eval_dataset"), (split for split, _ in rows), strict=False))
    settings, partial = job.settings[stage.name], Path(args.output_dir)
    peft = LoraConfig(task_type=TASKS[stage.kind], **settings["peft"]) if settings.get("peft") else None
    known: Record = {"args": args, "processing_class": tokenizer, "peft_config": peft, **data}
    if stage.kind == "grpo":
        tokenizer.padding_side, tokenizer.eos_token = "left", job.renderer.added_stop or tokenizer.eos_token
        known["reward_funcs"] = reinforce.load(settings, stage.name, job.renderer.begun, job.reward_models(stage))
        if args.process_index == 0:
            reinforce.rewind(partial, int(checkpoint.name.partition("-")[2]) if checkpoint else 0)
    trainer: Any = TRAINERS[stage.kind](str(job.initial(stage)), **known)
    if peft and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise StageError(f"Stage {stage.name}: peft merges whole weights, so not with FSDP or DeepSpeed.")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress(stage, trainer, says=args.disable_tqdm and not job.quiet))
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
        lineage.commit(partial, job.output / stage.directory, record, job.initial(stage))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()


def record_of(job: plan.Job, stage: Stage, counts: dict[str, int], trainer: Any) -> Record:
    """What `training.json` holds beside the stage's identity and its weights."""
    args, history = trainer.args, trainer.state.log_history
    kept = ("step", "epoch", "loss", "learning_rate", "grad_norm")
    losses: list[Record] = [{key: entry.get(key) for key in kept} for entry in history if "loss" in entry]
    held_out = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    ends: list[int] = [0, *(entry["step"] for entry in losses)]
    total = sum(entry["loss"] * (entry["step"] - before) for before, entry in zip(ends, losses, strict=False))
    known: Record = counts | stage.model_dump(include={"number", "init"}) | {"recipe": job.recipe}
    known |= {"dataset": job.origin() | {"config": stage.config}, "base_model": job.base.name}
    known |= {"base_revision": job.base.revision, "base_weights_sha256": job.base.weights_sha256}
    known |= {"steps": trainer.state.global_step, "processes": args.world_size, "losses": losses, "held_out": held_out}
    if stage.kind != "sft":
        known |= {"metrics": _metrics(history)} | ({"held_out_metrics": _metrics(history, "eval_")} if held_out else {})
    if stage.kind == "grpo":
        tried = reinforce.solved(Path(args.output_dir))
        known |= {"prompts": tried, "signs": rewards.signs(history), "rollouts_by": "vllm" if args.use_vllm else "trl"}
        for line in reinforce.advice(stage.name, tried, known["signs"]) if args.process_index == 0 else ():
            print(line, file=sys.stderr, flush=True)
    known |= {"seeds": {"seed": args.seed, "data_seed": args.data_seed}, "train_loss": total / max(ends)}
    return known | {"packages": {package: version(package) for package in PACKAGES}}


def _metrics(history: list[Record], prefix: str = "") -> list[Record]:
    """What is kept of the log's entries that have a loss below a prefix."""
    entries = [entry for entry in history if f"{prefix}loss" in entry]
    shown = sorted({key for entry in entries for key in entry if KEPT.match(key.removeprefix(prefix))})
    return [{"step": one["step"]} | {key.removeprefix(prefix): one.get(key) for key in shown} for one in entries]


def reached(kind: str, record: Record) -> str:
    """Where a stage ended, in words: the average loss, or what was logged last."""
    last = {"loss": record["train_loss"]} | (record["metrics"][-1] if kind != "sft" else {})
    return ", ".join(f"{word} {last[key]:{form}}" for key, word, form in SHOWN[kind] if last.get(key) is not None)


class EpochSampler(Sampler[int]):
    """The schedule's order of the epoch that the trainer is in, for the places that TRL's sampler asks for, GRPO's some
    of them again and again. The trainer's state says which epoch: with several processes, `set_epoch` does not reach a
    sampler whose first batches are skipped (accelerate 1.15)."""

    def __init__(self, trainer: Any, places: Any) -> None:
        self.trainer, self.places = trainer, places

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[int]:
        args, epoch = self.trainer.args, int(self.trainer.state.epoch or 0)
        seed = args.seed if args.data_seed is None else args.data_seed
        order = schedule.epoch_order(len(self.trainer.train_dataset), epoch, seed)
        return (order[place] for place in self.places)


class InOrder:
    """A TRL trainer that takes rows in the schedule's order; its own sampler runs through them one after another."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return EpochSampler(self, super()._get_train_sampler(train_dataset))  # type: ignore[misc]


class ScheduledTrainer(InOrder, SFTTrainer): ...


class ScheduledGRPO(InOrder, reinforce.Rollouts): ...


class ScheduledReward(InOrder, RewardTrainer): ...


TRAINERS = {"sft": ScheduledTrainer, "grpo": ScheduledGRPO, "reward": ScheduledReward}
TASKS = {"sft": "CAUSAL_LM", "grpo": "CAUSAL_LM", "reward": "SEQ_CLS"}


class Progress(TrainerCallback):
    """A plain line every 30 s where there is no bar; losses at each checkpoint and the end, or a restart loses them.
    Signs of reward hacking as soon as they show. A resumed stage's reference model is its checkpoint."""

    def __init__(self, stage: Stage, trainer: Any, says: bool) -> None:
        self.stage, self.trainer, self.says, self.shown, self.told = stage, trainer, says, time.monotonic(), False

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step and getattr(args, "sync_ref_model", False):
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            SyncRefModelCallback.sync_target_model(model, self.trainer.ref_model, 1.0)  # type: ignore[no-untyped-call]

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        control.should_log |= control.should_save or state.global_step >= state.max_steps
        if self.says and state.is_world_process_zero and time.monotonic() - self.shown >= plan.EVERY_S:
            self.shown, said = time.monotonic(), f"{state.global_step:,} of {state.max_steps:,} steps"
            for entry in [entry for entry in state.log_history if "loss" in entry][-1:]:
                said += ", " + reached(self.stage.kind, {"train_loss": entry["loss"], "metrics": [entry]})
            print(f"stage {self.stage.name}: {said}", file=sys.stderr, flush=True)

    on_epoch_end = on_step_end

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        signs = rewards.signs(state.log_history) if self.stage.kind == "grpo" and not self.told else []
        for sign in signs if state.is_world_process_zero else ():
            print(f"stage {self.stage.name}: {sign}: a sign of reward hacking", file=sys.stderr, flush=True)
        self.told |= bool(signs)
