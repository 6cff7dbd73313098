"""Charts as SVG text: widths in percent, so that letters keep their size on a telephone and on a wall.

Colours and fonts come from the page by class names; every string is escaped here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from markupsafe import Markup, escape

_LEFT: Final = 1.0
_WIDTH: Final = 100.0 - 2 * _LEFT
"""Per cent of the picture; what is left at either edge is room for dots."""

_LEAST: Final = 0.001
"""Width below which bins of probabilities say nothing."""


@dataclass(frozen=True)
class Dot:
    """A measured share with its interval, each in 0 … 1."""

    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bar:
    """A number drawn against the largest one, with a note behind it."""

    label: str
    value: int
    note: str = ""
    kind: str = "main"


@dataclass(frozen=True)
class Column:
    """Shares that add up to 1, the first at the bottom."""

    label: str
    shares: tuple[float, ...]


def dot_chart(dots: Sequence[Dot], title: str) -> Markup:
    """One line a dot, its interval as a bar, on a scale from 0 to 100%."""
    step = 48
    height = step * len(dots) + 20
    scale = (0.0, 0.25, 0.5, 0.75, 1.0)
    parts = [_text(f"{tick:.0%}", _percent(tick, 0, 1), height - 4, anchor=_anchor(tick)) for tick in scale]
    for index, dot in enumerate(dots):
        y = step * index
        for tick in scale:
            x = _percent(tick, 0, 1)
            parts.append(_tag("line", x1=x, x2=x, y1=y + 22, y2=y + 40, class_="grid"))
        parts.append(_text(dot.label, _percent(0, 0, 1), y + 16, class_="label", anchor="start"))
        parts.append(_text(f"{dot.value:.1%}", _percent(1, 0, 1), y + 16, class_="value", anchor="end"))
        low, high, middle = (_percent(value, 0, 1) for value in (dot.low, dot.high, dot.value))
        parts.append(_tag("line", x1=low, x2=high, y1=y + 31, y2=y + 31, class_="interval"))
        for end in (low, high):
            parts.append(_tag("line", x1=end, x2=end, y1=y + 26, y2=y + 36, class_="interval end"))
        parts.append(_tag("circle", cx=middle, cy=y + 31, r=5, class_="dot"))
    return _svg(parts, height, title)


def bar_chart(bars: Sequence[Bar], title: str) -> Markup:
    """One bar a line, its label above it, all on one scale from zero."""
    step = 40
    largest = max((bar.value for bar in bars), default=0) or 1
    parts = []
    for index, bar in enumerate(bars):
        y = step * index
        parts.append(_text(bar.label, "0%", y + 15, class_="label", anchor="start"))
        parts.append(_text(bar.note or f"{bar.value:,}", "100%", y + 15, class_="value", anchor="end"))
        parts.append(_tag("rect", x="0%", width="100%", y=y + 21, height=10, rx=2, class_="track"))
        parts.append(
            _tag("rect", x="0%", width=_number(100 * bar.value / largest), y=y + 21, height=10, rx=2, class_=bar.kind)
        )
    return _svg(parts, step * len(bars), title)


def column_chart(columns: Sequence[Column], kinds: Sequence[str], title: str) -> Markup:
    """A column for each entry, all of one height, filled from below by its shares; `kinds` are their classes."""
    plot, base = 132, 140
    width = _WIDTH / max(len(columns), 1)
    parts = []
    for index, column in enumerate(columns):
        place, wide = _LEFT + width * (index + 0.06), width * 0.88
        below = 0.0
        for kind, share in zip(kinds, column.shares, strict=True):
            tall = plot * share
            if tall > 0:
                y = round(base - below - tall, 2)
                parts.append(
                    _tag("rect", x=_number(place), width=_number(wide), y=y, height=round(tall, 2), class_=kind)
                )
            below += tall
        parts.append(_text(column.label, _number(place + wide / 2), base + 16, anchor="middle"))
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = base - plot * tick
        parts.append(_tag("line", x1="0%", x2="100%", y1=y, y2=y, class_="grid over"))
    return _svg(parts, base + 22, title)


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    inner: Sequence[int],
    *,
    top_share: float,
    marker: float | None,
    title: str,
    labels: Sequence[str] = (),
) -> Markup:
    """Bars of `counts` and, within them, of `inner`; heights are shares of all counts, `top_share` the full one.

    `labels`, one a bar and empty for most, stand in place of the numbers of the edges.
    """
    plot, base, total = 108, 122, sum(counts) or 1
    low, high = edges[0], edges[-1]
    width = _WIDTH / len(counts)
    parts = [_tag("line", x1="0%", x2="100%", y1=base, y2=base, class_="axis")]
    for kind, numbers in (("all", counts), ("kept", inner)):
        for index, number in enumerate(numbers):
            if not number:
                continue
            tall = max(1.0, plot * number / total / top_share)
            place = _number(_LEFT + width * (index + 0.06))
            parts.append(
                _tag(
                    "rect", x=place, width=_number(width * 0.88), y=round(base - tall, 2), height=round(tall, 2),
                    class_=kind,
                )
            )  # fmt: skip
    if marker is not None:
        x = _percent(marker, low, high)
        parts.append(_tag("line", x1=x, x2=x, y1=8, y2=base, class_="median"))
    for index, label in enumerate(labels):
        if label:
            middle = _LEFT + width * (index + 0.5)
            anchor = _anchor(index / max(len(labels) - 1, 1))
            place = _number({"start": _LEFT, "end": _LEFT + _WIDTH}.get(anchor, middle))
            parts.append(_text(label, place, base + 18, anchor=anchor))
    for tick in () if labels else ticks(low, high):
        x, anchor = _percent(tick, low, high), _anchor((tick - low) / (high - low))
        parts.append(_tag("line", x1=x, x2=x, y1=base, y2=base + 4, class_="axis"))
        parts.append(_text(f"{tick:,g}".replace("-", "−"), x, base + 18, anchor=anchor))
    return _svg(parts, base + 24, title)


def shared_bins(values: Sequence[float] | np.ndarray, *, wanted: int = 24, whole: bool = False) -> list[float]:
    """Edges of about `wanted` bins of a round width over all values; whole numbers get whole widths."""
    low, high = float(np.min(values)), float(np.max(values))
    least = 1.0 if whole else _LEAST
    step = max(least, nice_step((high - low) / wanted)) if high > low else least
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if round(first * step, 10) > low:
        first -= 1
    # whole numbers: the last bin is half open too, 10 is no part of 5 … 10
    if round(last * step, 10) < high or last == first or (whole and last * step <= high):
        last += 1
    return [round(index * step, 10) for index in range(first, last + 1)]


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers within [low, high]."""
    step = nice_step((high - low) / wanted)
    return [round(index * step, 10) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def nice_step(raw: float) -> float:
    """The number nearest to `raw` (> 0), as a ratio, among 1, 2 and 5 times powers of ten."""
    power: float = 10.0 ** math.floor(math.log10(raw))
    limits = ((1.0, 2**0.5), (2.0, 10**0.5), (5.0, 50**0.5), (10.0, math.inf))
    return next(factor * power for factor, limit in limits if raw < limit * power)


def _percent(value: float, low: float, high: float) -> str:
    return _number(_LEFT + _WIDTH * (value - low) / (high - low))


def _number(value: float) -> str:
    return f"{value:.2f}%"


def _anchor(place: float) -> str:
    """Numbers at the edges stay inside the picture."""
    return "start" if place < 0.04 else "end" if place > 0.96 else "middle"


def _text(text: str, x: str, y: float, *, anchor: str, class_: str = "tick") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, class_, text)


def _tag(name: str, **attributes: Any) -> Markup:
    body = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{body}/>")


def _svg(parts: Sequence[Markup], height: float, title: str) -> Markup:
    body = Markup("").join(parts)
    return Markup('<svg role="img" aria-label="{}" width="100%" height="{}">{}</svg>').format(title, height, body)
