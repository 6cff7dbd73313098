"""Which rows of a stage carry their think block: the recipe's policy as steps of SQL, in a selection and at release."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from builder.config import Recipe, Stage
from builder.sqlcheck import check_expression, quoted
from builder.sqlrun import Check, Step, run_steps
from builder.store import Run

_CONDITIONS: Final = {"always": "true", "never": "false"}


@dataclass(frozen=True)
class Thinking:
    """Replies with reasoning of one stage: those released `with_thoughts` and as `answer_only`. For `undecided` ones
    the condition is NULL, so they are among the latter."""

    stage: str
    policy: str
    with_thoughts: int
    answer_only: int
    undecided: int


def check_policies(stages: Mapping[str, Stage]) -> None:
    """Raise SqlError for a `think` that is neither always, never nor one SQL condition."""
    for name, stage in _with_policy(stages):
        if stage.think not in _CONDITIONS:
            check_expression(stage.think, f"stages.{name}.think")


def think_steps(stages: Mapping[str, Stage], rows: str) -> list[Step]:
    """Table `thinking`: stage, response_id, and whether it carries its thoughts (NULL: undecided), of replies that have
    some. `rows` is a table of stage and grain_id. Steps fail where an answer alone would be an empty row.
    """
    steps = [
        Step(
            f"stages.{name}.think",
            f"select {quoted(name)} as stage, response_id, answer, (\n{_CONDITIONS.get(stage.think, stage.think)}\n)"
            "::boolean as thinks\nfrom stg_candidates semi join "
            f"(select grain_id as response_id from {rows} where stage = {quoted(name)}) as taken using (response_id)\n"
            "where reasoning <> ''",
            f"thinking_{place}",
            checks=(Check(_EMPTY.format(table=f"thinking_{place}"), _NO_ANSWER),),
        )
        for place, (name, stage) in enumerate(_with_policy(stages))
    ]
    every = " union all ".join(f"from {step.into}" for step in steps)
    return [*steps, Step("thinking", every, "thinking")] if steps else []


def count_steps(stages: Mapping[str, Stage]) -> list[Step]:
    """The numbers of `Thinking`, from table `selection_rows`."""
    steps = think_steps(stages, "selection_rows")
    return [*steps, Step("rows with thoughts", _COUNTS, "think_counts", fetch=True)] if steps else []


def stages_thinking(stages: Mapping[str, Stage], found: Iterable[Mapping[str, Any]]) -> tuple[Thinking, ...]:
    """Rows of table `think_counts`, in training order; zeros for a stage whose replies have no reasoning."""
    rows = {row["stage"]: row for row in found}
    nothing = {"with_thoughts": 0, "answer_only": 0, "undecided": 0}
    return tuple(
        Thinking(**{"stage": name, "policy": stage.think, **rows.get(name, nothing)})
        for name, stage in _with_policy(stages)
    )


def answers_only(run: Run, recipe: Recipe) -> dict[str, list[str]]:
    """Ids of the selected replies whose release is their answer alone, by stage."""
    steps = think_steps(recipe.stages, "stg_selection")
    if not steps:
        return {}
    bare = Step("answers only", "select stage, response_id from thinking where thinks is not true", "bare", fetch=True)
    found: dict[str, list[str]] = {}
    for row in run_steps(run.database, [*steps, bare], {})["bare"].to_pylist():
        found.setdefault(row["stage"], []).append(row["response_id"])
    return found


def _with_policy(stages: Mapping[str, Stage]) -> list[tuple[str, Stage]]:
    return [(name, stage) for name, stage in stages.items() if stage.think != "always"]


_EMPTY: Final = (
    "select min(response_id), count(*) from {table} "
    "where thinks is not true and coalesce(answer, '') = '' having count(*) > 0"
)
_NO_ANSWER: Final = (
    "leaves nothing of {1} replies, such as {0}: they have thoughts and no answer. Add rule answer_missing to "
    "selection.rules, or keep their thoughts"
)
_COUNTS: Final = """
select
    stage,
    count(*) filter (thinks) as with_thoughts,
    count(*) filter (thinks is not true) as answer_only,
    count(*) filter (thinks is null) as undecided
from thinking
group by stage
"""
