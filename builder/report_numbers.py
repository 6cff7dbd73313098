"""What the report counts: size, accuracy, distributions. Reads a run, returns plain values."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

import numpy as np
import polars as pl

from builder.charts import shared_bins
from builder.errors import TableError
from builder.schema import PAID_ROLES
from builder.store import Run

_EVENT: Final = '{"time": '


@dataclass(frozen=True)
class Counts:
    """Size and price of a run. Tokens are None where the endpoint counted none, USD where no price was declared."""

    prompts: int
    replies: int
    roles: Mapping[str, int]
    temperatures: tuple[float, ...]
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    first: datetime | None
    last: datetime | None


@dataclass(frozen=True)
class Measured:
    """One file of `eval/`: pass@1 with its 95% interval. The last two are None in files that do not say them."""

    model: str
    questions: int
    replies: int
    correct: int
    unscorable: int
    pass_at_1: float
    low: float
    high: float
    temperature: float
    samples: int
    benchmark: str | None = None
    questions_sha256: str | None = None


@dataclass(frozen=True)
class Reading:
    """Two evaluations that follow each other, and what their intervals allow to say."""

    before: str
    after: str
    gain: float
    words: str


@dataclass(frozen=True)
class Histogram:
    """One quantity at one temperature; `kept` counts the replies in a stage. Quantiles are over all replies."""

    temperature: float
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
    """One quantity at every temperature, in the same bins and to the same scale."""

    name: str
    unit: str
    whole: bool
    edges: tuple[float, ...]
    histograms: tuple[Histogram, ...]
    top_share: float = field(default=1.0)


def counts(run: Run) -> Counts:
    """Prompts, and what was paid for them: replies, tokens, USD, first and last reply. A student's rollouts are not."""
    replies = run.scan("responses")
    paid = replies.filter(pl.col("role").is_in(PAID_ROLES))
    sums = [
        pl.when(pl.col(name).is_not_null().any()).then(pl.col(name).sum()).alias(name)
        for name in ("prompt_tokens", "completion_tokens", "cost_usd")
    ]
    times = [pl.col("received_at").min().alias("first"), pl.col("received_at").max().alias("last")]
    row = paid.select(pl.len().alias("replies"), *sums, *times).collect().row(0, named=True)
    roles = replies.group_by("role").len().sort("role").collect()
    temperatures = replies.filter(pl.col("role") == "teacher").select(pl.col("temperature").unique().sort()).collect()
    return Counts(
        prompts=run.rows("prompts"),
        roles=dict(roles.iter_rows()),
        temperatures=tuple(temperatures["temperature"].to_list()),
        **row,
    )


def events(run: Run) -> list[dict[str, Any]]:
    """Lines of events.jsonl in order. One torn by a crash is no event, and the next stands behind it on its line."""
    try:
        lines = (run.root / "events.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        for text in (line, line[max(0, line.rfind(_EVENT)) :]):
            try:
                found.append(json.loads(text))
                break
            except ValueError:
                continue
    return [event for event in found if isinstance(event, dict) and "step" in event]


def evaluations(run: Run) -> list[Measured]:
    """Files of `eval/`, the oldest first; of several benchmarks, models with theirs (`tiny on sums`).

    Raises TableError on one that is no evaluation.
    """
    paths = sorted(run.eval_dir.glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    found = []
    for path in paths:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            known = {"benchmark": None, "questions_sha256": None, **values}
            found.append(Measured(**{name: known[name] for name in Measured.__dataclass_fields__}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TableError(
                f"{path} is no evaluation ({type(error).__name__}: {error}). The report would show wrong accuracy "
                "without it; move it out of eval/, or make it anew with builder eval."
            ) from error
    if len({one.benchmark for one in found}) > 1:
        found = [replace(one, model=f"{one.model} on {one.benchmark}") if one.benchmark else one for one in found]
    return found


def readings(found: Sequence[Measured]) -> list[Reading]:
    """Neighbours in order of time on one benchmark: apart, overlapping (which may be noise), or not asked alike."""
    benchmarks = dict.fromkeys(one.benchmark for one in found)
    alike = ([one for one in found if one.benchmark == name] for name in benchmarks)
    return [_reading(before, after) for each in alike for before, after in pairwise(each)]


def _reading(before: Measured, after: Measured) -> Reading:
    asked = [(one.questions, one.questions_sha256, one.temperature, one.samples) for one in (before, after)]
    if asked[0] != asked[1]:
        words = "asked differently (questions, temperature or samples), so the two do not compare."
    elif before.high < after.low or after.high < before.low:
        words = "the intervals are apart."
    else:
        words = "the intervals overlap: at this size the difference may be noise."
    return Reading(before.model, after.model, after.pass_at_1 - before.pass_at_1, words)


def distributions(run: Run, student: str | None) -> list[Distribution]:
    """Completion tokens and mean_delta of teacher replies by temperature, in bins that the temperatures share."""
    kept = run.scan("selection").filter(pl.col("kind") == "sft").select("grain_id").unique()
    scores = run.scan("scores").filter(pl.col("student_id") == (student or "")).select("response_id", "mean_delta")
    frame = (
        run.scan("responses")
        .filter(pl.col("role") == "teacher")
        .select("response_id", "temperature", "completion_tokens")
        .join(kept.with_columns(kept=pl.lit(True)), left_on="response_id", right_on="grain_id", how="left")
        .join(scores, on="response_id", how="left")
        .collect()
    )
    found = (
        _distribution(frame, "completion_tokens", "completion tokens", whole=True),
        _distribution(frame, "mean_delta", "mean of p_teacher − p_student over a reply's sentences", whole=False),
    )
    return [one for one in found if one is not None]


def _distribution(frame: pl.DataFrame, name: str, unit: str, *, whole: bool) -> Distribution | None:
    known = pl.col(name).is_not_null() & pl.col(name).cast(pl.Float64).is_finite()
    values = frame.filter(known)[name].to_numpy()
    if not len(values):
        return None
    edges = shared_bins(values, whole=whole)
    histograms = tuple(_histograms(frame, known, name, edges))
    top = max(max(one.counts) / one.replies for one in histograms if one.replies)
    return Distribution(name, unit, whole, tuple(edges), histograms, top)


def _histograms(frame: pl.DataFrame, known: pl.Expr, name: str, edges: Sequence[float]) -> Iterator[Histogram]:
    for (temperature,), rows in sorted(frame.group_by("temperature")):
        there = rows.filter(known)
        values = there[name].to_numpy()
        kept = there.filter(pl.col("kept").fill_null(value=False))[name].to_numpy()
        share = {"10%": 0.1, "median": 0.5, "90%": 0.9}
        yield Histogram(
            temperature=float(str(temperature)),
            counts=tuple(int(number) for number in np.histogram(values, edges)[0]),
            kept=tuple(int(number) for number in np.histogram(kept, edges)[0]),
            missing=len(rows) - len(there),
            mean=float(values.mean()) if len(values) else None,
            quantiles={label: float(np.quantile(values, q)) for label, q in share.items()} if len(values) else {},
        )


def latest_time(run: Run, last: datetime | None) -> datetime | None:
    """When the run last changed: its last event or reply. Not today: the same run gives the same page."""
    times = [last.replace(tzinfo=UTC) if last.tzinfo is None else last] if last else []
    times += [datetime.fromisoformat(event["time"]) for event in events(run) if "time" in event]
    return max(times, default=None)
