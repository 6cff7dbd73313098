"""What a recipe's selection decides: its files found and checked, its tables brought up to date, its steps run.

Stores nothing. `builder.selection` stores what comes out, `builder.compare` and `builder.explain` show it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pyarrow as pa

from builder import rejections
from builder.code_rules import CodeFile, as_sql, candidates, refuse_code, run_code, run_rules
from builder.config import Recipe
from builder.console import Progress
from builder.errors import TableError, UsageError
from builder.evidence import check_evidence, update_evidence
from builder.features import update_features
from builder.identity import canonical_json, sha256_hex
from builder.quotas import as_variable, check_domains
from builder.rules import catalogue, check_parameters, find_sql, load_sql
from builder.selection_steps import Plan, rule_steps, selection_steps, table_of
from builder.sqlcheck import check_expression, check_order
from builder.sqlfile import SqlFile, Value
from builder.sqlrun import Limits, run_steps
from builder.stages import needs_replies, stages_with
from builder.staging import build_staging, is_staged, sources, staging_variables
from builder.store import Run
from builder.thinking import check_policies

MIX: Final = "mixed_policy"
QUOTAS: Final = "quotas"
PREFERENCE: Final = "preference_pairs"
_EVIDENCE: Final = ("stg_duplicates", "stg_contaminations")
_MANY: Final = 1000
"""Replies without features from which a misspelt column is looked for first: they take longer than looking."""


@dataclass(frozen=True)
class Ready:
    """A plan that SQL alone can run: in place of its Python files and of rules that need not run stand `given` tables.

    `keys` say what decides a rule's rows and `known` are the files that hold them already, by the rule's name; `there`
    the names of their tables in the job.
    """

    plan: Plan
    given: Mapping[str, pa.Table | Path]
    keys: Mapping[str, str]
    known: Mapping[str, Path]

    @property
    def there(self) -> set[str]:
        return {table_of(place) for place, rule in enumerate(self.plan.rules) if rule.name in self.known}


@dataclass(frozen=True)
class Decision:
    """What a plan decided: the tables that its steps fetch, by name; `keys` and rules `known` before as in `Ready`."""

    plan: Plan
    tables: Mapping[str, pa.Table]
    keys: Mapping[str, str]
    known: Mapping[str, Path]

    @property
    def fresh(self) -> dict[str, pa.Table]:
        """Rejections of the rules that ran, by the rule's name."""
        return {
            rule.name: self.tables[table_of(place)]
            for place, rule in enumerate(self.plan.rules)
            if rule.name not in self.known
        }


def prepare(
    run: Run,
    recipe: Recipe,
    plan: Plan,
    *,
    allow_code: bool = False,
    progress: Progress = lambda *_: None,
) -> int:
    """Bring up to date what the plan reads; the number of replies whose features were computed now.

    Raises UsageError for Python that is not allowed and for quotas of unknown domains, TableError for a run without
    replies or without the pairs or rewrites that stages are made of.
    """
    if not allow_code:
        refuse_code(plan.files)
    table, what = ("responses", "replies") if needs_replies(recipe) else ("prompts", "prompts")
    if not run.parts(table):
        raise TableError(f"{run.root} holds no {what}, so there is nothing to select from. Run builder generate.")
    check_domains(run, recipe)
    for name, stage in plan.stages.items():
        if stage.kind == "reward" and not run.read("pairs", ["prompt_id"]).height:
            raise TableError(
                f"Stage {name!r} is of kind reward, but this run has no preference pairs (table pairs). Run builder "
                "pairs, which asks the recipe's judge for them."
            )
    if plan.ranks_rewrites and not run.rows("rewrites"):
        raise TableError(
            f"Recipe {recipe.name!r} selects rewrites, but this run has none (table rewrites). Run builder rewrite, "
            "which asks the model of section `rewrite` for them; or say rewrite=null to select the replies themselves."
        )
    rejections.drop_foreign(run)
    staged = staging_variables(recipe)
    new_features, missing = 0, run.rows("responses") - run.rows("features")
    # looking for replies without features among millions is slow, and idle where no table changed and none is missing
    if missing or not is_staged(run, staged):
        if missing > _MANY:
            check_columns(recipe, plan)
        new_features = update_features(run, progress=progress)
    update_evidence(run, recipe, [file for file in plan.files if not isinstance(file, CodeFile)], progress)
    build_staging(run, staged, progress)
    return new_features


def decide(
    run: Run,
    recipe: Recipe,
    plan: Plan,
    *,
    limits: Limits | None = None,
    allow_code: bool = False,
    counts: bool = True,
    progress: Progress = lambda *_: None,
) -> Decision:
    """Run the plan on run.duckdb as it is, with the numbers of the funnel where `counts` asks for them."""
    if not allow_code:
        refuse_code(plan.files)
    ready = in_sql(run, recipe, plan, limits=limits, progress=progress)
    steps = selection_steps(ready.plan, recipe, ready.there, counts=counts)
    tables = run_steps(run.database, steps, plan.variables, limits=limits, given=ready.given, progress=progress)
    return Decision(plan, tables, ready.keys, ready.known)


def in_sql(
    run: Run, recipe: Recipe, plan: Plan, *, limits: Limits | None = None, progress: Progress = lambda *_: None
) -> Ready:
    """Run the plan's Python and find the rows of rules that need not run.

    Python rules run here, in this process; a Python selector after a job that finds the survivors.
    """
    if any(isinstance(rule, CodeFile) for rule in plan.rules):
        progress("rules in Python", 0, None)
    rules, given = run_rules(plan.rules, run, recipe)
    keys = rejections.made_from(plan, sources(run, staging_variables(recipe)))
    known = rejections.known(run, keys)
    tables = {table_of(place): known[rule.name] for place, rule in enumerate(rules) if rule.name in known}
    ready = Ready(replace(plan, rules=rules), {**given, **tables}, keys, known)
    if not isinstance(plan.selector, CodeFile):
        return ready
    steps = [replace(step, fetch=step.into == "survivors") for step in rule_steps(ready.plan, recipe, ready.there)]
    found = run_steps(run.database, steps, plan.variables, limits=limits, given=ready.given, progress=progress)
    import polars as pl  # here, because SQL does without

    survivors = pl.LazyFrame({"response_id": pl.Series(pl.from_arrow(found["survivors"]["response_id"]))})
    to_rank = candidates(run, recipe).join(survivors, on="response_id", how="semi")
    progress(f"selector {plan.selector.name}", 0, None)
    ranks = run_code(plan.selector, to_rank, recipe.selection.params)
    selector = as_sql(plan.selector, "code_ranks")
    return replace(ready, plan=replace(ready.plan, selector=selector), given={**ready.given, "code_ranks": ranks})


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
    quotas = as_variable(stages)
    quota_file = load_sql("mix", find_sql("mix", QUOTAS, recipe_dir)) if quotas else None
    policy, preference = recipe.mixed_policy, recipe.preference
    preference_file = load_sql("mix", find_sql("mix", PREFERENCE, recipe_dir)) if preference else None
    for name, stage in stages.items():
        if stage.where is not None:
            check_expression(stage.where, f"stages.{name}.where")
        if stage.order_by is not None:
            check_order(stage.order_by, f"stages.{name}.order_by")
    check_policies(stages)
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
        from builder.decontaminate import benchmarks_id  # with what it reads questions by

        decides["benchmarks"] = benchmarks_id(recipe.require_benchmarks())
    variables: dict[str, Value] = {
        "seed": recipe.generation.seed,
        "ranked_by": _ranked_by(selector),
        **selection.params,
    }
    if policies := {name: stage.think for name, stage in stages.items() if stage.think != "always"}:
        decides["think"] = policies
    if quota_file is not None:
        decides["quotas"] = {quota_file.name: quota_file.sha256, "rows": quotas}
        variables["quotas"] = quotas
    if mix is not None and policy is not None:
        decides["mix"] = {mix.name: mix.sha256, "off_policy_ratio": policy.off_policy_ratio}
        variables |= {"off_policy_ratio": policy.off_policy_ratio, "mixed_policy_stage": policy.stage}
    if preference is not None and preference_file is not None:
        taken = {"min_gap": preference.min_gap, "equal_lengths": preference.equal_lengths}
        decides["preference"] = {preference_file.name: preference_file.sha256, "stage": preference.stage, **taken}
        variables |= {**taken, "preference_stage": preference.stage}
    ranks_rewrites = recipe.rewrite is not None
    if ranks_rewrites:
        decides["ranks"] = "rewrites"
    identity = sha256_hex(canonical_json(decides))[:16]
    files = (mix, quota_file, preference_file)
    return Plan(identity, rules, selector, stages, variables, tuple(warnings), *files, ranks_rewrites)


def _ranked_by(selector: SqlFile) -> str:
    """What report `spread` calls the selector's ranking column; of a file of one's own nothing is known."""
    return selector.name if selector.path == catalogue("selectors").get(selector.name) else "a file of its own"
