"""Replies to selection: rules drop, the selector ranks, stages order. Every decision is SQL, arranged here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import polars as pl
import pyarrow as pa

from builder import rejections
from builder.code_rules import CodeFile, as_sql, candidates, refuse_code, run_code, run_rules
from builder.config import Recipe
from builder.decontaminate import benchmarks_id
from builder.errors import TableError, UsageError
from builder.evidence import check_evidence, update_evidence
from builder.features import update_features
from builder.identity import canonical_json, sha256_hex
from builder.rules import catalogue, check_parameters, find_sql, load_sql
from builder.selection_steps import Plan, rule_steps, selection_steps, table_of
from builder.sqlcheck import check_expression, check_order
from builder.sqlfile import SqlFile, Value
from builder.sqlrun import Limits, run_steps
from builder.stages import is_mixed, stages_with
from builder.staging import build_staging, is_staged, sources, staging_variables
from builder.store import Run

MIX: Final = "mixed_policy"
_EVIDENCE: Final = ("stg_duplicates", "stg_contaminations")
_MANY: Final = 1000
"""Replies without features from which a misspelt column is looked for first: they take longer than looking."""


@dataclass(frozen=True)
class RuleFunnel:
    """What one rule breaks, what only it breaks, and the completion tokens of the replies that break it."""

    rule_name: str
    breaks: int
    breaks_alone: int
    tokens: int


@dataclass(frozen=True)
class StageResult:
    """Rows of one stage and their completion tokens; no tokens for kinds other than sft."""

    name: str
    kind: str
    rows: int
    tokens: int | None


@dataclass(frozen=True)
class SelectionResult:
    """What a select kept and why. Counts are teacher replies; lengths are completion tokens, means and medians.

    `survivors` break no rule; `kept` also rank within `keep`. `…_dropped` is over all that were not kept,
    `…_outranked` over survivors that only their rank dropped: against `…_kept` it tells a selector from "take the
    longest". A prompt counts once, at its best temperature: `prompts_with_spread` have candidates that differ in what
    `selector` ranks by, so it decided; where all tie (`prompts_tied`) the tie-break did; `prompts_single` have one
    candidate, `prompts_without` none. Spread and ties are None for a selector whose ranking column is not known: random
    and those of one's own. After a mix, `mixed_rows` continuations break no rule; `continuations` counts the others by
    rule (one that breaks two counts twice).
    """

    selection_id: str
    replies: int
    survivors: int
    kept: int
    funnel: tuple[RuleFunnel, ...]
    stages: tuple[StageResult, ...]
    mean_tokens_kept: float | None
    mean_tokens_dropped: float | None
    mean_tokens_outranked: float | None
    median_tokens_kept: float | None
    median_tokens_dropped: float | None
    median_tokens_outranked: float | None
    selector: str
    prompts: int
    prompts_without: int
    prompts_single: int
    prompts_tied: int | None
    prompts_with_spread: int | None
    new_features: int
    warnings: tuple[str, ...]
    mixed_rows: int | None = None
    continuations: Mapping[str, int] = field(default_factory=dict)


def select(
    run: Run,
    recipe: Recipe,
    *,
    recipe_dir: Path | None = None,
    limits: Limits | None = None,
    allow_code: bool = False,
) -> SelectionResult:
    """Write tables `rejections` and `selection` by the recipe's rules, selector and stages.

    `recipe_dir` is the folder of the recipe's own files, of which those in Python run only with `allow_code`. Raises
    UsageError for unknown rules, selectors and parameters before any work, SqlError for a file that breaks its
    contract; then the tables stay as they were.
    """
    plan = plan_selection(recipe, recipe_dir, mixed=is_mixed(run, recipe))
    if not allow_code:
        refuse_code(plan.files)
    for name, stage in plan.stages.items():
        if stage.kind == "reward" and not run.read("pairs", ["prompt_id"]).height:
            raise TableError(f"Stage {name!r} is of kind reward, but this run has no preference pairs (table pairs).")
    staged = staging_variables(recipe)
    new_features, missing = 0, run.rows("responses") - run.rows("features")
    # looking for replies without features among millions is slow, and idle where no table changed and none is missing
    if missing or not is_staged(run, staged):
        if missing > _MANY:
            check_columns(recipe, plan)
        new_features = update_features(run)
    update_evidence(run, recipe, [file for file in plan.files if not isinstance(file, CodeFile)])
    build_staging(run, staged)
    keys = rejections.made_from(plan, sources(run, staged))
    known = rejections.known(run, keys)
    found = decide(run, recipe, plan, limits=limits, allow_code=allow_code, known=known)
    result = _result(plan, found, new_features)
    fresh = {rule.name: found[table_of(place)] for place, rule in enumerate(plan.rules) if rule.name not in known}
    if fresh or set(known.values()) != set(run.parts("rejections")):
        # a crash between the two tables leaves no selection rather than one beside the rejections of another
        run.replace("selection", run.schema("selection").empty_table())
        rejections.write(run, keys, known, fresh)
    run.replace("selection", found["selection_rows"])
    build_staging(run, staged)
    return result


def check_columns(recipe: Recipe, plan: Plan) -> None:
    """Run the plan on a run without rows, which takes half a second and finds a misspelt column.

    Files in Python are left out, and rules that refuse to run before their evidence is there.
    """
    rules = tuple(
        rule
        for rule in plan.rules
        if not isinstance(rule, CodeFile) and not any(name in rule.text for name in _EVIDENCE)
    )
    selector = plan.selector
    if isinstance(selector, CodeFile):
        selector = load_sql("selectors", catalogue("selectors")["random"])
    with TemporaryDirectory() as folder:
        empty = Run(Path(folder))
        build_staging(empty, {})
        run_steps(
            empty.database, selection_steps(replace(plan, rules=rules, selector=selector), recipe), plan.variables
        )


def decide(
    run: Run,
    recipe: Recipe,
    plan: Plan,
    *,
    limits: Limits | None = None,
    allow_code: bool = False,
    known: Mapping[str, Path] | None = None,
) -> dict[str, pa.Table]:
    """Run the plan on run.duckdb as it is; the tables that its steps fetch, by name. Stores nothing.

    Python rules run first, in this process, and the job reads their rows; a Python selector runs between two jobs, of
    which the first finds the survivors. `known` are the files with the rows of rules that need not run, by the rule's
    name: then the rows of the other rules are fetched one by one, else all together.
    """
    if not allow_code:
        refuse_code(plan.files)
    rules, code = run_rules(plan.rules, run, recipe)
    files = known or {}
    rows = {table_of(place): files[rule.name] for place, rule in enumerate(rules) if rule.name in files}
    given: dict[str, pa.Table | Path] = {**code, **rows}
    there = None if known is None else rows.keys()
    selector = plan.selector
    ready = replace(plan, rules=rules)
    if isinstance(selector, CodeFile):
        steps = [replace(step, fetch=step.into == "to_rank") for step in rule_steps(ready, recipe, there)]
        ids = run_steps(run.database, steps, plan.variables, limits=limits, given=given)["to_rank"]["response_id"]
        survivors = pl.LazyFrame({"response_id": pl.Series(pl.from_arrow(ids))})
        to_rank = candidates(run, recipe).join(survivors, on="response_id", how="semi")
        given["code_ranks"] = run_code(selector, to_rank, recipe.selection.params)
        ready = replace(ready, selector=as_sql(selector, "code_ranks"))
    steps = selection_steps(ready, recipe, there)
    return run_steps(run.database, steps, plan.variables, limits=limits, given=given)


def plan_selection(recipe: Recipe, recipe_dir: Path | None = None, *, mixed: bool = False) -> Plan:
    """Find, read and check every file, parameter and expression of a recipe's selection; raises, runs nothing.

    `mixed` says that there are rows for the mixed-policy stage.
    """
    selection = recipe.selection
    rules = tuple(load_sql("rules", find_sql("rules", name, recipe_dir)) for name in selection.rules)
    names = [rule.name for rule in rules]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"selection.rules names {', '.join(twice)} twice; the file name is the rule's name.")
    selector = load_sql("selectors", find_sql("selectors", selection.selector, recipe_dir))
    check_evidence(recipe, [file for file in (*rules, selector) if not isinstance(file, CodeFile)])
    warnings = check_parameters([*rules, selector], selection.params)
    stages = stages_with(recipe, is_mixed=mixed)
    mix = load_sql("mix", find_sql("mix", MIX, recipe_dir)) if mixed else None
    policy = recipe.mixed_policy
    for name, stage in stages.items():
        if stage.where is not None:
            check_expression(stage.where, f"stages.{name}.where")
        if stage.order_by is not None:
            check_order(stage.order_by, f"stages.{name}.order_by")
    decides = {
        "rules": {rule.name: rule.sha256 for rule in rules},
        "params": selection.params,
        "selector": {selector.name: selector.sha256},
        "stages": [[name, stage.kind, stage.where, stage.order_by] for name, stage in stages.items()],
        "order": selection.order,
        "keep": selection.keep,
        "seed": recipe.generation.seed,
    }
    if recipe.decontamination is not None and any("stg_contaminations" in rule.text for rule in rules):
        decides["benchmarks"] = benchmarks_id(recipe.require_benchmarks())
    variables: dict[str, Value] = {
        "seed": recipe.generation.seed,
        "ranked_by": _ranked_by(selector),
        **selection.params,
    }
    if mix is not None and policy is not None:
        decides["mix"] = {mix.name: mix.sha256, "off_policy_ratio": policy.off_policy_ratio}
        variables |= {"off_policy_ratio": policy.off_policy_ratio, "mixed_policy_stage": policy.stage}
    identity = sha256_hex(canonical_json(decides))[:16]
    return Plan(identity, rules, selector, stages, variables, tuple(warnings), mix)


def _ranked_by(selector: SqlFile) -> str:
    """What report `spread` calls the selector's ranking column; of a file of one's own nothing is known."""
    return selector.name if selector.path == catalogue("selectors").get(selector.name) else "a file of its own"


def _result(plan: Plan, found: Mapping[str, pa.Table], new_features: int) -> SelectionResult:
    totals: dict[str, Any] = found["totals"].to_pylist()[0]
    if not totals["replies"]:
        raise TableError("This run holds no teacher replies, so there is nothing to select. Run `builder generate`.")
    ranked, to_rank = totals.pop("ranked"), totals.pop("to_rank")
    (spread,) = [row for row in found["spread"].to_pylist() if row["temperature"] is None]
    by_rule = {row.pop("rule"): row for row in found["funnel"].to_pylist()}
    nothing = {"breaks": 0, "breaks_alone": 0, "tokens": 0}
    funnel = tuple(RuleFunnel(rule.name, **by_rule.get(place, nothing)) for place, rule in enumerate(plan.rules))
    stages = tuple(
        StageResult(name, stage.kind, row["rows"], (row["tokens"] or 0) if stage.kind == "sft" else None)
        for (name, stage), row in zip(plan.stages.items(), found["stage_counts"].to_pylist(), strict=True)
    )
    warnings = list(plan.warnings)
    for rule in funnel:
        if rule.breaks == totals["replies"]:
            warnings.append(f"Rule {rule.rule_name} rejects every one of the {rule.breaks} replies.")
    idle = [rule.rule_name for rule in funnel if rule.breaks == 0]
    if idle:
        warnings.append(f"Nothing is rejected by {', '.join(idle)}.")
    if not totals["kept"]:
        warnings.append("Nothing is kept: no reply survives the rules and the selector.")
    if ranked < to_rank:
        warnings.append(
            f"Selector {plan.selector.name} leaves {to_rank - ranked} of {to_rank} survivors without a rank."
        )
    warnings += [f"Stage {stage.name} is empty." for stage in stages if not stage.rows]
    continued = found["continuations"].to_pylist() if "continuations" in found else []
    return SelectionResult(
        selection_id=plan.selection_id,
        selector=plan.selector.name,
        funnel=funnel,
        stages=stages,
        new_features=new_features,
        warnings=tuple(warnings),
        mixed_rows=next((row["replies"] for row in continued if row["rule_name"] is None), 0) if continued else None,
        continuations={row["rule_name"]: row["replies"] for row in continued if row["rule_name"] is not None},
        prompts=spread["prompts"],
        prompts_without=spread["none"],
        prompts_single=spread["single"],
        prompts_tied=spread["tied"],
        prompts_with_spread=spread["spread"],
        **totals,
    )
