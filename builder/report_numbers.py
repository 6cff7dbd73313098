"""What the report counts: size and accuracy. Reads a run, returns plain values."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

import polars as pl

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


def latest_time(run: Run, last: datetime | None) -> datetime | None:
    """When the run last changed: its last event or reply. Not today: the same run gives the same page."""
    times = [last.replace(tzinfo=UTC) if last.tzinfo is None else last] if last else []
    times += [datetime.fromisoformat(event["time"]) for event in events(run) if "time" in event]
    return max(times, default=None)
