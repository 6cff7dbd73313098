"""Which training stages a run has: the recipe's, and the mixed-policy stage once there are rows for it."""

from typing import Final

from builder.config import Recipe, Stage
from builder.store import Run

DEFAULT_STAGE: Final = "train"


def stages_of(run: Run, recipe: Recipe) -> dict[str, Stage]:
    """Stages in training order; one named `train` with everything where the recipe names none.

    The mixed-policy stage comes last, unless `stages` gives it another place, and only after a mix.
    """
    return stages_with(recipe, is_mixed=is_mixed(run, recipe))


def stages_with(recipe: Recipe, *, is_mixed: bool) -> dict[str, Stage]:
    """Stages of a recipe in training order, with or without the mixed-policy stage."""
    stages = dict(recipe.stages) or {DEFAULT_STAGE: Stage()}
    if recipe.mixed_policy is not None:
        name = recipe.mixed_policy.stage
        if is_mixed:
            stages.setdefault(name, Stage())
        else:
            stages.pop(name, None)
    return stages


def is_mixed(run: Run, recipe: Recipe) -> bool:
    """Whether the latest mix of this run brought replies, and the recipe still asks for them."""
    if recipe.mixed_policy is None or not run.rows("rollouts"):
        return False
    import polars as pl  # here, because a run without a mix does without

    return bool(run.scan("rollouts").select(pl.col("continuation_id").is_not_null().any()).collect().item())


def needs_replies(recipe: Recipe) -> bool:
    """Whether some stage is made of replies; stages of kind grpo are made of prompts."""
    return any(stage.kind != "grpo" for stage in stages_with(recipe, is_mixed=False).values())
