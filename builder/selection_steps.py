"""A selection as SQL steps of one job: rules, survivors, ranks, stages, and the numbers of the funnel."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from builder.config import Recipe, Stage
from builder.preference_steps import PREFERRED, preference_steps
from builder.quotas import quota_steps, rows_within
from builder.rewrite_steps import COUNT_STEP, IN_PLACE
from builder.rules import catalogue
from builder.selection_sql import (
    BROKEN_BY,
    FUNNEL,
    LAST,
    LENGTHS,
    NO_ROWS,
    SCORES,
    kept_rows,
    margin_slot,
    spread_step,
)
from builder.sqlcheck import quoted
from builder.sqlfile import SqlFile, Value
from builder.sqlrun import Step, mix_step, ranks_step, rows_step, rule_step, selector_step
from builder.thinking import count_steps

_STAGE_COLUMNS: Final = (
    ("grain_id", "varchar"), ("rank", "integer"), ("position", "integer"), ("tokens", "integer"),
)  # fmt: skip
# By kind: the rows that a stage picks from, their key, and the selector's rank where there is one.
_GRAINS: Final = {
    "sft": ("kept_rows", "response_id", "rank"),
    "grpo": ("stg_rated_prompts", "prompt_id", "null"),
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
    quotas: SqlFile | None = None
    preference: SqlFile | None = None
    ranks_rewrites: bool = False

    @property
    def files(self) -> tuple[SqlFile, ...]:
        """Every file that decides rows."""
        return (*self.rules, self.selector, *filter(None, [self.mix, self.quotas, self.preference]))


def selection_steps(plan: Plan, recipe: Recipe, known: Collection[str] = (), *, counts: bool = True) -> list[Step]:
    """The whole selection as one job: rules, survivors, ranks, stages, and the numbers of the funnel if `counts`.

    With `known` as for `rule_steps`.
    """
    steps = [*rule_steps(plan, recipe, known), *_rank_steps(plan, recipe), *_stage_steps(plan, recipe)]
    return [*steps, *_count_steps(plan)] if counts else steps


def rule_steps(plan: Plan, recipe: Recipe, known: Collection[str] = ()) -> list[Step]:
    """Rules and what survives them. Tables of small numbers first: they join five times as fast as ids do.

    Tables of rules (`table_of`) that are `known` are in the job already; every other rule is asked, and its table
    fetched with the columns of `stg_rejections`.
    """
    tables = {table_of(place): rule for place, rule in enumerate(plan.rules)}
    asked = {name: rule for name, rule in tables.items() if name not in known}
    rows = [
        f"select {place}::integer as rule, reply, observed, threshold from {name}" for place, name in enumerate(tables)
    ]
    names = f"[{', '.join(quoted(rule.name) for rule in plan.rules)}]" if plan.rules else "['']"
    rejections = (
        f"select replies.response_id, {names}[rule + 1] as rule_name, observed, threshold, reply "
        "from broken join reply_numbers as replies using (reply) order by reply, rule_name"
    )
    judged = "select response_id, {} as rule_name, observed, threshold, reply from asked_rules "
    judged += "where rule = {} and role in ('teacher', 'mixed', 'rewrite', 'original') order by reply"
    whole = "anti join broken_by using (reply) " if recipe.selection.order == "rules-first" else ""
    to_rank = f"select * exclude (role) from reply_numbers {whole}where role = 'teacher'"
    return [
        *([IN_PLACE] if plan.ranks_rewrites else []),
        *[rule_step(rule, name) for name, rule in asked.items()],
        rows_step(asked, "asked_rules"),
        *[
            Step(rule.label, judged.format(quoted(rule.name), place), name, fetch=True)
            for place, (name, rule) in enumerate(asked.items())
        ],
        Step("rows of all rules", " union all ".join(rows) or NO_ROWS, "broken"),
        Step("rules by reply", BROKEN_BY, "broken_by"),
        Step("rejections", rejections, "stg_rejections", view=True),
        Step("replies to rank", to_rank, "to_rank", view=True),
        Step("survivors", "select response_id, prompt_id, temperature from to_rank", "survivors", view=True),
        Step("scores of survivors", SCORES, "stg_scores_of_survivors", view=True),
    ]


def table_of(place: int) -> str:
    """Name, in a job, of the table with the rows of the plan's rule at this place."""
    return f"broken_{place}"


def _rank_steps(plan: Plan, recipe: Recipe) -> list[Step]:
    """The selector's ranks by reply, and the replies that they and the rules leave.

    A packaged selector is asked for numbers in place of ids, and counts sentences at margins off the grid only; at the
    others it is given none to read. Its rows are as it says, which tests show; those of any other are checked.
    """
    selector = plan.selector
    if selector.path in catalogue("selectors").values():
        text = selector.text.replace(LAST, "select ranked.reply_id as reply, ranked.rank from ranked;")
        if margin_slot(plan.variables) is not None:
            text = text.replace("stg_sentences", "no_sentences")
        columns = (("reply", "bigint"), ("rank", "integer"))
        ranks = [
            Step("no sentences", _NO_SENTENCES, "no_sentences_of_survivors"),
            Step(selector.label, text, "ranked", columns, is_file=True),
        ]
    else:
        ranks = [selector_step(selector, "ranked_ids"), ranks_step(selector, "ranked_ids", "to_rank", "ranked")]
    kept = (
        "select replies.reply, replies.response_id, replies.temperature, replies.completion_tokens, ranked.rank "
        "from ranked join reply_numbers as replies using (reply) anti join broken_by using (reply) "
        f"where ranked.rank <= {recipe.selection.keep}"
    )
    return [
        *ranks,
        Step("kept", kept, "kept"),
        Step("kept rows", kept_rows(plan.stages.values()), "kept_rows", view=True),
    ]


def _count_steps(plan: Plan) -> list[Step]:
    """The numbers that `builder select` prints."""
    return [
        Step("ranked replies", "select count(*) as replies from ranked", "ranked_replies", fetch=True),
        Step("lengths", LENGTHS, "lengths", fetch=True),
        Step("funnel", FUNNEL, "funnel", fetch=True),
        spread_step(plan.variables),
        *count_steps(plan.stages),
        *([COUNT_STEP] if plan.ranks_rewrites else []),
    ]


def _stage_steps(plan: Plan, recipe: Recipe) -> list[Step]:
    """Rows of each stage, their union and their counts; the mixed-policy stage last, whatever its place in training."""
    seed = recipe.generation.seed
    mixed = recipe.mixed_policy.stage if plan.mix is not None and recipe.mixed_policy is not None else None
    steps = quota_steps(plan.quotas, plan.stages) if plan.quotas is not None else []
    parts: list[str] = []
    counts: list[str] = []
    for index, (name, stage) in sorted(enumerate(plan.stages.items()), key=lambda numbered: numbered[1][0] == mixed):
        rows, key, rank = ("mixed_rows", "response_id", "null") if name == mixed else _GRAINS[stage.kind]
        if stage.quotas is not None:
            rows = rows_within(name)
        if plan.preference is not None and recipe.preference is not None and name == recipe.preference.stage:
            rows = PREFERRED
            steps += preference_steps(plan.preference, name, recipe.preference.min_gap)
        if name == mixed and plan.mix is not None:
            steps += _mix_steps(plan.mix, name, parts)
        order = f"md5({key} || ':' || {seed})" if stage.order_by is None else stage.order_by
        sql = (
            f"select {key} as grain_id, {rank} as rank,\n"
            f"row_number() over (order by\n{order}\n, {key}) - 1 as position,\n"
            f"{'completion_tokens' if stage.kind == 'sft' else 'null'} as tokens\n"
            f"from {rows}\nwhere (\n{'true' if stage.where is None else stage.where}\n)"
        )
        steps.append(Step(f"stage {name}", sql, f"stage_{index}", _STAGE_COLUMNS))
        parts.append(
            f"select {quoted(plan.selection_id)} as selection_id, {quoted(name)} as stage, "
            f"{quoted(stage.kind)} as kind, grain_id, rank, position, {index} as place from stage_{index}"
        )
        counts.append(f"select {index} as place, count(*) as rows, sum(tokens)::bigint as tokens from stage_{index}")
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
            f"semi join mix_rows on mix_rows.grain_id = c.response_id and mix_rows.stage = {quoted(name)}",
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

_NO_SENTENCES: Final = "select null::bigint as reply_id, null::double as delta where false"
