"""Progress of one stage on stderr: a bar on a terminal, one plain line every 30 s elsewhere."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

EVERY_S = 30.0


class StageProgress(TrainerCallback):
    """Steps, loss and time left of the first process, in place of transformers' line a log entry."""

    def __init__(self, stage: str) -> None:
        self.stage, self.loss, self.shown = stage, "", time.monotonic()
        self.bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.is_world_process_zero and sys.stderr.isatty():
            note = TextColumn("{task.fields[note]}")
            parts = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), note)
            console = Console(stderr=True, highlight=False)
            self.bar = Progress(TextColumn("{task.description}"), *parts, console=console, transient=True)
            self.bar.add_task(self.stage, total=state.max_steps, note="")
            self.bar.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **more: Any) -> None:
        if logs and "loss" in logs:
            self.loss = f"loss {float(logs['loss']):.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=state.global_step, note=self.loss)
        elif state.is_world_process_zero and time.monotonic() - self.shown >= EVERY_S:
            self.shown = time.monotonic()
            line = f"stage {self.stage}: {state.global_step:,} of {state.max_steps:,} steps {self.loss}"
            print(line.rstrip(), file=sys.stderr, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self.bar is not None:
            self.bar.stop()
