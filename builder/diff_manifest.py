"""What manifests of two releases say otherwise: values, prompt sources, the schedule, the funnel."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from builder.errors import ReleaseError
from builder.published import Published, read_text

Row = dict[str, Any]

_ELSEWHERE: Final = frozenset({
    "format", "version", "build_id", "created", "parent", "history", "repo", "recipe_hash", "calls",  # no rows hang on
    "sampling", "selection", "seed", "sql", "packages",  # the texts of recipe, SQL and constraints say these
    "files", "prompts", "funnel", "schedule", "statistics",  # compared one by one, or counted from the rows
})  # fmt: skip


class _Rule(BaseModel):
    rule: str
    breaks: int
    breaks_alone: int
    tokens: int


class _Stage(BaseModel):
    stage: str
    config: str
    kind: str
    init: str
    rows: int
    tokens: int | None
    epochs: float | None
    rowset_hash: str


class _Source(BaseModel):
    source: str
    revision: str | None
    license: str | None
    rows: int


class Facts(BaseModel):
    """The part of a manifest that is compared entry by entry."""

    created: str
    funnel: list[_Rule]
    schedule: list[_Stage]
    prompts: list[_Source]


def read_facts(published: Published) -> tuple[Facts, Row]:
    """What is compared entry by entry, and the whole manifest. Raises ReleaseError."""
    path = published.root / ".builder" / "manifest.json"
    manifest = json.loads(read_text(path))
    try:
        return Facts.model_validate(manifest), manifest
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ReleaseError(f"{path} is not a manifest ({where}: {first['msg'].lower()}). Get it again.") from error


def fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterable[Row]:
    """Values of the manifests that differ: dotted name, a, b; of lists what was removed and added."""
    flat = [_flat(_said(side)) for side in (a, b)]
    for name in dict.fromkeys([*flat[0], *flat[1]]):
        before, after = (side.get(name) for side in flat)
        if before != after and isinstance(before, list | None) and isinstance(after, list | None):
            held = [{json.dumps(item, sort_keys=True): item for item in value or []} for value in (before, after)]
            removed = [item for text, item in held[0].items() if text not in held[1]]
            yield {"field": name, "removed": removed,
                   "added": [item for text, item in held[1].items() if text not in held[0]]}  # fmt: skip
        elif before != after:
            yield {"field": name, "a": before, "b": after}


def _said(manifest: Mapping[str, Any]) -> Row:
    """What is compared value by value: all that nothing else says. Of the statistics, which are counted from the rows,
    only what the prompts were compared with."""
    statistics = manifest.get("statistics")
    evidence = statistics.get("decontamination") if isinstance(statistics, dict) else None
    return {name: value for name, value in manifest.items() if name not in _ELSEWHERE} | {"decontamination": evidence}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted name; what is null or empty counts as absent, as in manifests of earlier versions."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        elif value not in (None, []):
            found[prefix + name] = value
    return found


def sources(a: Facts, b: Facts) -> tuple[Row, ...]:
    """Prompt sources that gave other numbers of prompts."""
    rows: dict[tuple[str, str | None, str | None], list[int]] = {}
    for side, facts in enumerate((a, b)):
        for one in facts.prompts:
            rows.setdefault((one.source, one.revision, one.license), [0, 0])[side] += one.rows
    return tuple(
        {"source": source, "revision": revision, "license": license_, "rows_a": before, "rows_b": after}
        for (source, revision, license_), (before, after) in rows.items()
        if before != after
    )


def stages(facts: Facts) -> dict[str, Row]:
    """The schedule by stage, with the place of each; rows are compared as rows, not by their hash."""
    return {
        stage.stage: {"place": place, **stage.model_dump(exclude={"stage", "rowset_hash"})}
        for place, stage in enumerate(facts.schedule, 1)
    }


def rules(facts: Facts) -> dict[str, Row]:
    """The funnel by rule."""
    return {rule.rule: rule.model_dump(exclude={"rule"}) for rule in facts.funnel}


def side_by_side(what: str, a: Mapping[str, Row], b: Mapping[str, Row]) -> tuple[Row, ...]:
    """Every name of either side with what each says of it, None where a side lacks it."""
    return tuple({what: name, "a": a.get(name), "b": b.get(name)} for name in dict.fromkeys([*a, *b]))
