"""Stage and position to sample order. Pure: no torch, no files."""

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from trainer.errors import RecipeError, ReleaseError


class Stage(BaseModel, frozen=True):
    """One entry of the manifest's schedule; `stages` numbers it and resolves `init` to a stage's name or `base`."""

    number: int = 0
    name: str = Field(alias="stage", pattern=r"^\w[\w.-]{0,99}$")  # part of a directory's name
    config: str
    kind: Literal["sft", "grpo", "reward"]
    init: str
    rows: int
    tokens: int | None
    rowset_hash: str
    epochs: float | None = Field(gt=0, allow_inf_nan=False)

    @property
    def directory(self) -> str:
        return f"{self.number}-{self.name}"


def stages(schedule: Sequence[Stage], until: str | None = None, first: str | None = None) -> list[Stage]:
    """The stages in manifest order with `init` resolved, up to `until`; `first` has to be one. Raises TrainerError."""
    found: dict[str, Stage] = {}
    for number, stage in enumerate(schedule, start=1):
        known = ("base", "previous", *found)
        if stage.name in known or stage.init not in known:
            raise ReleaseError(f"Stage {stage.name!r}: name taken, or init {stage.init!r} not of {', '.join(known)}.")
        init = next(reversed(found), "base") if stage.init == "previous" else stage.init
        found[stage.name] = stage.model_copy(update={"number": number, "init": init})
    upto = [name for name in found if until not in found or found[name].number <= found[until].number]
    for option, name in (("--until", until), ("--from", first)):
        if name is not None and name not in upto:
            raise RecipeError(f"{option} {name}: there is no such stage among {', '.join(upto)}.")
    return [found[name] for name in upto]


def epoch_order(rows: int, epoch: int, seed: int) -> list[int]:
    """Order of one epoch over rows that lie in `position` order, which epoch 0 follows. Later ones rank by md5 of
    `seed + epoch` and the row: the same everywhere, which no random generator promises."""
    return sorted(range(rows), key=lambda row: hashlib.md5(f"{seed + epoch}:{row}".encode()).digest() if epoch else b"")


def optimizer_steps(samples: int, epochs: float, batch: int, accumulation: int) -> int:
    """Optimizer steps of a stage, counted as transformers' Trainer does; `batch` is that of all devices."""
    return math.ceil(max(math.ceil(math.ceil(samples / batch) / accumulation), 1) * epochs)
