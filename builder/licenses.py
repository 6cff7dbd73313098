"""What the licenses of sources and teacher ask of a release, by the table `data_cards/licenses.yaml`.

The table is short and no legal advice. What it does not hold is reported as not checked; nothing is guessed from names.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import yaml

from builder.resources import resource


def license_conflicts(
    license_: str | None,
    sources: Iterable[Mapping[str, Any]],
    teacher: Mapping[str, Any] | None = None,
    rewriter: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """What sources ask and a release under `license_` does not give.

    One JSON-able {source, license, kind, reason} a source that has something against it. `sources` have keys `source`
    and `license`, as `prompts` of a manifest; `teacher` and `rewriter` have `model` and, where it is declared,
    `license`. Kinds `non-commercial`, `share-alike` and `no-derivatives` are conflicts; `unknown` is what the table
    cannot judge.
    """
    asked = [(str(one["source"]), one["license"]) for one in sources]
    for name, model in (("teacher", teacher), ("rewriting model", rewriter)):
        if model is not None and model.get("license"):
            asked.append((f"{name} {model['model']}", model["license"]))
    found = []
    for source, declared in dict.fromkeys(asked):
        kind, reason = _judge(declared, license_)
        if kind is not None:
            found.append({"source": source, "license": declared, "kind": kind, "reason": reason})
    return found


def hub_license(declared: str | None) -> dict[str, str]:
    """Front matter of a license: `license`, and `license_name` where the Hub does not know it."""
    name = _identifier(declared)
    if name is None:
        return {"license": "unknown"}
    if any(name in names for names in _table().values()):
        return {"license": name}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", name).strip("-.") or "unnamed"}


def _judge(declared: str | None, license_: str | None) -> tuple[str | None, str]:
    """Kind and reason of the first thing that stands against a source's license; kind None where nothing does."""
    table, asks, gives = _table(), _identifier(declared), _identifier(license_)
    known = {name for group, names in table.items() if group != "unchecked" for name in names}
    of_release = license_ or "a license that is not stated"
    alike = table["share_alike"].get(asks, [gives])
    no_money = table["non_commercial"]
    checks: list[tuple[bool, str | None, str]] = [
        (asks in (None, "unknown"), "unknown", "states no license"),
        (asks not in known, "unknown", f"is under {declared}, whose terms were not checked"),
        (asks in table["no_derivatives"], "no-derivatives", f"is under {declared}: changed copies may not be shared"),
        (asks in table["free"] or asks == gives, None, ""),
        (gives not in known, "unknown", f"is under {declared}, not checked against {of_release} of this dataset"),
        (
            asks in no_money and gives not in no_money,
            "non-commercial",
            f"is under {declared}, for non-commercial use only; {gives} allows commercial use",
        ),
        (gives not in alike, "share-alike", f"is under {declared}, to be shared under {' or '.join(map(str, alike))}"),
    ]
    return next(((kind, reason) for applies, kind, reason in checks if applies), (None, ""))


def _identifier(declared: str | None) -> str | None:
    """A declared license as the Hub writes it: `CC BY 4.0` and `cc-by-4.0` are one. None where none is stated."""
    if declared is None or not declared.strip():
        return None
    return re.sub(r"[\s_]+", "-", declared.strip().lower()).removesuffix("-license")


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(resource("data_cards", "licenses.yaml").read_text(encoding="utf-8"))
    return table
