"""Results of shards, as `--json` has them, made one."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from builder.tally import Tally


def tally_of(values: Mapping[str, Any]) -> Tally:
    """The tally in a result that may hold more."""
    known = {each.name for each in fields(Tally)}
    return Tally(**{name: value for name, value in values.items() if name in known})


def tally_of_done(result: Mapping[str, Any]) -> Tally:
    """Of a step that counts replies, not requests: how far an ended shard is."""
    number = result.get("scored", result.get("computed", 0))
    return Tally(total=number, stored_before=number)


def sum_of(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Results of shards as one: numbers add up, but rounds, of which all did some; else the first shard's word."""
    whole: dict[str, Any] = {}
    for result in results:
        for name, value in result.items():
            if name == "rounds":
                whole[name] = max(whole.get(name, 0), value)
            else:
                whole[name] = _plus(whole[name], value) if name in whole else value
    return whole


def _plus(one: Any, other: Any) -> Any:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return sum_of([one, other])
    if isinstance(one, bool) or isinstance(other, bool):
        return bool(one) or bool(other)
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one + other
    return other if one is None else one
