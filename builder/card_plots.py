"""Plots of a release's statistics as SVG files of their own, readable on a light page and on a dark one.

The Hub serves an SVG of the repository as an image where a card shows it as one (hub-docs pull request 1481). An image
knows nothing of the page around it, so each plot brings its background, and colours that stand out from it.
"""

from collections.abc import Mapping
from typing import Any, Final

from markupsafe import Markup

from builder.charts import histogram
from builder.release_statistics import CANDIDATES

FOLDER: Final = ".builder/plots"
_WIDTH: Final = 760
_MARGIN: Final = 24
_PANEL: Final = 146
"""Height that `histogram` draws, pixels."""
_MOST: Final = 12
"""Panels of one picture at most: a release of sixty stages gets no picture of sixty."""
_TITLES: Final = {
    "student_tokens": "Length of a row, student tokens",
    "completion_tokens": "Length of a reply, completion tokens",
    "teacher_share": "Teacher sentences / counted sentences of a reply",
}
_STYLE: Final = Markup(
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','DejaVu Sans',sans-serif;fill:#1b1f26}"
    ".title{font-size:17px;font-weight:600}.label{font-size:14px;font-weight:600}.tick,.note{font-size:12px;fill:#59616e}"
    ".axis{stroke:#59616e}.all{fill:#b9c4ce}.kept{fill:#0a6a93}"
)

_LEGEND: Final = Markup(
    '<rect x="512" y="22" width="12" height="12" class="all"/><text x="530" y="32" class="note">candidates</text>'
    '<rect x="612" y="22" width="12" height="12" class="kept"/>'
    '<text x="630" y="32" class="note">rows of the config</text>'
)


def card_plots(statistics: Mapping[str, Any]) -> dict[str, str]:
    """SVG texts by their path in the release: lengths, shares of teacher sentences, pass rates; only what is known."""
    plots = {}
    for one in statistics["histograms"]:
        plots[f"{FOLDER}/{one['quantity'].replace('_', '-')}.svg"] = _multiples(one)
    if rate := statistics["pass_rate"]:
        note = f"{rate['prompts']:,} prompts with a reply that is correct or wrong"
        panel = _panel("Share of the teacher's replies to a prompt that are correct", note, rate, rate["counts"], None)
        plots[f"{FOLDER}/pass-rate.svg"] = _picture("How hard the prompts are for the teacher", [panel])
    return plots


def _multiples(one: Mapping[str, Any]) -> str:
    """A panel for each config and temperature: its rows within all candidates of that temperature."""
    series = {(entry["config"], entry["temperature"]): entry["counts"] for entry in one["series"]}
    panels = []
    for (config, temperature), counts in series.items():
        every = series.get((CANDIDATES, temperature))
        if every is None or (config == CANDIDATES and any(name != CANDIDATES for name, _ in series)):
            continue
        what = "scored candidates" if one["quantity"] == "teacher_share" else "candidates"
        note = f"{sum(every):,} {what}" + ("" if config == CANDIDATES else f", {sum(counts):,} of them in the config")
        inner = None if config == CANDIDATES else counts
        panels.append(_panel(f"{config}, temperature {temperature:g}", note, one, every, inner))
    shown = _TITLES[one["quantity"]]
    return _picture(shown if len(panels) <= _MOST else f"{shown}: the first {_MOST} of {len(panels)}", panels[:_MOST])


def _panel(label: str, note: str, one: Mapping[str, Any], counts: list[int], inner: list[int] | None) -> Markup:
    """One histogram with its name and number; its tallest bar fills it."""
    top = max(counts) / (sum(counts) or 1)
    within = [0] * len(counts) if inner is None else inner
    drawn = histogram(one["edges"], counts, within, top_share=top or 1.0, marker=None, title=label)
    words = '<text y="14" class="label">{}</text><text x="100%" y="14" text-anchor="end" class="note">{}</text>'
    return Markup(words + '<svg y="22" width="100%" height="{}">{}</svg>').format(label, note, _PANEL, drawn)


def _picture(title: str, panels: list[Markup]) -> str:
    step = _PANEL + 40
    has_kept = any('class="kept"' in panel for panel in panels)
    height = 52 + step * len(panels)
    inside = _WIDTH - 2 * _MARGIN
    parts = [
        Markup('<svg x="{}" y="{}" width="{}" height="{}">{}</svg>').format(
            _MARGIN, 52 + step * place, inside, step, panel
        )
        for place, panel in enumerate(panels)
    ]
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'role="img" aria-label="{title}"><style>{style}</style>'
        '<rect x="0.5" y="0.5" width="{inner}" height="{low}" rx="8" fill="#fdfdfc" stroke="#dcdcd6"/>'
        '<text x="{margin}" y="32" class="title">{title}</text>'
    ).format(
        width=_WIDTH, height=height, inner=_WIDTH - 1, low=height - 1, margin=_MARGIN, title=title, style=_STYLE
    )  # fmt: skip
    return str(head + Markup("").join([_LEGEND if has_kept else Markup(""), *parts]) + Markup("</svg>\n"))
