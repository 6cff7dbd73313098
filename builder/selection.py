"""Replies to selection: rules drop, the selector ranks, stages order. Every decision is SQL, arranged here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from builder.config import Recipe, Stage
from builder.errors import TableError, UsageError
from builder.features import update_features
from builder.identity import canonical_json, sha256_hex
from builder.rules import SqlFile, Value, catalogue, check_parameters, find_sql, load_sql
from builder.schema import MARGINS
from builder.sqlcheck import check_expression, check_order
from builder.sqlrun import Limits, Step, mix_step, rule_step, run_steps, selector_step
from builder.stages import is_mixed, stages_with
from builder.staging import build_staging, staging_variables
from builder.store import Run

MIX: Final = "mixed_policy"
_STAGE_COLUMNS: Final = (("grain_id", "varchar"), ("rank", "integer"), ("position", "integer"))
# By kind: the rows that a stage picks from, their key, and the selector's rank where there is one.
_GRAINS: Final = {
    "sft": ("kept_rows", "response_id", "rank"),
    "grpo": ("prompts_with_gold", "prompt_id", "null"),
    "reward": ("stg_pairs", "pair_id", "null"),
}


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
    """What a select kept and why. Counts are teacher replies; mean lengths are completion tokens.

    `survivors` break no rule; `kept` also rank within `keep`. `mean_tokens_dropped` is over all that were not kept,
    `mean_tokens_outranked` over survivors that only their rank dropped: against `mean_tokens_kept` it tells a selector
    from "take the longest". `prompts_with_choice` have more than one survivor at some temperature,
    `prompts_with_spread` also different teacher-sentence counts among them. After a mix, `mixed_rows`
    continuations break no rule; `continuations` counts the others by rule (one that breaks two counts twice).
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
    prompts: int
    prompts_with_choice: int
    prompts_with_spread: int
    new_features: int
    warnings: tuple[str, ...]
    mixed_rows: int | None = None
    continuations: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A recipe's selection with its files read and checked; nothing has run yet."""

    selection_id: str
    rules: tuple[SqlFile, ...]
    selector: SqlFile
    stages: Mapping[str, Stage]
    variables: Mapping[str, Value]
    warnings: tuple[str, ...]
    mix: SqlFile | None = None

    @property
    def files(self) -> tuple[SqlFile, ...]:
        """Every file that decides rows."""
        return (*self.rules, self.selector, *filter(None, [self.mix]))


def select(
    run: Run, recipe: Recipe, *, recipe_dir: Path | None = None, limits: Limits | None = None
) -> SelectionResult:
    """Write tables `rejections` and `selection` by the recipe's rules, selector and stages.

    `recipe_dir` is the folder of the recipe's own SQL files. Raises UsageError for unknown rules, selectors and
    parameters before any work, SqlError for SQL that breaks its contract; then the tables stay as they were.
    """
    plan = plan_selection(recipe, recipe_dir, mixed=is_mixed(run, recipe))
    for name, stage in plan.stages.items():
        if stage.kind == "reward" and not run.read("pairs", ["prompt_id"]).height:
            raise TableError(f"Stage {name!r} is of kind reward, but this run has no preference pairs (table pairs).")
    new_features = update_features(run)
    staged = staging_variables(recipe)
    build_staging(run, staged)
    found = run_steps(run.database, selection_steps(plan, recipe), plan.variables, limits=limits)
    result = _result(plan, found, new_features)
    run.replace("rejections", found["stg_rejections"])
    run.replace("selection", found["selection_rows"])
    build_staging(run, staged)
    return result


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
    variables: dict[str, Value] = {"seed": recipe.generation.seed, **selection.params}
    if mix is not None and policy is not None:
        decides["mix"] = {mix.name: mix.sha256, "off_policy_ratio": policy.off_policy_ratio}
        variables |= {"off_policy_ratio": policy.off_policy_ratio, "mixed_policy_stage": policy.stage}
    identity = sha256_hex(canonical_json(decides))[:16]
    return Plan(identity, rules, selector, stages, variables, tuple(warnings), mix)


def selection_steps(plan: Plan, recipe: Recipe) -> list[Step]:
    """The whole selection as one job: rules, survivors, ranks, stages, and the numbers of the funnel."""
    keep, order = recipe.selection.keep, recipe.selection.order
    broken = [(rule, f"broken_{index}") for index, rule in enumerate(plan.rules)]
    rejected = " union all ".join(
        f"select response_id, {_quoted(rule.name)} as rule_name, observed, threshold from {name}"
        for rule, name in broken
    )
    rejections = f"({rejected}) as broken" if rejected else "stg_rejections where false"
    judged = "select response_id from stg_responses where role in ('teacher', 'mixed')"
    teacher = "select response_id, prompt_id, temperature, completion_tokens from stg_responses where role = 'teacher'"
    unbroken = "select * from teacher anti join (from stg_rejections) as broken using (response_id)"
    to_rank = "unbroken" if order == "rules-first" else "teacher"
    return [
        *[rule_step(rule, name) for rule, name in broken],
        Step("teacher replies", teacher, "teacher"),
        Step("replies that rules judge", judged, "judged", view=True),
        Step(
            "rejections",
            f"select * from {rejections}{' semi join judged using (response_id)' if rejected else ''} "
            "order by response_id, rule_name",
            "stg_rejections",
            fetch=True,
        ),
        Step("replies that break no rule", unbroken, "unbroken"),
        Step("survivors", f"select response_id, prompt_id, temperature from {to_rank}", "survivors"),
        selector_step(plan.selector, "ranked"),
        Step("kept", f"from ranked semi join unbroken using (response_id) where rank <= {keep}", "kept"),
        Step(
            "kept rows",
            "select c.*, kept.rank from stg_candidates as c join kept on kept.response_id = c.response_id",
            "kept_rows",
            view=True,
        ),
        Step("prompts with a gold", "select * from stg_prompts where gold is not null", "prompts_with_gold", view=True),
        *_stage_steps(plan, recipe),
        Step("totals", _totals(plan), "totals", fetch=True),
        Step("funnel", load_sql("reports", catalogue("reports")["funnel"]).text, "funnel", fetch=True),
    ]


def _stage_steps(plan: Plan, recipe: Recipe) -> list[Step]:
    """Rows of each stage, their union and their counts; the mixed-policy stage last, whatever its place in training."""
    seed = recipe.generation.seed
    mixed = recipe.mixed_policy.stage if plan.mix is not None and recipe.mixed_policy is not None else None
    steps: list[Step] = []
    parts: list[str] = []
    counts: list[str] = []
    for index, (name, stage) in sorted(enumerate(plan.stages.items()), key=lambda numbered: numbered[1][0] == mixed):
        rows, key, rank = ("mixed_rows", "response_id", "null") if name == mixed else _GRAINS[stage.kind]
        if name == mixed and plan.mix is not None:
            steps += _mix_steps(plan.mix, name, parts)
        order = f"md5({key} || ':' || {seed})" if stage.order_by is None else stage.order_by
        sql = (
            f"select {key} as grain_id, {rank} as rank,\n"
            f"row_number() over (order by\n{order}\n, {key}) - 1 as position\n"
            f"from {rows}\nwhere (\n{'true' if stage.where is None else stage.where}\n)"
        )
        steps.append(Step(f"stage {name}", sql, f"stage_{index}", _STAGE_COLUMNS))
        parts.append(
            f"select {_quoted(plan.selection_id)} as selection_id, {_quoted(name)} as stage, "
            f"{_quoted(stage.kind)} as kind, grain_id, rank, position, {index} as place from stage_{index}"
        )
        tokens = "sum(completion_tokens)" if stage.kind == "sft" else "null"
        counts.append(
            f"select {index} as place, count(*) as rows, {tokens}::bigint as tokens from stage_{index} "
            "left join stg_responses on response_id = grain_id"
        )
    union = " union all "
    return [
        *steps,
        Step(
            "selection",
            f"select * exclude (place) from ({union.join(parts)}) as picked order by place, position",
            "selection_rows",
            fetch=True,
        ),
        Step("stages", f"select * from ({union.join(counts)}) as counted order by place", "stage_counts", fetch=True),
    ]


def _mix_steps(mix: SqlFile, name: str, earlier: list[str]) -> list[Step]:
    """What the mix picks: it reads today's rows of the other stages under the name that the database has for them."""
    return [
        Step("selection before the mix", f"select * exclude (place) from ({' union all '.join(earlier)}) as picked",
             "stg_selection"),
        mix_step(mix, "mix_rows"),
        Step(
            "mixed rows",
            "select c.* from stg_candidates as c "
            f"semi join mix_rows on mix_rows.grain_id = c.response_id and mix_rows.stage = {_quoted(name)}",
            "mixed_rows",
            view=True,
        ),
        Step("continuations", _CONTINUATIONS, "continuations", fetch=True),
    ]  # fmt: skip


# Replies that go on from a rollout by the rule they break, a reply under each of its rules; null are those without.
_CONTINUATIONS: Final = """
select rule_name, count(*) as replies
from stg_rollouts as rollouts
left join stg_rejections as rejections on rejections.response_id = rollouts.continuation_id
where continuation_id is not null
group by all
order by rule_name
"""


def _totals(plan: Plan) -> str:
    """One row of counts; spread is measured at the recipe's teacher margin."""
    margin = plan.variables.get("teacher_margin", 0.1)
    slot = MARGINS.index(margin) + 1 if margin in MARGINS else 1
    return f"""
with
choice as (
    select prompt_id, temperature, count(*) > 1 as has_choice,
        coalesce(max(teacher_counts[{slot}]) > min(teacher_counts[{slot}]), false) as has_spread
    from unbroken left join stg_scores using (response_id) group by all
)
select
    (select count(*) from teacher) as replies,
    (select count(*) from unbroken) as survivors,
    (select count(*) from kept) as kept,
    (select count(*) from ranked) as ranked,
    (select count(*) from survivors) as to_rank,
    (select avg(completion_tokens) from teacher semi join kept using (response_id)) as mean_tokens_kept,
    (select avg(completion_tokens) from teacher anti join kept using (response_id)) as mean_tokens_dropped,
    (select avg(completion_tokens) from unbroken anti join kept using (response_id)) as mean_tokens_outranked,
    (select count(distinct prompt_id) from teacher) as prompts,
    (select count(distinct prompt_id) from choice where has_choice) as prompts_with_choice,
    (select count(distinct prompt_id) from choice where has_choice and has_spread) as prompts_with_spread
"""


def _result(plan: Plan, found: Mapping[str, pa.Table], new_features: int) -> SelectionResult:
    totals: dict[str, Any] = found["totals"].to_pylist()[0]
    if not totals["replies"]:
        raise TableError("This run holds no teacher replies, so there is nothing to select. Run `builder generate`.")
    ranked, to_rank = totals.pop("ranked"), totals.pop("to_rank")
    by_rule = {row["rule_name"]: row for row in found["funnel"].to_pylist() if row["domain"] is None}
    nothing = {"breaks": 0, "breaks_alone": 0, "tokens": 0}
    funnel = tuple(
        RuleFunnel(rule.name, **{name: by_rule.get(rule.name, nothing)[name] for name in nothing})
        for rule in plan.rules
    )
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
        funnel=funnel,
        stages=stages,
        new_features=new_features,
        warnings=tuple(warnings),
        mixed_rows=next((row["replies"] for row in continued if row["rule_name"] is None), 0) if continued else None,
        continuations={row["rule_name"]: row["replies"] for row in continued if row["rule_name"] is not None},
        **totals,
    )


def _quoted(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
