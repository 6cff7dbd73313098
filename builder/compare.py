"""`builder compare`: two selections of one run side by side. Both are decided anew or read; neither is stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from builder.compare_sql import (
    DOMAINS,
    EXAMPLES,
    MISSING,
    PROMPTS,
    REASONS,
    REPLIES,
    ROWS,
    RULES,
    SHIFT,
    SIDE,
    STAGES,
)
from builder.config import Recipe
from builder.console import Progress
from builder.decision import decide, plan_selection, prepare
from builder.errors import UsageError
from builder.recipe import find_recipe, load_recipe
from builder.report_numbers import events
from builder.schema import MARGINS
from builder.stages import is_mixed
from builder.staging import build_staging, staging_variables
from builder.store import Run


@dataclass(frozen=True)
class Side:
    """One selection: its rows as the table of the run has them, and the rules that replies break: `rule_name` and
    `key`, which is reply (as in reply_numbers now) or response_id. `rules` in order of the recipe, or in order of their
    names where only the tables are left of it."""

    label: str
    selection_id: str | None
    rules: tuple[str, ...]
    keep: int
    rejections: pa.Table
    key: str
    selection: pa.Table


@dataclass(frozen=True)
class Comparison:
    """How two selections, a and b, differ. Tokens are completion tokens; shares and rates are 0 … 1.

    `rules`: rule_name, and breaks, breaks_alone, tokens of teacher replies for each side (None: the side has no such
    rule). `stages`: stage, kind, rows of each side, rows in both. `rows`: replies in stages of kind sft: in both, only
    in one. `prompts`: those with the same replies on both sides, with others, or with some on one side only. `shifts`:
    for each of a, b, only_a, only_b: rows, tokens, mean and median tokens, pass_rate (mean over rows of the share of
    correct among the correct and wrong replies of the teacher to the row's prompt), teacher_sentences (mean, at
    `margin`), mean_delta (mean over scored rows). `domains`: domain and rows of each side. `reasons`: why rows of one
    side are not in the other, with counts. `examples`: replies only in one, by md5 of their id, with the reason.
    """

    label_a: str
    label_b: str
    selection_a: str | None
    selection_b: str | None
    margin: float
    rules: tuple[Mapping[str, Any], ...]
    stages: tuple[Mapping[str, Any], ...]
    rows: Mapping[str, int]
    prompts: Mapping[str, int]
    shifts: Mapping[str, Mapping[str, Any]]
    domains: tuple[Mapping[str, Any], ...]
    reasons: tuple[Mapping[str, Any], ...]
    examples: tuple[Mapping[str, Any], ...]


def other_recipe(
    path: Path, overrides: Sequence[str], against: str | None, changes: Sequence[str]
) -> tuple[Recipe, Path, str] | None:
    """The recipe at `path`, its overrides and `changes` over it; or the recipe `against`, only `changes` over it.

    With its folder and what to call it; None where neither is given.
    """
    what = f" with {', '.join(changes)}" if changes else ""
    if against is not None:
        other = find_recipe(against)
        return load_recipe(other, list(changes)), other.parent, f"{against}{what}"
    if not changes:
        return None
    recipe = load_recipe(path, [*overrides, *changes])
    return recipe, path.parent, f"{recipe.name}{what}"


def evaluate(
    run: Run,
    recipe: Recipe,
    recipe_dir: Path | None,
    label: str,
    *,
    allow_code: bool = False,
    progress: Progress = lambda *_: None,
) -> Side:
    """What `select` would store, decided and brought back. The tables stay as they are; run.duckdb is brought up to
    date for this recipe's student. Raises what select raises."""
    plan = plan_selection(recipe, recipe_dir, mixed=is_mixed(run, recipe))
    prepare(run, recipe, plan, allow_code=allow_code, progress=progress)
    decided = decide(run, recipe, plan, allow_code=allow_code, counts=False, progress=progress)
    columns = ["rule_name", "reply"]
    rejected = [*(pq.ParquetFile(part).read(columns) for part in decided.known.values()), *decided.fresh.values()]
    schema = pa.schema([run.schema("rejections").field(name) for name in columns])
    broken = pa.concat_tables([schema.empty_table(), *(rows.select(columns).cast(schema) for rows in rejected)])
    names = tuple(rule.name for rule in plan.rules)
    rows = decided.tables["selection_rows"]
    return Side(label, plan.selection_id, names, recipe.selection.keep, broken, "reply", rows)


def stored(run: Run, recipe: Recipe) -> Side:
    """What the latest select stored. Raises UsageError before the first."""
    selection = run.read("selection")
    if not selection.height:
        raise UsageError(
            f"{run.root} holds no selection to compare with. Run builder select first, or say what to compare: "
            "--against another recipe, or --with key=value."
        )
    identity = selection["selection_id"][0]
    broken = run.read("rejections", ["rule_name", "response_id"])  # replies may have come since, and other numbers
    made = [event for event in events(run) if event["step"] == "select" and event["selection_id"] == identity]
    rules = [row["rule_name"] for row in made[-1]["funnel"]] if made else sorted(set(broken["rule_name"]))
    return Side("the latest select", identity, tuple(rules), recipe.selection.keep, broken.to_arrow(), "response_id",
                selection.to_arrow())  # fmt: skip


def compare_recipes(
    run: Run,
    recipe: Recipe,
    recipe_dir: Path,
    other: tuple[Recipe, Path, str] | None,
    sample: int = 3,
    *,
    allow_code: bool = False,
    progress: Progress = lambda *_: None,
) -> Comparison:
    """`recipe` against `other`: a recipe, the folder of its own SQL, and what to call it.

    Without `other`, the stored selection against what the recipe decides now. Raises as `evaluate` and `stored`.
    """
    if other is None:
        a = stored(run, recipe)
        b = evaluate(run, recipe, recipe_dir, f"{recipe.name} as it is now", allow_code=allow_code, progress=progress)
        return compare(run, a, b, recipe, sample)
    try:
        b = evaluate(run, *other, allow_code=allow_code, progress=progress)
    finally:
        # the other may have another student, whose scores must not stay behind in the database
        if run.database.is_file():
            build_staging(run, staging_variables(recipe))
    a = evaluate(run, recipe, recipe_dir, recipe.name, allow_code=allow_code, progress=progress)
    progress("compare", 0, None)
    return compare(run, a, b, recipe, sample)


def compare(run: Run, a: Side, b: Side, recipe: Recipe, sample: int) -> Comparison:
    """Two selections by the tables of run.duckdb; divergence is that from `recipe`'s student, at its margin."""
    given = recipe.selection.params.get("teacher_margin", 0.1)
    slot = next((place for place, value in enumerate(MARGINS) if value == given), 1)
    with duckdb.connect(str(run.database), read_only=True) as connection:
        for name, side in (("a", a), ("b", b)):
            connection.register(f"selection_{name}", side.selection)
            connection.register(f"rejections_{name}", side.rejections)
            connection.execute(SIDE.format(side=name, key=side.key))
        connection.execute(REPLIES.format(slot=slot + 1))

        def ask(sql: str) -> list[dict[str, Any]]:
            answer = connection.sql(sql)
            return [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]

        connection.execute(MISSING.format(held="a", other="b", keep=b.keep))
        connection.execute(MISSING.format(held="b", other="a", keep=a.keep))
        return Comparison(
            label_a=a.label,
            label_b=b.label,
            selection_a=a.selection_id,
            selection_b=b.selection_id,
            margin=MARGINS[slot],
            rules=_rules(a, b, ask(RULES)),
            stages=tuple(ask(STAGES)),
            rows=ask(ROWS)[0],
            prompts=ask(PROMPTS)[0],
            shifts={name: ask(f"{SHIFT} where {where}")[0] for name, where in _GROUPS.items()},
            domains=tuple(ask(DOMAINS)),
            reasons=tuple(ask(REASONS)),
            examples=tuple(ask(EXAMPLES.format(sample=sample))),
        )


def _rules(a: Side, b: Side, counted: list[dict[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    found = {(row["side"], row["rule_name"]): row for row in counted}
    rows = []
    for rule in dict.fromkeys([*a.rules, *b.rules]):
        row: dict[str, Any] = {"rule_name": rule}
        for name, side in (("a", a), ("b", b)):
            numbers = found.get((name, rule), {})
            for column in ("breaks", "breaks_alone", "tokens"):
                row[f"{column}_{name}"] = numbers.get(column, 0) if rule in side.rules else None
        rows.append(row)
    return tuple(rows)


_GROUPS: Final = {"a": "in_a", "b": "in_b", "only_a": "in_a and not in_b", "only_b": "in_b and not in_a"}
