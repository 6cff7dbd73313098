"""Run → `report.html`: one page, readable from disk, of what a run asked, kept, released and taught."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import polars as pl
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from builder.charts import Bar, Column, Dot, bar_chart, column_chart, dot_chart, histogram
from builder.config import Recipe
from builder.console import shown
from builder.errors import TableError, UsageError
from builder.models import student_id
from builder.release_rows import unplaced
from builder.report_numbers import (
    Counts,
    Distribution,
    Measured,
    Reading,
    counts,
    distributions,
    evaluations,
    latest_time,
    readings,
)
from builder.report_samples import Mixed, Sample, mixed_sample, samples
from builder.report_selection import Funnel, ReleaseSummary, funnel, releases
from builder.report_sql import Confidence, Place, confidences, places, provenance
from builder.resources import resource
from builder.show import decided
from builder.store import Run, write_text

_MARGIN: Final = 0.1
_PROMPT_CHARS: Final = 4_000
_MESSAGES: Final = 6
_NAME_CHARS: Final = 160
_LABEL_CHARS: Final = 34
_LONG: Final = 3_000
"""The most that a page shows: characters of a message, messages of a prompt, characters of a name, of one in a chart;
and the length from which a text scrolls."""
# What HTML cannot carry (NUL, controls, carriage returns, non-characters) and what turns the text around it: bidi marks
_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufdd0-\ufdef\ufffe\uffff]"
    "|[\ud800-\udfff]"
)


@dataclass(frozen=True)
class Report:
    """Everything the page says, as plain values."""

    name: str
    teacher: str | None
    teacher_revision: str | None
    student: str | None
    student_note: str | None
    margin: float
    time: datetime | None
    counts: Counts
    kept: int
    stages: tuple[str, ...]
    accuracy: tuple[Measured, ...]
    readings: tuple[Reading, ...]
    funnel: Funnel | None
    releases: tuple[ReleaseSummary, ...]
    distributions: tuple[Distribution, ...]
    confidences: tuple[Confidence, ...]
    places: tuple[Place, ...]
    provenance: str | None
    samples: tuple[Sample, ...]
    mixed: Mixed | None


def write_report(run: Run, recipe: Recipe, out: Path | None = None) -> Path:
    """Write the page of a run to `out`, default `<run>/report.html`, and return its path."""
    path = out or run.report
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; name the file, such as {path / 'report.html'}.")
    write_text(render_report(collect(run, recipe)), path)
    return path


def collect(run: Run, recipe: Recipe) -> Report:
    """Read a run. Raises UsageError where there is none, TableError where it holds no replies or a damaged table."""
    if not run.root.is_dir():
        raise UsageError(f"There is no run at {run.root}; builder generate makes it, or name another with --run.")
    size = counts(run)
    if not size.replies:
        what = "Run builder generate first." if recipe.teacher else "Its recipe names no teacher to ask."
        raise TableError(f"Run {run.root} holds no replies, so there is nothing to report. {what}")
    margin = float(recipe.selection.params.get("teacher_margin", _MARGIN))
    student, note = _student(run, recipe)
    found = evaluations(run)
    chosen = run.read("selection", ["stage", "kind", "grain_id"])
    stages = chosen["stage"].unique(maintain_order=True).to_list()  # the table is in training order
    by_place = places(run, student, margin) if student else []
    models = run.scan("responses").filter(pl.col("role") == "teacher").select(pl.col("model").unique().sort()).collect()
    return Report(
        name=recipe.name,
        teacher=", ".join(unplaced(model) for model in models["model"].to_list()) or None,
        teacher_revision=recipe.teacher.revision if recipe.teacher else None,
        student=unplaced(recipe.public_student() or "") or None,
        student_note=note,
        margin=margin,
        time=latest_time(run, size.last),
        counts=size,
        kept=chosen.filter(pl.col("kind") == "sft")["grain_id"].n_unique(),
        stages=tuple(stages),
        accuracy=tuple(found),
        readings=tuple(readings(found)),
        funnel=funnel(run),
        releases=tuple(releases(run)),
        distributions=tuple(distributions(run, student)),
        confidences=tuple(confidences(run, student)) if student else (),
        places=tuple(by_place),
        provenance=provenance(by_place),
        samples=tuple(samples(run, stages, student, margin)),
        mixed=mixed_sample(run, stages),
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


def render_report(report: Report) -> str:
    """The page. Every text that a stranger wrote passes `visible` or the template engine's own escaping."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters: dict[str, Callable[..., Any]] = {
        "shown": shown,
        "signed": lambda value: f"{value:+.2f}".replace("-", "−"),
        "points": lambda value: f"{100 * value:+.1f}".replace("-", "−"),
        "percent": lambda value: f"{value:.1%}",
        "share": _share,
        "visible": visible,
        "short": _short,
        "legible": legible,
        "day": _day,
    }
    environment.filters.update(filters)
    environment.globals |= {
        "accuracy_chart": accuracy_chart,
        "flow_chart": flow_chart,
        "small_multiple": small_multiple,
        "confidence_chart": confidence_chart,
        "place_chart": place_chart,
        "decided": decided,
        "listed": _listed,
        "PROMPT_CHARS": _PROMPT_CHARS,
        "LONG": _LONG,
        "MESSAGES": _MESSAGES,
        "NAME_CHARS": _NAME_CHARS,
    }
    template = environment.from_string(resource("data_cards", "report.html.jinja").read_text(encoding="utf-8"))
    return template.render(report=report, counts=report.counts).strip() + "\n"


def visible(text: Any, limit: int | None = None) -> Markup:
    """Text as a reader can check it: escaped, and characters that hide or turn text as their code point."""
    parts: list[Markup] = []
    done = 0
    whole = _cut(str(text), limit)
    for match in _UNSEEN.finditer(whole):
        name = unicodedata.name(match.group(), "control character").lower()
        code = Markup('<b class="code" title="{}">U+{}</b>').format(name, f"{ord(match.group()):04X}")
        parts += [escape(whole[done : match.start()]), code]
        done = match.end()
    return Markup("").join([*parts, escape(whole[done:])])


def legible(text: Any) -> str:
    """As `visible`, in plain text: for labels of charts and attributes."""
    return _UNSEEN.sub(lambda match: f"[U+{ord(match.group()):04X}]", str(text))


def accuracy_chart(found: Sequence[Measured]) -> Markup:
    """pass@1 of every evaluation with its interval."""
    dots = [Dot(_short(one.model), one.pass_at_1, one.low, one.high) for one in found]
    title = "; ".join(f"{_short(one.model)} {one.pass_at_1:.1%}, {one.low:.1%} to {one.high:.1%}" for one in found)
    return dot_chart(dots, f"pass@1 with 95% intervals: {title}")


def flow_chart(made: Funnel) -> Markup:
    """Replies, survivors, kept, then the stages."""
    totals = made.totals or {}
    bars = [
        Bar(label, totals[name])
        for name, label in (("replies", "replies"), ("survivors", "break no rule"), ("kept", "kept by their rank"))
        if name in totals
    ]
    bars += [Bar(f"stage {_short(stage['name'])}", stage["rows"], kind="stage") for stage in made.stages]
    return bar_chart(bars, "; ".join(f"{bar.label}: {bar.value:,}" for bar in bars))


def small_multiple(one: Distribution, index: int) -> Markup:
    """The histogram of one temperature."""
    found = one.histograms[index]
    median = found.quantiles.get("median")
    title = f"{one.name} at temperature {found.temperature:g}, {found.replies:,} replies, median {shown(median)}"
    return histogram(one.edges, found.counts, found.kept, top_share=one.top_share, marker=median, title=title)


def confidence_chart(one: Confidence, top_share: float) -> Markup:
    """The histogram of response probabilities at one temperature."""
    edges = [round(0.05 * index, 2) for index in range(21)]
    title = (
        f"response probability at temperature {one.temperature:g}, {one.replies:,} replies, median {shown(one.median)}"
    )
    return histogram(edges, one.histogram, one.histogram_kept, top_share=top_share, marker=one.median, title=title)


def place_chart(found: Sequence[Place]) -> Markup:
    """Shares of teacher, common and student sentences, a column for each part of the replies."""
    columns = [
        Column(f"{one.first_number or one.bucket:,}", (one.teacher_share, one.common_share, one.student_share))
        for one in found
    ]
    title = "; ".join(f"{one.first_number or one.bucket:,}: {one.teacher_share:.0%} the teacher's" for one in found)
    return column_chart(columns, ("by-teacher", "by-both", "by-student"), title)


def _short(text: str, limit: int = _LABEL_CHARS) -> str:
    """A label of at most `limit` characters, before any code point is spelled out."""
    return legible(_cut(text, limit))


def _cut(text: str, limit: int | None) -> str:
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def _day(time: datetime | str | None) -> str:
    """Date and minute in UTC."""
    if time is None:
        return "unknown"
    found = datetime.fromisoformat(time) if isinstance(time, str) else time
    return (found.astimezone(UTC) if found.tzinfo else found).strftime("%Y-%m-%d %H:%M UTC")


def _share(value: float) -> str:
    """A share that is not zero never reads 0.0%."""
    return f"{100 * value:.1g}%" if 0 < value < 0.0005 else f"{value:.1%}"


def _listed(words: Sequence[Any], last: str = "and") -> str:
    """a, b and c."""
    texts = [f"{word:g}" if isinstance(word, float) else str(word) for word in words]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} {last} {texts[-1]}" if texts else ""
