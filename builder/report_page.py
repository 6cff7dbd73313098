"""A report → one HTML page: template, style sheet, script and data in one file that asks for nothing.

Its Content-Security-Policy names the style sheet and the script by their hashes, so that nothing else can run.
"""

import base64
import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from builder.charts import Bar, Column, Dot, bar_chart, column_chart, dot_chart, histogram
from builder.console import shown
from builder.errors import UsageError
from builder.report import Report
from builder.report_distributions import Distribution, Histogram
from builder.report_index import data_block
from builder.report_numbers import Measured
from builder.report_selection import Funnel
from builder.report_selectors import Chosen
from builder.report_sql import Place
from builder.report_time import Throughput
from builder.resources import resource
from builder.show import decided
from builder.store import write_text

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


def write_report(report: Report, path: Path) -> Path:
    """Write the page to `path` and return it. Raises UsageError for a folder, TableError when the disk refuses."""
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; name the file, such as {path / 'report.html'}.")
    write_text(render_report(report), path)
    return path


def render_report(report: Report) -> str:
    """The page. Every text that a stranger wrote passes `visible`, the template engine's own escaping, or
    `data_block` and the script's `textContent`."""
    loader = FunctionLoader(lambda name: resource("data_cards", name).read_text(encoding="utf-8"))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=loader
    )
    filters: dict[str, Callable[..., Any]] = {
        "shown": shown,
        "signed": lambda value: f"{value:+.2f}".replace("-", "−"),
        "points": lambda value: f"{100 * value:+.1f}".replace("-", "−"),
        "percent": lambda value: "–" if value is None else f"{value:.1%}",
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
        "place_chart": place_chart,
        "selector_chart": selector_chart,
        "throughput_chart": throughput_chart,
        "decided": decided,
        "listed": _listed,
        "PROMPT_CHARS": _PROMPT_CHARS,
        "LONG": _LONG,
        "MESSAGES": _MESSAGES,
        "NAME_CHARS": _NAME_CHARS,
    }
    style, script = (f"\n{resource('data_cards', name).read_text('utf-8')}" for name in ("report.css", "report.js"))
    page = environment.get_template("report.html.jinja").render(
        report=report,
        counts=report.counts,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=data_block(report.data),
    )
    return page.strip() + "\n"


def _hash(text: str) -> str:
    """What a Content-Security-Policy calls an inline element of this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


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


def small_multiple(one: Distribution, found: Histogram) -> Markup:
    """The histogram of one temperature, of one domain or all."""
    median = found.quantiles.get("median")
    where = f"temperature {found.temperature:g}" if found.temperature is not None else "all temperatures"
    of = f", domain {_short(found.domain)}" if found.domain is not None else ""
    middle = f", median {shown(median)}" if median is not None else ""
    title = f"{one.name} at {where}{of}, {found.replies:,} counted{middle}"
    return histogram(
        one.edges, found.counts, found.kept, top_share=one.top_share, marker=median, title=title, labels=one.labels
    )


def place_chart(found: Sequence[Place]) -> Markup:
    """Shares of teacher, common and student sentences, a column for each part of the replies."""
    columns = [
        Column(f"{one.first_number or one.bucket:,}", (one.teacher_share, one.common_share, one.student_share))
        for one in found
    ]
    title = "; ".join(f"{one.first_number or one.bucket:,}: {one.teacher_share:.0%} the teacher's" for one in found)
    return column_chart(columns, ("by-teacher", "by-both", "by-student"), title)


def selector_chart(found: Sequence[Chosen], name: str, note: str) -> Markup:
    """One number of every selector, on one scale."""
    known = [(one.selector, getattr(one, name)) for one in found if getattr(one, name) is not None]
    bars = [
        Bar(_short(selector), round(1000 * value), f"{value:.1%}" if note == "%" else shown(float(value)), kind="stage")
        for selector, value in known
    ]
    return bar_chart(bars, "; ".join(f"{bar.label}: {bar.note}" for bar in bars))


def throughput_chart(found: Throughput, values: Sequence[float], what: str) -> Markup:
    """One number of every bucket of time; first and last bucket are labelled."""
    whole = [round(1_000_000 * value) for value in values]
    labels = [""] * len(whole)
    labels[0] = _clock(found.starts[0], found.seconds)
    if len(labels) > 1:
        labels[-1] = _clock(found.starts[-1], found.seconds)
    edges = [float(place) for place in range(len(whole) + 1)]
    total = sum(whole) or 1
    title = f"{what} by {found.unit}: from {labels[0]} to {labels[-1]}, at most {shown(max(values))}"
    top = max(whole) / total or 1.0
    return histogram(edges, whole, whole, top_share=top, marker=None, title=title, labels=labels)


def _clock(time: datetime, seconds: int) -> str:
    return time.strftime("%H:%M:%S" if seconds < 60 else "%Y-%m-%d %H:%M" if seconds < 86400 else "%Y-%m-%d")


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
