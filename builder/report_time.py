"""When replies came, what they cost, and which steps ran: from `received_at` and events.jsonl."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, Final

from builder.console import shown
from builder.report_replies import Replies
from builder.schema import PAID_ROLES

_BUCKETS: Final = 48
_SECONDS: Final = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 10800, 21600, 43200, 86400, 604800, 2592000)
_SPANS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
_STEPS: Final = 40
_FACTS: Final = 4
"""Steps that the page lists, the latest, and numbers of each."""


@dataclass(frozen=True)
class Throughput:
    """Paid replies by time. `starts` are the beginnings of buckets of `seconds`, one after the other; `cost_usd` adds
    up over time, None where no price was declared."""

    seconds: int
    starts: tuple[datetime, ...]
    replies: tuple[int, ...]
    tokens: tuple[int, ...]
    cost_usd: tuple[float, ...] | None

    @property
    def unit(self) -> str:
        """The bucket in words: 10 minutes."""
        size, name = next((size, name) for size, name in _SPANS if self.seconds % size == 0)
        number = self.seconds // size
        return name if number == 1 else f"{number} {name}s"


@dataclass(frozen=True)
class Step:
    """One line of events.jsonl: its first few numbers that are not zero, in words."""

    time: str
    step: str
    facts: str


def throughput(replies: Replies) -> Throughput | None:
    """Replies, completion tokens and USD over time; None where no reply says when it came."""
    if not replies.of_run:
        return None
    roles = ", ".join(f"'{role}'" for role in PAID_ROLES)
    paid = f"responses where role in ({roles}) and received_at is not null"
    (span,) = replies.ask(
        "select epoch(min(received_at)) as first, epoch(max(received_at)) as last, count(cost_usd) as priced "
        f"from {paid}"
    )
    if span["first"] is None:
        return None
    long = span["last"] - span["first"]
    seconds = next((size for size in _SECONDS if long / size < _BUCKETS), None) or (
        86400 * (int(long / _BUCKETS / 86400) + 1)
    )
    rows = replies.ask(
        f"select (epoch(received_at) // {seconds})::bigint as bucket, count(*) as replies, "
        "coalesce(sum(completion_tokens), 0)::bigint as tokens, coalesce(sum(cost_usd), 0) as cost "
        f"from {paid} group by bucket"
    )
    found = {row["bucket"]: row for row in rows}
    places = range(min(found), max(found) + 1)

    def series(name: str) -> list[Any]:
        return [found[place][name] if place in found else 0 for place in places]

    begin = datetime.fromtimestamp(0, UTC)
    return Throughput(
        seconds=seconds,
        starts=tuple(begin + timedelta(seconds=place * seconds) for place in places),
        replies=tuple(series("replies")),
        tokens=tuple(series("tokens")),
        cost_usd=tuple(accumulate(float(one) for one in series("cost"))) if span["priced"] else None,
    )


def steps(found: Sequence[Mapping[str, Any]]) -> list[Step]:
    """The latest events, the oldest of them first."""
    return [Step(str(event.get("time", "")), str(event["step"]), "; ".join(_facts(event))) for event in found[-_STEPS:]]


def _facts(event: Mapping[str, Any]) -> list[str]:
    numbers = {
        name: value
        for name, value in event.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and value
    }
    return [f"{name.replace('_', ' ')} {shown(value)}" for name, value in list(numbers.items())[:_FACTS]]
