"""Train every stage of a release in order, one TRL trainer each, skipping what --output already holds."""

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from trainer import config, lineage, plan, render, schedule
from trainer.errors import RecipeError, StageError
from trainer.plan import Job
from trainer.progress import StageProgress
from trainer.schedule import Stage

Record = dict[str, Any]
PACKAGES = ("tempered", "torch", "transformers", "trl", "accelerate", "datasets", "tokenizers")


class Finished(NamedTuple):
    """A stage that --output holds when `run` returns; `trained` is false where it was there before."""

    stage: str
    directory: Path
    trained: bool
    weights_sha256: str
    train_loss: float


def run(job: Job, *, quiet: bool = False) -> list[Finished]:
    """Train the job's stages into its output, going on after the last finished one. Raises TrainerError."""
    # Whatever can be refused is refused before the first step of training, too long rows included.
    arguments = {stage.name: trl_arguments(job, stage) for stage in job.stages}
    held = plan.states(job)
    for stage in job.stages:
        plan.refuse_other_work(job.output / stage.directory, held[stage.name].differs)
    rows = render_missing(job, arguments)
    told = {stage.name: plan.off_policy(job, stage, held[stage.name].initial_weights_sha256) for stage in job.stages}
    for name in rows:
        tell(name, told[name], arguments[name], quiet)

    # One stage after the other, each from the weights that its `init` names.
    finished: list[Finished] = []
    for stage in job.stages:
        directory, record = job.output / stage.directory, held[stage.name].record
        known = job.base.weights_sha256 if stage.init == "base" else None
        wanted = plan.identity(job, stage, known or lineage.weights_sha256(job.initial(stage)))
        if trained := record is None:
            now = plan.off_policy(job, stage, wanted["initial_weights_sha256"])
            tell(stage.name, [text for text in now if text not in told[stage.name]], arguments[stage.name], quiet)
            record = train_stage(job, stage, wanted, arguments[stage.name], rows[stage.name], quiet)
        plan.refuse_other_work(directory, lineage.differences(record, wanted))
        finished.append(Finished(stage.name, directory, trained, record["weights_sha256"], record["train_loss"]))

    # `final` is the last stage of this run; the rendered rows have served.
    with first_process(arguments[finished[-1].stage]) as first:
        if first:
            lineage.link_final(job.output, finished[-1].directory)
            lineage.discard(job.output / ".rendered")
    return finished


def trl_arguments(job: Job, stage: Stage) -> SFTConfig:
    """The stage's settings as TRL takes them. Raises RecipeError with TRL's own words where it refuses them."""
    if stage.kind != plan.TRAINED:
        raise StageError(
            f"Stage {stage.name} is of kind {stage.kind}; this version trains {plan.TRAINED} stages only. Stop before "
            "it with --until STAGE, or choose another dataset."
        )
    settings = {name: value for name, value in job.settings[stage.name].items() if name not in config.OURS}
    # Rows come with tokens and labels; packing is the one preparation left to TRL.
    settings["dataset_kwargs"] = {"skip_prepare_dataset": not settings.get("packing", False)}
    settings.setdefault("disable_tqdm", True)  # `progress` shows it
    output_dir, eos_token = str(job.output / f".{stage.directory}.partial"), job.renderer.added_stop
    try:
        return SFTConfig(output_dir=output_dir, eos_token=eos_token, **settings)
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"Stage {stage.name}: TRL refuses the settings: {error}") from error


def render_missing(job: Job, arguments: dict[str, SFTConfig]) -> dict[str, render.Rendered]:
    """Rows of all stages still to train. Of several processes the first renders, the others read what it wrote."""
    rows: dict[str, render.Rendered] = {}
    folder = job.output / ".rendered"
    for stage in (stage for stage in job.stages if not (job.output / stage.directory).exists()):
        with first_process(arguments[stage.name]) as first:
            if first and not rows:
                lineage.discard(folder)
                folder.mkdir(parents=True)
            rows[stage.name] = plan.rendered(job, stage, folder)
    return rows


def train_stage(job: Job, stage: Stage, wanted: Record, args: SFTConfig, rows: render.Rendered, quiet: bool) -> Record:
    """Train one stage, put its directory in place, return its record."""
    # TRL changes the tokenizer it is given: each stage starts from the base's own.
    tokenizer = render.load(job.base.path, job.base.name).tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    partial = Path(str(args.output_dir))
    with first_process(args) as first:
        if first:
            lineage.discard(partial)

    trainer = ScheduledTrainer(str(job.initial(stage)), args, train_dataset=rows.dataset(), processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    if not quiet:
        trainer.add_callback(StageProgress(stage.name))
    tell(stage.name, [f"{len(rows.order):,} rows, from {stage.init}"], args, quiet)
    loss = trainer.train().training_loss
    if not math.isfinite(loss):
        raise StageError(f"Stage {stage.name} ended with loss {loss}; nothing was kept. Lower its learning_rate.")

    # The directory gets its name only when everything in it is on disk.
    trainer.save_model()
    if first:
        (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle with paths; training.json says it all
        lineage.commit(partial, job.output / stage.directory, wanted | record_of(job, stage, rows, trainer))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    return lineage.read(job.output / stage.directory) or {}


def record_of(job: Job, stage: Stage, rows: render.Rendered, trainer: SFTTrainer) -> Record:
    """What `training.json` holds beside the stage's identity."""
    args, history = trainer.args, trainer.state.log_history
    kept = ("step", "epoch", "loss", "learning_rate", "grad_norm")
    losses = [{key: entry.get(key) for key in kept} for entry in history if "loss" in entry]
    average = next(entry["train_loss"] for entry in reversed(history) if "train_loss" in entry)
    weights = lineage.weights_sha256(Path(str(args.output_dir)))
    return (
        stage.model_dump(include={"number", "init"})
        | {"dataset": job.release.origin | {"config": stage.config}, "recipe": job.recipe}
        | {"base_model": job.base.name, "base_revision": job.base.revision}
        | {"base_weights_sha256": job.base.weights_sha256, "weights_sha256": weights}
        | {"rows": len(rows.order), "dropped_rows": rows.dropped}
        | {"tokens": rows.tokens, "trained_tokens": rows.trained_tokens}
        | {"steps": trainer.state.global_step, "processes": args.world_size}
        | {"seeds": {"seed": args.seed, "order": order_seed(args)}, "train_loss": average, "losses": losses}
        | {"packages": {package: version(package) for package in PACKAGES}}
    )


@contextmanager
def first_process(args: SFTConfig) -> Iterator[bool]:
    """The block runs in the first process, then in the others; says which one this is."""
    with args.main_process_first(local=False):
        yield bool(args.process_index == 0)


def tell(stage: str, lines: Iterable[str], args: SFTConfig, quiet: bool) -> None:
    """Lines about a stage, on stderr and from one process."""
    for line in lines if args.process_index == 0 and not quiet else ():
        print(f"stage {stage}: {line}", file=sys.stderr, flush=True)


def order_seed(args: TrainingArguments) -> int:
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
