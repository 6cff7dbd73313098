"""Replies to selection: rules drop, the selector ranks, stages order. Every decision is SQL, arranged here."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from builder import rejections
from builder.config import Recipe
from builder.console import Progress
from builder.decision import decide, plan_selection, prepare
from builder.errors import TableError
from builder.preference_steps import PairCounts
from builder.quotas import DomainQuota, domain_quotas, shortfalls
from builder.rewrite_steps import RewriteCounts
from builder.selection_steps import Plan
from builder.sqlrun import Limits
from builder.stages import is_mixed, needs_replies
from builder.staging import build_staging, staging_variables
from builder.store import Run
from builder.thinking import Thinking, stages_thinking


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
    """What a select kept and why. Counts are teacher replies, or their rewrites where the recipe has section `rewrite`;
    lengths are completion tokens, means and medians.

    `survivors` break no rule; `kept` also rank within `keep`. `…_dropped` is over all that were not kept,
    `…_outranked` over survivors that only their rank dropped: against `…_kept` it tells a selector from "take the
    longest". A prompt counts once, at its best temperature: `prompts_with_spread` have candidates that differ in what
    `selector` ranks by, so it decided; where all tie (`prompts_tied`) the tie-break did; `prompts_single` have one
    candidate, `prompts_without` none. Spread and ties are None for a selector whose ranking column is not known: random
    and those of one's own. After a mix, `mixed_rows` continuations break no rule; `continuations` counts the others by
    rule (one that breaks two counts twice). `quotas` are the domains of stages with quotas, `thinking` the
    stages that leave out think blocks, `pairs` what a reward stage takes, `rewrites` what became of those.
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
    quotas: tuple[DomainQuota, ...] = ()
    thinking: tuple[Thinking, ...] = ()
    pairs: PairCounts | None = None
    rewrites: RewriteCounts | None = None
    mixed_rows: int | None = None
    continuations: Mapping[str, int] = field(default_factory=dict)


def select(
    run: Run,
    recipe: Recipe,
    *,
    recipe_dir: Path | None = None,
    limits: Limits | None = None,
    allow_code: bool = False,
    progress: Progress = lambda *_: None,
) -> SelectionResult:
    """Write tables `rejections` and `selection` by the recipe's rules, selector and stages.

    `recipe_dir` is the folder of the recipe's own files, of which those in Python run only with `allow_code`. Raises
    UsageError for unknown rules, selectors and parameters before any work, SqlError for a file that breaks its
    contract; then the tables stay as they were.
    """
    plan = plan_selection(recipe, recipe_dir, mixed=is_mixed(run, recipe))
    new_features = prepare(run, recipe, plan, allow_code=allow_code, progress=progress)
    decided = decide(run, recipe, plan, limits=limits, allow_code=allow_code, progress=progress)
    result = _result(plan, recipe, decided.tables, new_features)
    progress("write the selection", 0, None)
    if decided.fresh or set(decided.known.values()) != set(run.parts("rejections")):
        # a crash between the two tables leaves no selection rather than one beside the rejections of another
        run.replace("selection", run.schema("selection").empty_table())
        rejections.write(run, decided.keys, decided.known, decided.fresh)
    run.replace("selection", decided.tables["selection_rows"])
    build_staging(run, staging_variables(recipe))
    return result


def _result(plan: Plan, recipe: Recipe, found: Mapping[str, pa.Table], new_features: int) -> SelectionResult:
    totals = _totals(found["lengths"])
    if not totals["replies"] and not plan.ranks_rewrites and needs_replies(recipe):
        raise TableError("This run holds no teacher replies, so there is nothing to select. Run `builder generate`.")
    ranked = found["ranked_replies"]["replies"][0].as_py()
    to_rank = totals["survivors" if recipe.selection.order == "rules-first" else "replies"]
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
        if rule.breaks == totals["replies"] > 0:
            warnings.append(f"Rule {rule.rule_name} rejects every one of the {rule.breaks} replies.")
    idle = [rule.rule_name for rule in funnel if rule.breaks == 0]
    if idle and totals["replies"]:
        warnings.append(f"Nothing is rejected by {', '.join(idle)}.")
    if not totals["kept"] and needs_replies(recipe):
        warnings.append("Nothing is kept: no reply survives the rules and the selector.")
    if ranked < to_rank:
        warnings.append(
            f"Selector {plan.selector.name} leaves {to_rank - ranked} of {to_rank} survivors without a rank."
        )
    warnings += [f"Stage {stage.name} is empty." for stage in stages if not stage.rows]
    quotas = domain_quotas(found["quota_counts"].to_pylist()) if "quota_counts" in found else ()
    warnings += shortfalls(quotas)
    continued = found["continuations"].to_pylist() if "continuations" in found else []
    return SelectionResult(
        selection_id=plan.selection_id,
        selector=plan.selector.name,
        funnel=funnel,
        stages=stages,
        new_features=new_features,
        warnings=tuple(warnings),
        quotas=quotas,
        thinking=stages_thinking(plan.stages, found["think_counts"].to_pylist()) if "think_counts" in found else (),
        pairs=PairCounts(**found["pair_counts"].to_pylist()[0]) if "pair_counts" in found else None,
        rewrites=RewriteCounts(**found["rewrite_counts"].to_pylist()[0]) if "rewrite_counts" in found else None,
        mixed_rows=next((row["replies"] for row in continued if row["rule_name"] is None), 0) if continued else None,
        continuations={row["rule_name"]: row["replies"] for row in continued if row["rule_name"] is not None},
        prompts=spread["prompts"],
        prompts_without=spread["none"],
        prompts_single=spread["single"],
        prompts_tied=spread["tied"],
        prompts_with_spread=spread["spread"],
        **totals,
    )


def _totals(lengths: pa.Table) -> dict[str, Any]:
    """Counts of teacher replies, and mean and median of the lengths known, from how many there are of each length."""
    rows = [tuple(row.values()) for row in lengths.to_pylist()]
    totals: dict[str, Any] = {
        "replies": sum(replies for _, replies, _, _ in rows),
        "survivors": sum(replies - broken for _, replies, broken, _ in rows),
        "kept": sum(kept for _, _, _, kept in rows),
    }
    for name, counted in {
        "kept": [(tokens, kept) for tokens, _, _, kept in rows],
        "dropped": [(tokens, replies - kept) for tokens, replies, _, kept in rows],
        "outranked": [(tokens, replies - broken - kept) for tokens, replies, broken, kept in rows],
    }.items():
        known = [(tokens, times) for tokens, times in counted if tokens is not None]
        totals[f"mean_tokens_{name}"], totals[f"median_tokens_{name}"] = _mean_and_median(known)
    return totals


def _mean_and_median(counted: Sequence[tuple[int, int]]) -> tuple[float, float] | tuple[None, None]:
    """Of values that come so many times each, in ascending order; None of no value."""
    ends = list(accumulate(count for _, count in counted))
    if not ends or not ends[-1]:
        return None, None
    low, high = (counted[bisect_right(ends, place)][0] for place in ((ends[-1] - 1) // 2, ends[-1] // 2))
    return sum(value * count for value, count in counted) / ends[-1], (low + high) / 2
