"""What the report says of the latest selection and of every release. Reads a run, returns plain values."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from builder.errors import TableError
from builder.release import latest_release, read_manifest
from builder.report_numbers import events
from builder.report_replies import Replies
from builder.rewrite_steps import RewriteCounts
from builder.store import Run

_OUTCOMES: Final = 40
"""Lines of the table by domain and temperature at most."""


@dataclass(frozen=True)
class Funnel:
    """The latest selection. What only `builder select` counts is None where a manifest is all there is."""

    source: str
    time: str
    selection_id: str
    rules: tuple[Mapping[str, Any], ...]
    stages: tuple[Mapping[str, Any], ...]
    totals: Mapping[str, Any] | None
    stale: str | None
    rewrites: str | None = None


@dataclass(frozen=True)
class ReleaseSummary:
    """One release by its manifest, and the rows of each policy by its data."""

    version: str
    created: str
    parent: str | None
    build_id: str
    stages: tuple[Mapping[str, Any], ...]


def funnel(run: Run) -> Funnel | None:
    """The latest selection: from `builder select`, or from the newest manifest where that one is of another selection
    and younger (`builder release` selects by itself). None before the first."""
    made = next((event for event in reversed(events(run)) if event["step"] == "select"), None)
    newest = latest_release(run)
    manifest = newest.manifest if newest else None
    if made is None and manifest is None:
        return None
    if manifest is not None and (made is None or _overtaken(made, manifest)):
        found = funnel_of_release(manifest)
        return replace(found, stale=_stale(run, found.selection_id, None))
    assert made is not None
    rewrites = made.get("rewrites")
    totals = {
        name: value for name, value in made.items() if name == "selector" or isinstance(value, int | float | None)
    }
    return Funnel(
        source="builder select",
        time=made["time"],
        selection_id=made["selection_id"],
        rules=tuple(made["funnel"]),
        stages=tuple(made["stages"]),
        totals=totals,
        stale=_stale(run, made["selection_id"], made["replies"], of_rewrites=rewrites is not None),
        rewrites=RewriteCounts(**rewrites).line() if rewrites else None,
    )


def funnel_of_release(manifest: Mapping[str, Any]) -> Funnel:
    """The selection behind a release."""
    rules = tuple(
        {"rule_name": row["rule"], **{name: row[name] for name in ("breaks", "breaks_alone", "tokens")}}
        for row in manifest["funnel"]
    )
    stages = tuple(
        {"name": row["stage"], **{name: row[name] for name in ("kind", "rows", "tokens")}}
        for row in manifest["schedule"]
    )
    selection = manifest["selection"]["selection_id"]
    return Funnel(f"release {manifest['version']}", manifest["created"], selection, rules, stages, None, None)


def outcomes(replies: Replies) -> list[dict[str, Any]]:
    """By domain and temperature, and (null, null) in all: candidates, those that break no rule, those kept."""
    return replies.ask(
        "select case when grouping(domain) = 0 then domain end as domain, temperature, count(*) as replies, "
        "count(*) filter (where len(rules) = 0) as survivors, count(*) filter (where len(stages) > 0) as kept, "
        "count(distinct prompt_id) as prompts "
        "from replies group by grouping sets ((), (domain, temperature)) "
        f"order by domain is null, count(*) desc, domain, temperature limit {_OUTCOMES}"
    )


def _overtaken(made: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    other = made["selection_id"] != manifest["selection"]["selection_id"]
    return other and datetime.fromisoformat(made["time"]) <= datetime.fromisoformat(manifest["created"])


def _stale(run: Run, selection_id: str, replies: int | None, *, of_rewrites: bool = False) -> str | None:
    """Why the numbers are not those of today's tables; None where they are."""
    now = run.ids("selection", "selection_id")
    if now and now != {selection_id}:
        return "Table selection holds another selection by now; run builder select, then builder report again."
    if of_rewrites:
        rows = run.scan("rewrites").filter(pl.col("outcome").is_in(["unchanged", "rewritten"]))
    else:
        rows = run.scan("responses").filter(pl.col("role") == "teacher")
    found = rows.select(pl.len()).collect().item()
    if replies is not None and replies != found:
        what = "rewrites" if of_rewrites else "teacher replies"
        return f"The run holds {found:,} {what} by now; run builder select, then builder report again."
    return None


def releases(run: Run) -> list[ReleaseSummary]:
    """Every release with a manifest, the oldest first."""
    paths = [path for path in run.releases.glob("v[0-9]*") if path.name[1:].isdigit()]
    whole = sorted((path for path in paths if (path / ".builder" / "manifest.json").is_file()), key=_version)
    return [_summary(path, read_manifest(path)) for path in whole]


def release_summary(manifest: Mapping[str, Any], policies: Mapping[str, dict[str, int]]) -> ReleaseSummary:
    """A release by its manifest, with the rows of each policy by stage."""
    stages = tuple({**entry, "policies": policies.get(entry["stage"], {})} for entry in manifest["schedule"])
    return ReleaseSummary(manifest["version"], manifest["created"], manifest["parent"], manifest["build_id"], stages)


def _version(path: Path) -> int:
    return int(path.name[1:])


def _summary(path: Path, manifest: Mapping[str, Any]) -> ReleaseSummary:
    policies = {entry["stage"]: _policies(path / "data" / entry["config"]) for entry in manifest["schedule"]}
    return release_summary(manifest, policies)


def _policies(folder: Path) -> dict[str, int]:
    """Trained rows by policy; empty where all are the teacher's, or where the stage has no such column."""
    found: Counter[str] = Counter()
    for file in sorted(folder.glob("train-*.parquet")):
        try:
            if "policy" not in pq.read_schema(file).names:
                return {}
            found.update(map(str, pq.ParquetFile(file).read(["policy"])["policy"].to_pylist()))
        except (OSError, pa.ArrowException) as error:
            raise TableError(
                f"{file} cannot be read as Parquet ({error}). Its release is damaged; restore it from where it was "
                "published, or delete its folder and run builder release."
            ) from error
    return dict(found) if set(found) - {"teacher"} else {}
