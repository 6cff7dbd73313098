"""`builder explain`: why a reply is kept or dropped, rule by rule, rank by rank. Decides anew, stores no selection."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from builder.config import Recipe
from builder.console import Progress
from builder.decision import in_sql, plan_selection, prepare
from builder.explain_sql import MINE, RIVALS, WANTED
from builder.find_reply import find_reply, rows_of
from builder.resources import resource
from builder.rules import catalogue
from builder.schema import MARGINS
from builder.selection_sql import margin_slot
from builder.selection_steps import Plan, selection_steps
from builder.sqlcheck import parse_select, quoted, walk
from builder.sqlfile import Parameter, SqlFile
from builder.sqlrun import Step, run_steps
from builder.stages import is_mixed
from builder.store import Run

_RULED: Final = ("teacher", "mixed", "rewrite")
"""Roles that rules judge; the selector ranks those of role teacher, or their rewrites."""
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
    """One stage on one reply: what it wants, how many of its rows are the reply, its prompt or a pair of it, and at
    which positions: those of the latest select, none where that had other settings."""

    stage: str
    kind: str
    where: str | None
    rows: int
    positions: tuple[int, ...]

    @property
    def is_taken(self) -> bool:
        return self.rows > 0


@dataclass(frozen=True)
class Explanation:
    """Everything that decides about a reply, by the recipe as given.

    `outcome` is one sentence. `reply` is its row of stg_responses, `prompt` that of stg_prompts; `prompt_verdicts`
    counts the teacher's replies to the prompt, the correct and the wrong ones; `score` and `verdict` are its row of
    stg_scores and the verdict that decides, empty where there is none; `rollouts` the rows of stg_rollouts that name
    it, `rewrites` those of stg_rewrites. `candidates` are the teacher's replies to its prompt at its temperature, or
    their rewrites where those are selected, best first; empty for other roles. `stored` says whether the latest select
    decided by the same settings: None before the first.
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
    rewrites: tuple[Mapping[str, Any], ...]
    selector: str
    order: str
    keep: int
    margin: float
    selection_id: str
    stored: bool | None
    warnings: tuple[str, ...]


def explain(
    run: Run,
    recipe: Recipe,
    response_id: str,
    *,
    recipe_dir: Path | None = None,
    allow_code: bool = False,
    progress: Progress = lambda *_: None,
) -> Explanation:
    """Decide about one reply by the recipe as given. `response_id` may be the beginning of one id.

    Raises UsageError for an unknown or ambiguous id, and whatever `select` raises for a recipe's SQL.
    """
    plan = plan_selection(recipe, recipe_dir, mixed=is_mixed(run, recipe))
    prepare(run, recipe, plan, allow_code=allow_code, progress=progress)
    identity = find_reply(run, response_id)
    ready = in_sql(run, recipe, plan, progress=progress)
    steps = _steps(ready.plan, recipe, identity, ready.there)
    steps += [Step(name, sql, name) for name, sql in MINE.items()]
    steps += [Step(name, sql.format(me=quoted(identity)), f"wanted_{name}", fetch=True) for name, sql in WANTED.items()]
    found = run_steps(run.database, steps, plan.variables, given=ready.given, progress=progress)
    rows = {name: found[f"wanted_{name}"].to_pylist() for name in WANTED}
    margin = float(plan.variables.get("teacher_margin", 0.1))
    beside = tuple(_candidate(row, margin) for row in rows["candidates"])
    row = rows["stg_responses"][0]
    places = _places(run, plan, rows["stages"])
    rules = tuple(_ruled(rule, found, plan) for rule in plan.rules) if row["role"] in _RULED else ()
    ids = {stored for (stored,) in rows_of(run, "select distinct selection_id from stg_selection")}
    return Explanation(
        response_id=identity,
        outcome=_outcome(row, rules, beside, places, recipe, plan, rows["rewrites"]),
        reply=row,
        prompt=rows["stg_prompts"][0] if rows["stg_prompts"] else {},
        prompt_verdicts=rows["prompt_verdicts"][0],
        score=rows["stg_scores"][0] if rows["stg_scores"] else {},
        verdict=rows["stg_verdicts"][0] if rows["stg_verdicts"] else {},
        rules=rules,
        candidates=beside,
        places=places,
        rollouts=tuple(rows["rollouts"]),
        rewrites=tuple(rows["rewrites"]),
        selector=plan.selector.name,
        order=recipe.selection.order,
        keep=recipe.selection.keep,
        margin=margin,
        selection_id=plan.selection_id,
        stored=ids == {plan.selection_id} if ids else None,
        warnings=plan.warnings,
    )


def _steps(plan: Plan, recipe: Recipe, me: str, known: Collection[str]) -> list[Step]:
    """The steps of a selection less what `select` counts, and ranks only of the reply's rivals where they suffice."""
    is_local, needs_sentences = _is_local(plan), margin_slot(plan.variables) is None
    sentences = (
        f"select * from stg_sentences {'semi join rivals using (response_id)' if needs_sentences else 'limit 0'}"
    )
    steps = [Step("rivals", RIVALS.format(me=quoted(me)), "rivals"), Step("sentences", sentences, "my_sentences")]
    selected = selection_steps(plan, recipe, known, counts=False)
    steps = [*(step for step in selected if step.into == "reply_numbers"), *steps]  # who is ranked, before rivals are
    for step in (step for step in selected if step.into != "reply_numbers"):
        sql = step.sql
        if is_local and step.into in ("broken", "to_rank"):
            sql = f"select * from (\n{sql}\n) semi join rivals using (reply)"
        steps.append(replace(step, sql=sql, fetch=False))
        if is_local and step.into == "stg_scores_of_survivors":
            counted = resource("sql", "staging", "stg_sentences_of_survivors.sql").read_text(encoding="utf-8")
            mine = counted.replace("from stg_sentences as", "from my_sentences as")
            steps.append(Step("sentences of survivors", mine, "stg_sentences_of_survivors", view=True))
    return steps


def _is_local(plan: Plan) -> bool:
    """Whether its rivals alone decide about a reply: packaged selectors rank within a prompt and temperature, while one
    of one's own, a mix, quotas, pairs, or a stage with a query in its `where` may look at all replies."""
    wheres = [f"select\n{stage.where}" for stage in plan.stages.values() if stage.where is not None]
    looks_around = any(node.get("class") == "SUBQUERY" for sql in wheres for node in walk(parse_select(sql, "where")))
    alone = not any((plan.mix, plan.quotas, plan.preference, looks_around))
    return alone and plan.selector.path in catalogue("selectors").values()


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


def _places(run: Run, plan: Plan, held: list[dict[str, Any]]) -> tuple[Place, ...]:
    """Stages that take the reply, its prompt or pairs, at the positions that the latest select by this plan stored."""
    grains = ", ".join(quoted(row["grain_id"]) for row in held) or "null"
    sql = f"select stage, grain_id, position from stg_selection where selection_id = ? and grain_id in ({grains})"
    stored = {(stage, grain): position for stage, grain, position in rows_of(run, sql, plan.selection_id)}
    found = []
    for name, stage in plan.stages.items():
        keys = [(name, row["grain_id"]) for row in held if row["stage"] == name]
        positions = tuple(sorted(stored[key] for key in keys if key in stored))
        found.append(Place(name, stage.kind, stage.where, len(keys), positions))
    return tuple(found)


def _kept(places: tuple[Place, ...], ranked: str) -> list[str]:
    """Stages that take the reply, the last with its rank, then those that take it in pairs; in words."""
    taken = [place for place in places if place.kind == "sft" and place.is_taken]
    stages = [
        f"stage {place.stage}{f' at position {place.positions[0]:,}' if place.positions else ''}" for place in taken
    ]
    pairs = [
        f"{place.rows:,} {'pair' if place.rows == 1 else 'pairs'} of stage {place.stage}"
        for place in places
        if place.kind == "reward" and place.is_taken
    ]
    return [*stages[:-1], *(f"{last}{ranked}" for last in stages[-1:]), *pairs]


def _outcome(
    row: Mapping[str, Any],
    rules: tuple[RuleVerdict, ...],
    candidates: tuple[Candidate, ...],
    places: tuple[Place, ...],
    recipe: Recipe,
    plan: Plan,
    rewrites: list[dict[str, Any]],
) -> str:
    """One sentence: kept where, or dropped by what."""
    broken = [rule.rule_name for rule in rules if rule.is_broken]
    me = next((one for one in candidates if one.response_id == row["response_id"]), None)
    ranked = f", rank {me.rank} of {_ranked(candidates)}" if me is not None and me.rank is not None else ""
    if kept := _kept(places, ranked):
        return f"kept: in {' and in '.join(kept)}"
    if broken:
        return f"dropped: breaks {', '.join(broken)}"
    if row["role"] == "mixed":
        return "dropped: breaks no rule, but the mixed-policy stage does not take it"
    if me is None:
        return _not_ranked(row, plan, rewrites)
    return f"dropped: {_outranked(me, candidates, recipe, plan)}"


def _not_ranked(row: Mapping[str, Any], plan: Plan, rewrites: list[dict[str, Any]]) -> str:
    """A reply that breaks no rule and is not of those that the selector ranks."""
    if not plan.ranks_rewrites or row["role"] not in ("teacher", "rewrite"):
        return f"not judged: replies of role {row['role']} are never selected"
    if row["role"] == "rewrite":
        why = f"it is no rewrite ({rewrites[0]['outcome']})" if rewrites else "the latest builder rewrite took others"
        return f"dropped: {why}"
    if not rewrites:
        return "dropped: rewrites are selected, and this reply was not rewritten"
    ids = ", ".join(f"{one['response_id']} ({one['outcome']})" for one in rewrites)
    return f"rewritten, not selected itself: {ids}"


def _outranked(me: Candidate, candidates: tuple[Candidate, ...], recipe: Recipe, plan: Plan) -> str:
    if me.rank is None:
        return f"breaks no rule, but selector {plan.selector.name} gives it no rank"
    if me.rank > recipe.selection.keep:
        return (
            f"outranked, rank {me.rank} of {_ranked(candidates)} by {plan.selector.name}; "
            f"selection.keep is {recipe.selection.keep} for each prompt and temperature"
        )
    full = ": `where` leaves it out, or the quota of its domain is full" if plan.quotas is not None else ""
    return f"rank {me.rank} by {plan.selector.name}, but no stage takes it{full}"


def _ranked(candidates: tuple[Candidate, ...]) -> int:
    return sum(one.rank is not None for one in candidates)
