"""Scores of the recipe's student, as a release shows and counts them."""

import polars as pl

from builder.config import Recipe
from builder.divergence import MIN_TOKENS
from builder.models import student_id
from builder.schema import MARGINS
from builder.store import Run

_MARGIN = 0.1


def teacher_sentences(run: Run, recipe: Recipe, chosen: pl.DataFrame) -> pl.LazyFrame:
    """Teacher sentences of the chosen replies at the recipe's margin: from the scores, or counted anew."""
    margin = float(recipe.selection.params.get("teacher_margin", _MARGIN))
    found = scores_of(run, recipe).filter(pl.col("status") == "ok")
    for index, known in enumerate(MARGINS):
        if abs(known - margin) < 1e-7:
            count = pl.col("teacher_counts").list.get(index, null_on_oob=True)
            return found.select("response_id", count.alias("teacher_sentences"))
    lists = ["p_teacher", "p_student", "teacher_tokens", "student_tokens"]
    delta = pl.col("p_teacher").cast(pl.Float64) - pl.col("p_student").cast(pl.Float64)
    counted = pl.min_horizontal("teacher_tokens", "student_tokens") >= MIN_TOKENS
    return (
        run.scan("sentences")
        .join(found.select("response_id", "student_id"), on=["response_id", "student_id"], how="semi")
        .join(chosen.lazy().select(response_id="grain_id"), on="response_id", how="semi")
        .select("response_id", *lists)
        .explode(lists)
        .group_by("response_id")
        .agg((counted & (delta > margin)).sum().cast(pl.Int32).alias("teacher_sentences"))
    )


def score_remarks(run: Run, recipe: Recipe) -> dict[str, int]:
    """What is unusual about scores that count, and of how many replies."""
    said = scores_of(run, recipe).filter((pl.col("status") == "ok") & pl.col("status_detail").is_not_null())
    return dict(said.group_by("status_detail").len().sort("status_detail").collect().iter_rows())


def unscored(run: Run, recipe: Recipe) -> tuple[int, int]:
    """Selected replies that the recipe's student never scored, not even by saying why not; and all selected ones."""
    chosen = run.scan("selection").filter(pl.col("kind") == "sft").select(response_id="grain_id").unique()
    left = chosen.join(scores_of(run, recipe), on="response_id", how="anti")
    return left.select(pl.len()).collect().item(), chosen.select(pl.len()).collect().item()


def scores_of(run: Run, recipe: Recipe) -> pl.LazyFrame:
    """Scores by the recipe's student; no rows where it names none."""
    identity = student_id(recipe.student) if recipe.student else ""
    return run.scan("scores").filter(pl.col("student_id") == identity)
