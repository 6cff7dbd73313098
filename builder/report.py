"""Run or published release → one HTML page, readable from disk, of what was asked, kept, released and taught."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from builder.config import Recipe
from builder.console import Progress
from builder.errors import ReleaseError, TableError, UsageError
from builder.models import student_id
from builder.published import Published, database, open_published
from builder.release import read_manifest
from builder.release_rows import unplaced
from builder.report_distributions import Distribution, distributions, pass_rates
from builder.report_index import index
from builder.report_mixed import Mixed, mixed_sample
from builder.report_numbers import Counts, Measured, Reading, counts, evaluations, events, latest_time, readings
from builder.report_replies import INDEXED, Replies, replies_of_release, replies_of_run
from builder.report_samples import samples
from builder.report_selection import (
    Funnel,
    ReleaseSummary,
    funnel,
    funnel_of_release,
    outcomes,
    release_summary,
    releases,
)
from builder.report_selectors import Chosen, selectors
from builder.report_sql import Confidence, Place, confidences, places, provenance
from builder.report_time import Step, Throughput, steps, throughput
from builder.sqlfile import Value
from builder.staging import staging_variables
from builder.store import Run

if TYPE_CHECKING:
    from builder.compare import Comparison

_MARGIN: Final = 0.1
_ROOM: Final = 4_200_000
_ROW: Final = 36
_LEAST_ROOM: Final = 500_000
"""Bytes of a page for its index and texts, of a row of the index, and for texts at least: below 5 MB with the rest."""


@dataclass(frozen=True)
class Report:
    """Everything the page says, as plain values; `data` is what its script reads. A release has no times, prices,
    lists of sentences or evaluations: what comes of them is empty."""

    name: str
    kind: str
    teacher: str | None
    teacher_revision: str | None
    student: str | None
    student_note: str | None
    margin: float
    counted_at: float
    time: datetime | None
    counts: Counts
    candidates: int
    kept: int
    stages: tuple[str, ...]
    accuracy: tuple[Measured, ...]
    readings: tuple[Reading, ...]
    funnel: Funnel | None
    outcomes: tuple[Mapping[str, Any], ...]
    selectors: tuple[Chosen, ...]
    keep: int
    releases: tuple[ReleaseSummary, ...]
    distributions: tuple[Distribution, ...]
    confidences: tuple[Confidence, ...]
    places: tuple[Place, ...]
    provenance: str | None
    mixed: Mixed | None
    throughput: Throughput | None
    steps: tuple[Step, ...]
    comparison: "Comparison | None"
    data: Mapping[str, Any] = field(repr=False)

    @property
    def indexed(self) -> int:
        """Replies that the page lists."""
        return int(self.data["index"]["size"])


def collect(
    run: Run, recipe: Recipe, comparison: "Comparison | None" = None, *, progress: Progress = lambda *_: None
) -> Report:
    """Read a run. Raises UsageError where there is none, TableError where it holds no replies or a damaged table."""
    if not run.root.is_dir():
        raise UsageError(f"There is no run at {run.root}; builder generate makes it, or name another with --run.")
    progress("count replies", 0, None)
    size = counts(run)
    if not size.replies:
        what = "Run builder generate first." if recipe.teacher else "Its recipe names no teacher to ask."
        raise TableError(f"Run {run.root} holds no replies, so there is nothing to report. {what}")
    student, note = _student(run, recipe)
    found = evaluations(run)
    chosen = run.read("selection", ["stage", "kind", "grain_id"])
    stages = chosen["stage"].unique(maintain_order=True).to_list()  # the table is in training order
    models = run.scan("responses").filter(pl.col("role") == "teacher").select(pl.col("model").unique().sort()).collect()
    staged = {**staging_variables(recipe), "student_id": student}
    selection = recipe.selection
    variables: dict[str, Value] = {"seed": recipe.generation.seed, **selection.params}
    progress("read replies", 0, None)
    with replies_of_run(run, staged, float(selection.params.get("teacher_margin", _MARGIN))) as replies:
        counted = _counted(replies, recipe.name, selection.selector, selection.keep, variables, student, progress)
    progress("selection and releases", 0, None)
    return Report(
        name=recipe.name,
        kind="run",
        teacher=", ".join(unplaced(model) for model in models["model"].to_list()) or None,
        teacher_revision=recipe.teacher.revision if recipe.teacher else None,
        student=unplaced(recipe.public_student() or "") or None,
        student_note=note,
        time=latest_time(run, size.last),
        counts=size,
        kept=chosen.filter(pl.col("kind") == "sft")["grain_id"].n_unique(),
        stages=tuple(stages),
        accuracy=tuple(found),
        readings=tuple(readings(found)),
        funnel=funnel(run),
        releases=tuple(releases(run)),
        mixed=mixed_sample(run, stages),
        steps=tuple(steps(events(run))),
        comparison=comparison,
        **counted,
    )


def collect_release(dataset: str, *, progress: Progress = lambda *_: None) -> Report:
    """Read a release directory or `org/name@vN`. Raises UsageError, ReleaseError, and TableError where its data lack
    what this version reads."""
    progress("open the release", 0, None)
    published = open_published(dataset)
    manifest = read_manifest(published.root)
    try:
        return _release_report(published, manifest, progress)
    except (KeyError, TypeError, AttributeError) as error:
        raise ReleaseError(
            f"The manifest of {published.source} cannot be reported ({type(error).__name__}: {error}): it is not as "
            "data_cards/manifest.schema.json says. Get the release again, or report it with the version that made it."
        ) from error


def _release_report(published: Published, manifest: Mapping[str, Any], progress: Progress) -> Report:
    selection, student = manifest["selection"], manifest["student"] or {}
    params: dict[str, Value] = {"seed": manifest["seed"], **(selection.get("params") or {})}
    configs = {entry["stage"]: entry["config"] for entry in manifest["schedule"] if entry["kind"] == "sft"}
    name = f"{published.repo}@{manifest['version']}" if published.repo else published.source
    progress("read replies", 0, None)
    with replies_of_release(database(published), configs, float(params.get("teacher_margin", _MARGIN))) as replies:
        counted = _counted(replies, name, selection["selector"], selection["keep"], params, None, progress)
        size = _counts_of_release(replies)
        policies: dict[str, dict[str, int]] = {}
        for row in replies.ask(
            "select stage, role, count(*) as rows from (select unnest(stages) as stage, role from replies) "
            "group by all order by all"
        ):
            policies.setdefault(row["stage"], {})[row["role"]] = row["rows"]
        (kept,) = replies.ask("select count(*) as rows from replies where len(stages) > 0")
    mixed = {stage: rows for stage, rows in policies.items() if set(rows) - {"teacher"}}
    return Report(
        name=name,
        kind="release",
        teacher=manifest["teacher"]["model"],
        teacher_revision=manifest["teacher"]["revision"],
        student=student.get("model"),
        student_note=None,
        time=datetime.fromisoformat(manifest["created"]),
        counts=size,
        kept=kept["rows"],
        stages=tuple(entry["stage"] for entry in manifest["schedule"]),
        accuracy=(),
        readings=(),
        funnel=funnel_of_release(manifest),
        releases=(release_summary(manifest, mixed),),
        mixed=None,
        steps=(),
        comparison=None,
        **counted,
    )


def _counted(
    replies: Replies,
    name: str,
    selector: str,
    keep: int,
    variables: Mapping[str, Value],
    student: str | None,
    progress: Progress,
) -> dict[str, Any]:
    """What both kinds of page count from table `replies`."""
    (size,) = replies.ask("select count(*) as replies, count(distinct prompt_id) as prompts from replies")
    compared = selectors(replies, selector, keep, variables, progress)
    room = max(_LEAST_ROOM, _ROOM - _ROW * min(size["replies"], INDEXED))
    progress("texts for the lens", 0, None)
    sampled = samples(replies, room, has_ranks=any(one.selector == selector for one in compared))
    progress("pass rates", 0, None)
    rates = pass_rates(replies)
    progress("sentences by place", 0, None)
    by_place = places(replies, student) if replies.of_run and student else []
    sure = confidences(replies, student) if replies.of_run and student else []
    drawn = distributions(replies, progress)
    progress("index", 0, None)
    listed = index(replies, sampled.ids)
    return {
        "margin": replies.margin,
        "counted_at": replies.counted_at,
        "candidates": size["replies"],
        "outcomes": tuple(outcomes(replies)),
        "selectors": tuple(compared),
        "keep": keep,
        "distributions": (*drawn, *([rates] if rates else [])),
        "confidences": tuple(sure),
        "places": tuple(by_place),
        "provenance": provenance(by_place),
        "throughput": throughput(replies),
        "data": {
            "name": name,
            "isRun": replies.of_run,
            "margin": replies.margin,
            "countedAt": replies.counted_at,
            "selector": selector,
            "keep": keep,
            "candidates": size["replies"],
            "index": listed,
            "prompts": sampled.prompts,
            "replies": sampled.replies,
        },
    }


def _counts_of_release(replies: Replies) -> Counts:
    (row,) = replies.ask(
        "select count(distinct prompt_id) as prompts, count(*) as replies, "
        "sum(completion_tokens)::bigint as completion_tokens from replies"
    )
    roles = replies.ask("select role, count(*) as rows from replies group by role order by role")
    temperatures = replies.ask("select distinct temperature from replies where role = 'teacher' order by temperature")
    return Counts(
        roles={one["role"]: one["rows"] for one in roles},
        temperatures=tuple(one["temperature"] for one in temperatures),
        prompt_tokens=None,
        cost_usd=None,
        first=None,
        last=None,
        **row,
    )


def _student(run: Run, recipe: Recipe) -> tuple[str | None, str | None]:
    """The student whose scores are shown, and a remark where it is not the recipe's."""
    scored = sorted(run.ids("scores", "student_id"))
    own = student_id(recipe.student) if recipe.student else None
    if own in scored or not scored:
        return own, None
    if len(scored) == 1:
        return scored[0], f"Scores are those of student {scored[0]}, the only one in this run; the recipe's is another."
    return None, (
        f"This run holds scores of {len(scored)} students, none of them the recipe's; run builder score, or name one."
    )
