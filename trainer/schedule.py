"""Stage and position to sample order. Pure: no torch, no files."""

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from trainer.errors import RecipeError, ReleaseError


class Stage(BaseModel):
    """One entry of the manifest's schedule; `stages` numbers it and resolves `init` to a stage's name or `base`."""

    model_config = ConfigDict(frozen=True)
    number: int = 0
    name: str = Field(alias="stage")
    config: str
    kind: Literal["sft", "grpo", "reward"]
    init: str
    rows: int
    tokens: int | None
    rowset_hash: str
    epochs: float | None

    @property
    def directory(self) -> str:
        return f"{self.number}-{self.name}"


def stages(schedule: Sequence[Stage], until: str | None = None, first: str | None = None) -> list[Stage]:
    """The stages in manifest order with `init` resolved, up to `until`; `first` has to be one of them.

    Raises ReleaseError where names repeat or `init` names no earlier stage, RecipeError for unknown ones.
    """
    found: dict[str, Stage] = {}
    for number, stage in enumerate(schedule, start=1):
        if stage.name in found or stage.init not in ("base", "previous", *found):
            known = ", ".join(("base", "previous", *found))
            raise ReleaseError(
                f"Stage {stage.name!r} repeats a name, or its init {stage.init!r} is not one of {known}."
            )
        init = next(reversed(found), "base") if stage.init == "previous" else stage.init
        found[stage.name] = stage.model_copy(update={"number": number, "init": init})
    for option, name in (("--until", until), ("--from", first)):
        if name is not None and name not in found:
            known = f"{', '.join(found)}{' up to --until' if until else ''}"
            raise RecipeError(f"{option} {name}: this dataset has no such stage. Its stages: {known}.")
        found = {
            each: stage for each, stage in found.items() if until not in found or stage.number <= found[until].number
        }
    return list(found.values())


def by_position(positions: Sequence[int | None]) -> list[int]:
    """Row indices in the order of `position`. Raises ReleaseError unless positions are all there and unique."""
    if None in positions or len(set(positions)) < len(positions):
        raise ReleaseError("`position` is null or repeated in some rows: their order is undefined. Build it again.")
    return sorted(range(len(positions)), key=positions.__getitem__)  # type: ignore[arg-type]


def epoch_order(rows: int, epoch: int, seed: int) -> list[int]:
    """Order of one epoch over rows that lie in `position` order, which epoch 0 follows.

    Later epochs rank by md5 of `seed + epoch` and the row: the same everywhere, which no random generator promises.
    """
    return sorted(range(rows), key=lambda row: hashlib.md5(f"{seed + epoch}:{row}".encode()).digest() if epoch else b"")


def optimizer_steps(samples: int, epochs: float, batch: int, accumulation: int) -> int:
    """Optimizer steps of a stage, counted as transformers' Trainer does; `batch` is that of all devices."""
    return math.ceil(max(math.ceil(math.ceil(samples / batch) / accumulation), 1) * epochs)
