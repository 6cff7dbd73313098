"""The teacher's replies that break no rule of a recipe, decided without storing a selection."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import polars as pl

from builder.config import Recipe
from builder.console import Progress
from builder.decision import in_sql, plan_selection, prepare
from builder.rules import catalogue, load_sql
from builder.selection_steps import rule_steps
from builder.sqlrun import Step, run_steps
from builder.store import Run

_WHOLE: Final = (
    "select prompt_id, response_id from reply_numbers anti join broken_by using (reply) where role = 'teacher' "
    "order by reply"
)


def whole_replies(
    run: Run, recipe: Recipe, recipe_dir: Path | None, progress: Progress = lambda *_: None, *, allow_code: bool
) -> pl.DataFrame:
    """prompt_id and response_id of the teacher's replies that break no rule of the recipe, in the order of the run.

    Raises as `builder.decision.prepare`.
    """
    bare = recipe.model_copy(update={"stages": {}, "preference": None, "rewrite": None})  # made of these
    any_selector = load_sql("selectors", catalogue("selectors")["random"])  # nothing is ranked
    plan = replace(plan_selection(bare, recipe_dir), selector=any_selector)
    prepare(run, bare, plan, allow_code=allow_code, progress=progress)
    ready = in_sql(run, bare, plan, progress=progress)
    steps = [replace(step, fetch=False) for step in rule_steps(ready.plan, bare, ready.there)]
    steps.append(Step("whole replies", _WHOLE, "whole_replies", fetch=True))
    found = run_steps(run.database, steps, plan.variables, given=ready.given, progress=progress)
    return pl.DataFrame(found["whole_replies"])
