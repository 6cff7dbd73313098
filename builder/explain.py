"""`builder explain`: why a reply is kept or dropped, rule by rule, rank by rank. Decides anew, stores no selection."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa

from builder.code_rules import CodeFile, as_sql, candidates, run_code, run_rules
from builder.compare import prepare
from builder.config import Recipe
from builder.find_reply import find_reply, rows_of
from builder.schema import MARGINS
from builder.selection_steps import Plan, rule_steps, selection_steps
from builder.sqlfile import Parameter, SqlFile
from builder.sqlrun import Step, run_steps
from builder.store import Run

_RULED: Final = ("teacher", "mixed")
"""Roles that rules judge; the selector ranks those of role teacher."""
_READ: Final = (
    "stg_responses", "stg_prompts", "stg_scores", "stg_features", "stg_verdicts", "stg_duplicates", "stg_contaminations"
)  # fmt: skip
"""Tables whose columns, named in a rule's header, say what the rule saw of one reply."""
_INPUT: Final = re.compile(r"(stg_\w+) \(([^)]*)\)")
_NO_NEWS: Final = frozenset(
    {"response_id", "prompt_id", "role", "decides", "reasoning", "answer", "messages", "text_hash"}
)


@dataclass(frozen=True)
class RuleVerdict:
    """One rule on one reply. `saw` are the columns that the rule's header names, `allows` its parameters in force."""

    rule_name: str
    is_broken: bool
    observed: float | None
    threshold: float | None
    saw: Mapping[str, Any]
    allows: Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A reply beside the explained one. `teacher_sentences` and `student_sentences` are counts above the margin;
    `rank` is None where the selector did not see it; `breaks` are rules, `stages` where it is kept."""

    response_id: str
    temperature: float
    completion_tokens: int | None
    verdict: str | None
    teacher_sentences: int | None
    student_sentences: int | None
    sentences: int | None
    mean_delta: float | None
    rank: int | None
    breaks: tuple[str, ...]
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """One stage on one reply: what it wants, and the positions at which it holds the reply, or its prompt or pairs."""

    stage: str
    kind: str
    where: str | None
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Explanation:
    """Everything that decides about a reply, by the recipe as given.

    `outcome` is one sentence. `reply` is its row of stg_responses, `prompt` that of stg_prompts; `prompt_verdicts`
    counts the teacher's replies to the prompt, the correct and the wrong ones; `score` and `verdict` are its row of
    stg_scores and the verdict that decides, empty where there is none; `rollouts` the rows of stg_rollouts that name
    it. `candidates` are the teacher's replies to its prompt at its temperature, best first; empty for other roles.
    `stored` says whether the latest select decided by the same settings: None before the first.
    """

    response_id: str
    outcome: str
    reply: Mapping[str, Any]
    prompt: Mapping[str, Any]
    prompt_verdicts: Mapping[str, int]
    score: Mapping[str, Any]
    verdict: Mapping[str, Any]
    rules: tuple[RuleVerdict, ...]
    candidates: tuple[Candidate, ...]
    places: tuple[Place, ...]
    rollouts: tuple[Mapping[str, Any], ...]
    selector: str
    order: str
    keep: int
    margin: float
    selection_id: str
    stored: bool | None
    warnings: tuple[str, ...]


def explain(
    run: Run, recipe: Recipe, response_id: str, *, recipe_dir: Path | None = None, allow_code: bool = False
) -> Explanation:
    """Decide about one reply by the recipe as given. `response_id` may be the beginning of one id.

    Raises UsageError for an unknown or ambiguous id, and whatever `select` raises for a recipe's SQL.
    """
    plan = prepare(run, recipe, recipe_dir, allow_code=allow_code)
    identity = find_reply(run, response_id)
    ready, given = _in_sql(run, recipe, plan)
    steps = [replace(step, fetch=False) for step in selection_steps(ready, recipe)]
    wanted = [Step(name, sql, f"wanted_{name}", fetch=True) for name, sql in _WANTED.items()]
    found = run_steps(run.database, [*steps, *wanted], {**plan.variables, "explained": identity}, given=given)
    rows = {name: found[f"wanted_{name}"].to_pylist() for name in _WANTED}
    margin = float(plan.variables.get("teacher_margin", 0.1))
    beside = tuple(_candidate(row, margin) for row in rows["candidates"])
    row = rows["stg_responses"][0]
    places = _places(plan, rows["stages"], row)
    rules = tuple(_ruled(rule, found, plan) for rule in plan.rules) if row["role"] in _RULED else ()
    ids = {stored for (stored,) in rows_of(run, "select distinct selection_id from stg_selection")}
    return Explanation(
        response_id=identity,
        outcome=_outcome(row, rules, beside, places, recipe, plan),
        reply=row,
        prompt=rows["stg_prompts"][0] if rows["stg_prompts"] else {},
        prompt_verdicts=rows["prompt_verdicts"][0],
        score=rows["stg_scores"][0] if rows["stg_scores"] else {},
        verdict=rows["stg_verdicts"][0] if rows["stg_verdicts"] else {},
        rules=rules,
        candidates=beside,
        places=places,
        rollouts=tuple(rows["rollouts"]),
        selector=plan.selector.name,
        order=recipe.selection.order,
        keep=recipe.selection.keep,
        margin=margin,
        selection_id=plan.selection_id,
        stored=ids == {plan.selection_id} if ids else None,
        warnings=plan.warnings,
    )


def _in_sql(run: Run, recipe: Recipe, plan: Plan) -> tuple[Plan, dict[str, pa.Table]]:
    """The plan with the rows that its Python files return in their place, as `builder.selection.decide` has it."""
    rules, given = run_rules(plan.rules, run, recipe)
    ready, selector = replace(plan, rules=rules), plan.selector
    if isinstance(selector, CodeFile):
        steps = [replace(step, fetch=step.into == "to_rank") for step in rule_steps(ready, recipe)]
        ids = run_steps(run.database, steps, plan.variables, given=given)["to_rank"]["response_id"]
        survivors = pl.LazyFrame({"response_id": pl.Series(pl.from_arrow(ids))})
        rows = candidates(run, recipe).join(survivors, on="response_id", how="semi")
        given["code_ranks"] = run_code(selector, rows, recipe.selection.params)
        ready = replace(ready, selector=as_sql(selector, "code_ranks"))
    return ready, given


_ME: Final = "response_id = getvariable('explained')"
# By name: what the job brings back about one reply, read from what it has just decided.
_WANTED: Final = {
    **{name: f"select * from {name} where {_ME}" for name in ("stg_responses", "stg_scores", "stg_features")},
    "stg_verdicts": f"select * from stg_verdicts where {_ME} and decides",
    "stg_prompts": f"select * from stg_prompts semi join (from stg_responses where {_ME}) using (prompt_id)",
    "stg_duplicates": f"""
        select * from stg_duplicates where {_ME} and earlier_id is not null order by jaccard desc, earlier_id limit 1
    """,
    "stg_contaminations": f"""
        select * from stg_contaminations semi join (from stg_responses where {_ME}) using (prompt_id)
        where benchmark is not null
        order by shared_words desc, benchmark, benchmark_row limit 1
    """,
    "prompt_verdicts": f"""
        select count(*) as replies, count(*) filter (where verdict = 'correct') as correct,
            count(*) filter (where verdict = 'wrong') as wrong
        from stg_responses as r
        semi join (from stg_responses where {_ME}) as me on me.prompt_id = r.prompt_id
        left join stg_verdicts as v on v.response_id = r.response_id and v.decides
        where r.role = 'teacher'
    """,
    "rejections": f"select * from stg_rejections where {_ME}",
    "rollouts": "select * from stg_rollouts where getvariable('explained') in (response_id, continuation_id)",
    "stages": f"""
        select selection_rows.* from selection_rows, (from stg_responses where {_ME}) as me
        where grain_id in (me.response_id, me.prompt_id)
            or starts_with(grain_id, me.response_id || ':') or ends_with(grain_id, ':' || me.response_id)
        order by stage, position
    """,
    "candidates": f"""
        select
            r.response_id, r.temperature, r.completion_tokens, v.verdict, s.teacher_counts, s.student_counts,
            s.mean_delta, s.sentence_count - s.short_sentences as sentences, ranked.rank,
            p.p_teacher, p.p_student, p.teacher_tokens, p.student_tokens,
            (select list(rule_name order by rule_name) from stg_rejections as b where b.response_id = r.response_id)
                as breaks,
            (select list(stage order by stage) from selection_rows as k where k.grain_id = r.response_id) as stages
        from stg_responses as r
        join stg_responses as me on me.prompt_id = r.prompt_id and me.temperature = r.temperature
        left join stg_verdicts as v on v.response_id = r.response_id and v.decides
        left join stg_scores as s on s.response_id = r.response_id and s.status = 'ok'
        left join stg_sentences as p on p.response_id = s.response_id
        left join ranked on ranked.response_id = r.response_id
        where me.{_ME} and me.role = 'teacher' and r.role = 'teacher'
        order by ranked.rank nulls last, r.response_id
    """,
}


def _candidate(row: Mapping[str, Any], margin: float) -> Candidate:
    teacher = student = None
    if row["teacher_counts"]:
        slots = [place for place, value in enumerate(MARGINS) if abs(value - margin) < 1e-6]
        if slots:
            teacher, student = row["teacher_counts"][slots[0]], row["student_counts"][slots[0]]
        elif row["p_teacher"] is not None:
            lists = (row[name] for name in ("p_teacher", "p_student", "teacher_tokens", "student_tokens"))
            deltas = [t - s for t, s, *tokens in zip(*lists, strict=True) if min(tokens) >= 3]
            teacher, student = (sum(sign * delta > margin for delta in deltas) for sign in (1, -1))
    own = {name: row[name] for name in Candidate.__dataclass_fields__ if name in row}
    return Candidate(
        **own | {name: tuple(row[name] or ()) for name in ("breaks", "stages")},
        teacher_sentences=teacher,
        student_sentences=student,
    )


def _ruled(rule: SqlFile, found: Mapping[str, pa.Table], plan: Plan) -> RuleVerdict:
    rejections = found["wanted_rejections"].to_pylist()
    broken = next((row for row in rejections if row["rule_name"] == rule.name), None)
    saw: dict[str, Any] = {}
    for table, said in _INPUT.findall(" ".join(rule.header.get("Inputs", []))):
        if table in _READ:
            seen = found[f"wanted_{table}"]
            row = (seen.to_pylist() or [{}])[0]
            named = [name for name in re.findall(r"\w+", said) if name in seen.column_names and name not in _NO_NEWS]
            saw |= {name: row.get(name) for name in named}
    return RuleVerdict(
        rule_name=rule.name,
        is_broken=broken is not None,
        observed=broken["observed"] if broken else None,
        threshold=broken["threshold"] if broken else None,
        saw=saw,
        allows={one.name: plan.variables.get(one.name, _default(one)) for one in rule.parameters},
    )


def _default(parameter: Parameter) -> Any:
    text = parameter.default
    return text if text is None or parameter.type in ("VARCHAR", "TEXT") else json.loads(text.lower())


def _places(plan: Plan, held: list[dict[str, Any]], row: Mapping[str, Any]) -> tuple[Place, ...]:
    found = []
    for name, stage in plan.stages.items():
        positions = tuple(one["position"] for one in held if one["stage"] == name)
        found.append(Place(name, stage.kind, stage.where, positions))
    return tuple(found)


def _outcome(
    row: Mapping[str, Any],
    rules: tuple[RuleVerdict, ...],
    candidates: tuple[Candidate, ...],
    places: tuple[Place, ...],
    recipe: Recipe,
    plan: Plan,
) -> str:
    """One sentence: kept where, or dropped by what."""
    kept = [f"{place.stage} at position {place.positions[0]:,}" for place in places
            if place.kind == "sft" and place.positions]  # fmt: skip
    broken = [rule.rule_name for rule in rules if rule.is_broken]
    me = next((one for one in candidates if one.response_id == row["response_id"]), None)
    if kept:
        ranked = f", rank {me.rank} of {_ranked(candidates)}" if me is not None and me.rank is not None else ""
        return f"kept: in stage {' and in stage '.join(kept)}{ranked}"
    if broken:
        return f"dropped: breaks {', '.join(broken)}"
    if row["role"] == "mixed":
        return "dropped: breaks no rule, but the mixed-policy stage does not take it"
    if me is None:
        return f"not judged: replies of role {row['role']} are never selected"
    return f"dropped: {_outranked(me, candidates, recipe, plan)}"


def _outranked(me: Candidate, candidates: tuple[Candidate, ...], recipe: Recipe, plan: Plan) -> str:
    if me.rank is None:
        return f"breaks no rule, but selector {plan.selector.name} gives it no rank"
    if me.rank > recipe.selection.keep:
        return (
            f"outranked, rank {me.rank} of {_ranked(candidates)} by {plan.selector.name}; "
            f"the best {recipe.selection.keep} of a prompt and temperature are kept"
        )
    return f"rank {me.rank} by {plan.selector.name}, but no stage takes it"


def _ranked(candidates: tuple[Candidate, ...]) -> int:
    return sum(one.rank is not None for one in candidates)
