"""A selection as SQL steps of one job: rules, survivors, ranks, stages, and the numbers of the funnel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from builder.config import Recipe, Stage
from builder.rules import SqlFile, Value, catalogue, load_sql
from builder.sqlrun import Step, mix_step, rule_step, selector_step

_REPORTS: Final = ("funnel", "spread")
_STAGE_COLUMNS: Final = (("grain_id", "varchar"), ("rank", "integer"), ("position", "integer"))
# By kind: the rows that a stage picks from, their key, and the selector's rank where there is one.
_GRAINS: Final = {
    "sft": ("kept_rows", "response_id", "rank"),
    "grpo": ("prompts_with_gold", "prompt_id", "null"),
    "reward": ("stg_pairs", "pair_id", "null"),
}


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
        Step("totals", _TOTALS, "totals", fetch=True),
        # as the database will have it, for reports run on what was decided just now
        Step("selection for reports", "select * from selection_rows", "stg_selection"),
        *[Step(name, load_sql("reports", catalogue("reports")[name]).text, name, fetch=True) for name in _REPORTS],
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


_TOTALS: Final = """
select
    (select count(*) from teacher) as replies,
    (select count(*) from unbroken) as survivors,
    (select count(*) from kept) as kept,
    (select count(*) from ranked) as ranked,
    (select count(*) from survivors) as to_rank,
    * from
    (select avg(completion_tokens) as mean_tokens_kept, median(completion_tokens) as median_tokens_kept
        from teacher semi join kept using (response_id)),
    (select avg(completion_tokens) as mean_tokens_dropped, median(completion_tokens) as median_tokens_dropped
        from teacher anti join kept using (response_id)),
    (select avg(completion_tokens) as mean_tokens_outranked, median(completion_tokens) as median_tokens_outranked
        from unbroken anti join kept using (response_id))
"""


def _quoted(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
