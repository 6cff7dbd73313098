"""Quotas of a stage as steps of a selection: what it may take, what of each domain it takes, and what was asked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from builder.config import Recipe, Stage
from builder.errors import UsageError
from builder.rules import did_you_mean
from builder.sqlcheck import quoted
from builder.sqlfile import SqlFile
from builder.sqlrun import Check, Step, mix_step
from builder.store import Run


@dataclass(frozen=True)
class DomainQuota:
    """One domain of a stage with quotas: `rows` of the `survivors` that the stage may take; no more than `asked`.

    Domains without a quota have `asked` 0; `domain` is None for prompts without one.
    """

    stage: str
    domain: str | None
    asked: int
    survivors: int
    rows: int


def as_variable(stages: Mapping[str, Stage]) -> str:
    """Parameter `quotas` of sql/mix/quotas.sql: JSON, rows by stage and domain; empty where no stage has quotas."""
    counts = {name: stage.quotas.counts() for name, stage in stages.items() if stage.quotas is not None}
    return json.dumps(counts, ensure_ascii=False) if counts else ""


def check_domains(run: Run, recipe: Recipe, *, may_come: bool = False) -> None:
    """Raise UsageError for a quota of a domain that no prompt has: a misspelt one would be short in silence.

    Known are the domains of the run's prompts and those that the recipe gives its sources; with `may_come` those of
    prompts not read yet are too, so nothing is refused where a source has its domains in a column.
    """
    if may_come and any(source.domain is None for source in recipe.prompts):
        return
    asked = {
        name: [domain for domain, weight in stage.quotas.weights.items() if weight]
        for name, stage in recipe.stages.items()
        if stage.quotas is not None
    }
    if not asked:
        return
    there = run.scan("prompts").select("domain").unique().collect()["domain"].drop_nulls()
    known = sorted({*there, *(source.domain for source in recipe.prompts if source.domain is not None)})
    for name, domains in asked.items():
        for domain in domains:
            if domain not in known:
                raise UsageError(
                    f"stages.{name}.quotas asks for rows of domain {domain!r}, which no prompt of this run has"
                    f"{did_you_mean(domain, known)} Domains: {', '.join(known) or 'none'}. Correct the name, bring in "
                    f"such prompts (`prompts`, builder import), or set stages.{name}.quotas.weights.{domain}=0."
                )


def quota_steps(file: SqlFile, stages: Mapping[str, Stage]) -> list[Step]:
    """Table `quota_rows`, what the quotas leave of each stage that has them, and the numbers of `DomainQuota`."""
    mine = {index: (name, stage) for index, (name, stage) in enumerate(stages.items()) if stage.quotas is not None}
    steps = [
        Step(
            f"stage {name}",
            f"select response_id as grain_id from kept_rows\nwhere (\n{stage.where or 'true'}\n)",
            f"before_quotas_{index}",
            (("grain_id", "varchar"),),
        )
        for index, (name, stage) in mine.items()
    ]
    rows = [
        f"select {quoted(name)} as stage, 'sft' as kind, grain_id from before_quotas_{index}"
        for index, (name, _) in mine.items()
    ]
    foreign = "from quota_rows anti join stg_selection using (grain_id, stage) order by all limit 1"
    picked = mix_step(file, "quota_rows")
    asked = ", ".join(
        f"({quoted(name)}, {quoted(domain)}, {place}, {rows})"
        for name, stage in mine.values()
        for place, (domain, rows) in enumerate(stage.quotas.counts().items() if stage.quotas else ())
    )
    return [
        *steps,
        Step("rows before quotas", " union all ".join(rows), "stg_selection"),
        replace(
            picked,
            checks=(*picked.checks, Check(foreign, "returns {0} for stage {1}, whose `where` does not take it")),
        ),
        Step("counts of the quotas", _COUNTS.format(asked=asked), "quota_counts", fetch=True),
    ]


def rows_within(name: str) -> str:
    """The rows that a stage with quotas takes, of those that it may."""
    return (
        "(select * from kept_rows semi join "
        f"(select grain_id as response_id from quota_rows where stage = {quoted(name)}) as picked using (response_id))"
    )


def domain_quotas(found: Sequence[Mapping[str, Any]]) -> tuple[DomainQuota, ...]:
    """Rows of table `quota_counts`, stage by stage, domains as the recipe names them and then the others."""
    return tuple(DomainQuota(**row) for row in found)


def shortfalls(quotas: Sequence[DomainQuota]) -> list[str]:
    """A warning for each stage that has fewer rows than asked, and for each that leaves out domains without a quota."""
    warnings = []
    for stage in dict.fromkeys(one.stage for one in quotas):
        mine = [one for one in quotas if one.stage == stage]
        short = [f"{one.domain} {one.rows:,} of {one.asked:,}" for one in mine if one.rows < one.asked]
        if short:
            missing = sum(one.asked - one.rows for one in mine)
            warnings.append(
                f"Stage {stage} has {missing:,} rows fewer than its quotas ask for: {', '.join(short)}. Nothing is "
                "filled up from other domains, so the proportions are not those asked for. Bring in more prompts or "
                "samples of these domains, or ask for fewer rows."
            )
        others = [f"{one.domain or 'no domain'} {one.survivors:,}" for one in mine if not one.asked]
        if others:
            warnings.append(
                f"Stage {stage} leaves out replies of domains with no quota, or one of 0 rows: {', '.join(others)}."
            )
    return warnings


def released(kept: Run, quotas: Sequence[DomainQuota]) -> list[dict[str, Any]]:
    """As the manifest has them, `rows` counted anew in `kept`, the run without what is withdrawn."""
    counted: dict[tuple[str, str | None], int] = {}
    if quotas:
        prompts = kept.scan("responses").select("response_id", "prompt_id").join(kept.scan("prompts"), on="prompt_id")
        picked = kept.scan("selection").join(prompts, left_on="grain_id", right_on="response_id")
        found = picked.group_by("stage", "domain").len("rows").collect()
        counted = {(row["stage"], row["domain"]): row["rows"] for row in found.to_dicts()}
    return [{**asdict(one), "rows": counted.get((one.stage, one.domain), 0)} for one in quotas]


# A domain of weight 0 or of no weight is listed where it has survivors: they are left out.
_COUNTS = """
with asked(stage, domain, place, asked) as (values {asked}),

may_take as (
    select selection.stage, prompts.domain, count(*) as survivors, count(picked.grain_id) as rows
    from stg_selection as selection
    join stg_responses as responses on responses.response_id = selection.grain_id
    left join stg_prompts as prompts on prompts.prompt_id = responses.prompt_id
    left join quota_rows as picked on picked.grain_id = selection.grain_id and picked.stage = selection.stage
    group by all
)

select
    stage,
    domain,
    coalesce(asked, 0) as asked,
    coalesce(survivors, 0) as survivors,
    coalesce(rows, 0) as rows
from asked
full join may_take using (stage, domain)
where coalesce(asked, 0) > 0 or survivors > 0
order by stage, place nulls last, domain nulls last
"""
