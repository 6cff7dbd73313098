"""Callbacks of a stage: a line now and then where there is no terminal, and losses that a restart does not change."""

import sys
import time
from typing import Any

from transformers import TrainerCallback

EVERY_S = 30.0


class StageProgress(TrainerCallback):
    """Steps and loss of the first process, one plain line every 30 s; a terminal has transformers' own bar."""

    def __init__(self, stage: str) -> None:
        self.stage, self.loss, self.shown = stage, "", time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **more: Any) -> None:
        if logs and "loss" in logs:
            self.loss = f"loss {float(logs['loss']):.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.is_world_process_zero and time.monotonic() - self.shown >= EVERY_S:
            self.shown = time.monotonic()
            line = f"stage {self.stage}: {state.global_step:,} of {state.max_steps:,} steps {self.loss}"
            print(line.rstrip(), file=sys.stderr, flush=True)


class WholeLosses(TrainerCallback):
    """Logs at each checkpoint and at the end, since a loss that is not logged is lost when a run goes on."""

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        control.should_log |= control.should_save or state.global_step >= state.max_steps

    on_epoch_end = on_step_end
