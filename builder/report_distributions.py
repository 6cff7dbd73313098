"""Distributions of replies by temperature and by domain, counted in DuckDB, in bins that all panels share."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from builder.charts import shared_bins
from builder.console import Progress
from builder.report_replies import Replies

_DOMAINS: Final = 6
"""Domains with panels of their own, the largest; the others share one."""
OTHERS: Final = "other domains"
# name: expression over `replies` and `probabilities`, unit, whole numbers, only replies of the index
_MEASURED: Final = {
    "completion_tokens": ("completion_tokens", "Length: completion tokens", True, False),
    "mean_delta": ("mean_delta", "Divergence: mean of p_teacher − p_student over a reply's sentences", False, False),
    "distinct_4gram_share": (
        "distinct_4gram_share",
        "Repetition: distinct 4-grams / all 4-grams of a reply; near 0 it says one thing again and again",
        False,
        False,
    ),
    "response_probability": (
        "probability",
        "Probability: exp of the mean logprob of a reply's tokens, as the teacher gave them. For orientation: "
        "gpt-oss-120b has its mass near 0.77 at temperature 0.6 and near 0.57 at 1.0 (DASD p. 6, Fig. 3, read off the "
        "plot); for Qwen3-Next-80B-A3B-Thinking the two nearly coincide (p. 7)",
        False,
        True,
    ),
}
_GRADED: Final = """
create or replace temp view graded as
select
    case when replies.domain in (select domain from large_domains) then replies.domain else '{others}' end as domain,
    replies.temperature,
    case when isfinite(({value})::double) then ({value})::double end as value,
    len(replies.stages) > 0 as is_kept
from replies
left join probabilities on probabilities.response_id = replies.response_id
where replies.role = 'teacher' and (replies.is_indexed or not {indexed})
"""
_TOTALS: Final = """
select
    case when grouping(domain) = 0 then domain end as domain,
    temperature,
    count(*) - count(value) as missing,
    avg(value) as mean,
    quantile_cont(value, [0.1, 0.5, 0.9]) as quantiles
from graded
group by grouping sets ((temperature), (domain, temperature))
order by domain nulls first, temperature
"""
# A value on an edge belongs to the bin above it; binary fractions stand a hair beside their decimal edges.
_BINS: Final = """
select
    case when grouping(domain) = 0 then domain end as domain,
    temperature,
    least(floor((value - $low) / $step + 1e-9), $bins - 1)::integer as bin,
    count(*) as replies,
    count(*) filter (where is_kept) as kept
from graded
where value is not null
group by grouping sets ((temperature, bin), (domain, temperature, bin))
"""


@dataclass(frozen=True)
class Histogram:
    """One quantity at one temperature, of one domain or (None) all; `kept` counts the replies in a stage. Quantiles
    are over all replies."""

    domain: str | None
    temperature: float | None
    counts: tuple[int, ...]
    kept: tuple[int, ...]
    missing: int
    mean: float | None
    quantiles: Mapping[str, float]

    @property
    def replies(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True)
class Distribution:
    """One quantity in the same bins and to the same scale everywhere: at every temperature, and for every domain where
    there are several. `labels` name the bins that are no range of numbers; `top_share` is the tallest bar's."""

    name: str
    unit: str
    edges: tuple[float, ...]
    histograms: tuple[Histogram, ...]
    by_domain: tuple[Histogram, ...]
    top_share: float
    labels: tuple[str, ...] = ()


def distributions(replies: Replies, progress: Progress = lambda *_: None) -> list[Distribution]:
    """Lengths, divergence, repetition, probability of the teacher's replies; what no reply has is left out."""
    found = replies.ask(
        "select domain from replies where role = 'teacher' group by domain order by count(*) desc, domain limit ?",
        [_DOMAINS],
    )
    domains = [row["domain"] for row in found]
    made = []
    for place, name in enumerate(_MEASURED):
        progress(f"distribution of {name}", place, len(_MEASURED))
        made.append(_distribution(replies, name, domains))
    return [one for one in made if one is not None]


def _distribution(replies: Replies, name: str, domains: list[str]) -> Distribution | None:
    value, unit, whole, indexed = _MEASURED[name]
    # a view takes no parameters, so the domains, strangers' words, go through a table
    replies.ask("create or replace temp table large_domains as select unnest(?::varchar[]) as domain", [domains])
    replies.ask(_GRADED.format(others=OTHERS, value=value, indexed=str(indexed).lower()))
    (span,) = replies.ask("select min(value) as low, max(value) as high from graded")
    if span["low"] is None:
        return None
    edges = shared_bins([span["low"], span["high"]], whole=whole)
    bins: dict[Any, dict[int, tuple[int, int]]] = {}
    values = {"low": edges[0], "step": edges[1] - edges[0], "bins": len(edges) - 1}
    for row in replies.ask_named(_BINS, values):
        bins.setdefault((row["domain"], row["temperature"]), {})[row["bin"]] = (row["replies"], row["kept"])
    found = []
    for row in replies.ask(_TOTALS):
        counted = bins.get((row["domain"], row["temperature"]), {})
        pairs = [counted.get(place, (0, 0)) for place in range(len(edges) - 1)]
        quantiles = row["quantiles"] or []
        found.append(
            Histogram(
                row["domain"], row["temperature"], tuple(one for one, _ in pairs), tuple(kept for _, kept in pairs),
                row["missing"], row["mean"], dict(zip(("10%", "median", "90%"), quantiles, strict=False)),
            )
        )  # fmt: skip
    return _shaped(name, unit, edges, found)


def _shaped(
    name: str, unit: str, edges: list[float], found: Iterable[Histogram], labels: tuple[str, ...] = ()
) -> Distribution:
    every = list(found)
    whole = tuple(one for one in every if one.domain is None)
    parts = tuple(one for one in every if one.domain is not None)
    several = len({one.domain for one in parts}) > 1
    top = max((max(one.counts) / one.replies for one in every if one.replies), default=1.0)
    return Distribution(name, unit, tuple(edges), whole, parts if several else (), top, labels)


def pass_rates(replies: Replies) -> Distribution | None:
    """Prompts by the share of the teacher's replies that are correct, from sql/reports/pass_rate.sql: never, by tenths,
    always. None without verdicts that say correct or wrong."""
    counted: dict[tuple[str | None, float | None], list[int]] = {}
    missing: dict[tuple[str | None, float | None], int] = {}
    rows = replies.report("pass_rate", {})
    sizes: dict[str, int] = {}
    for row in rows:
        if row["domain"] is not None:
            sizes[row["domain"]] = sizes.get(row["domain"], 0) + row["prompts"]
    large = sorted(sizes, key=lambda name: (-sizes[name], name))[:_DOMAINS]
    for row in rows:
        own = None if row["domain"] is None else row["domain"] if row["domain"] in large else OTHERS
        for key in {(own, row["temperature"]), (None, row["temperature"])}:
            bins = counted.setdefault(key, [0] * 12)
            if row["from_rate"] is None:
                missing[key] = missing.get(key, 0) + row["prompts"]
            else:
                bins[_bin(row["from_rate"], row["to_rate"])] += row["prompts"]
    if not any(map(any, counted.values())):
        return None
    found = [
        Histogram(domain, temperature, tuple(bins), (0,) * 12, missing.get((domain, temperature), 0), None, {})
        for (domain, temperature), bins in sorted(
            counted.items(), key=lambda item: (item[0][0] is not None, item[0][0] or "", item[0][1] or -1.0)
        )
    ]
    labels = ("never", *[""] * 10, "always")
    unit = (
        "Pass rate: prompts by the share of the teacher's replies to them that are correct; between never and always, "
        "tenths"
    )
    return _shaped("pass_rate", unit, [float(edge) for edge in range(13)], found, labels)


def _bin(low: float, high: float) -> int:
    """0 for never, 1 … 10 for tenths, 11 for always."""
    return 0 if high == 0 else 11 if low == 1 else round(low * 10) + 1
