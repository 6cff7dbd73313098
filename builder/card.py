"""manifest → README.md of a release. Every number on the card comes from the manifest; nothing is typed twice."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import quote

from jinja2 import FunctionLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from markupsafe import Markup

from builder import card_text
from builder.card_merge import generated_card, merge_card
from builder.card_plots import FOLDER
from builder.card_text import code, number, prose
from builder.config import Selection
from builder.licenses import hub_license, license_conflicts
from builder.release_held_out import HELD_OUT, SPLITS
from builder.release_history import data_files
from builder.release_statistics import CANDIDATES, MEASURES
from builder.resources import resource
from builder.schema import LOGPROBS, RELEASE_CANDIDATES, RELEASE_KINDS, VERDICTS

__all__ = ["merge_card", "render_card"]

# The Hub's legal buckets; anything else makes its metadata invalid.
_SIZES: Final = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
_HASH: Final = re.compile("[0-9a-f]{40,}")
_OTHER_CONFIGS: Final = {CANDIDATES: RELEASE_CANDIDATES, "logprobs": LOGPROBS.schema}
_PLOTS: Final = {
    "student-tokens": "Histograms of student tokens by config and temperature",
    "completion-tokens": "Histograms of completion tokens by config and temperature",
    "teacher-share": "Histograms of the share of teacher sentences by config and temperature",
    "pass-rate": "Histogram of the share of correct replies by prompt",
}


def render_card(manifest: Mapping[str, Any]) -> str:
    """The card of a release: legal front matter, then the text of `data_cards/card.md.jinja` between markers.

    `manifest` may lack `statistics` and `history`; then the card says what it does not know. Raises ReleaseError where
    huggingface_hub would read other front matter than was written.
    """
    body = _environment().get_template("card.md.jinja").render(manifest=_complete(manifest), **_context(manifest))
    return generated_card(_front_matter(manifest), re.sub(r"\n{3,}", "\n\n", body))


@cache
def _environment() -> SandboxedEnvironment:
    """Templates, compiled once; every string that they write is made inert unless a filter made it fit."""
    environment = SandboxedEnvironment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,  # of the templates that are included
        finalize=_inert,
        loader=FunctionLoader(lambda name: resource("data_cards", name).read_text(encoding="utf-8")),
    )
    for place in (card_text.bibtex, card_text.cell, card_text.code, card_text.quoted, card_text.shell, _change):
        environment.filters[place.__name__.strip("_")] = lambda value, place=place: Markup(place(value))
    environment.filters["number"] = number
    environment.filters["json"] = lambda value: json.dumps(value, sort_keys=True, ensure_ascii=False)
    return environment


def _inert(value: Any) -> Any:
    """What a template writes: words of a sentence, unless a filter made the value fit for its place."""
    return prose(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _complete(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the keys that a release may lack."""
    teacher = manifest["teacher"] and {"license": None, "tokenizer": None, **manifest["teacher"]}
    student = manifest["student"] and {"system_prompt": None, **manifest["student"]}
    absent: dict[str, Any] = {
        "withdrawn": [],
        "held_out": None,
        "quotas": [],
        "thinking": [],
        "rewrite": None,
        "reviews": None,
    }
    return {**absent, **manifest, "teacher": teacher, "student": student}


def _context(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the template reads beside the manifest, all of it computed from there."""
    configs = _configs(manifest)
    names = [config["name"] for config in configs]
    repo = manifest["repo"] or "PATH/OF/THE/RELEASE"
    selector = manifest["selection"]["selector"]
    statistics = manifest.get("statistics")
    is_of_prompts = all(stage["kind"] == "grpo" for stage in manifest["schedule"])
    return {
        "repo": repo,
        "pinned": bool(manifest["repo"]),
        "pinned_repo": f"{repo}@{manifest['version']}" if manifest["repo"] else repo,
        "key": "-".join(re.findall(r"[a-z0-9.]+", f"{manifest['recipe_name']} {manifest['version']}".lower())),
        "configs": configs,
        "names": names,
        "is_of_prompts": is_of_prompts,
        "first": manifest["schedule"][0]["config"],
        "columns": {kind: _columns(RELEASE_KINDS[kind]) for kind in sorted({e["kind"] for e in manifest["schedule"]})},
        "other_columns": {name: _columns(_OTHER_CONFIGS[name]) for name in names if name in _OTHER_CONFIGS},
        "conflicts": manifest.get("license_conflicts")
        or license_conflicts(manifest["license"], manifest["prompts"], manifest["teacher"], manifest.get("rewrite")),
        "selector": _sql_link(manifest, "selectors", selector)[0],
        "is_by_divergence": not is_of_prompts and Selection(rules=[], selector=selector).needs_logprobs,
        "funnel": [
            {**row, **dict(zip(("link", "sha256"), _sql_link(manifest, "rules", row["rule"]), strict=True))}
            for row in manifest["funnel"]
        ],
        "history": manifest.get("history") or [],
        "statistics": statistics and {**statistics, "configs": list(_with_others(statistics))},
        "plots": list(_plots(manifest)),
        **_numbers(manifest, statistics),
    }


def _numbers(manifest: Mapping[str, Any], statistics: Mapping[str, Any] | None) -> dict[str, Any]:
    """Rows of the tables of quantiles, and what the limits say: verdicts that decide, rows without a score."""
    if statistics is None:
        return {}
    spreads = [
        {"config": one["config"], "temperature": one["temperature"], "measure": measure, **one[measure]}
        for one in statistics["configs"]
        for measure in MEASURES
        if one[measure]
    ]
    decided = []
    for line in statistics["verdicts"]:
        if line["verifier"] is None and line["config"] != CANDIDATES:
            rows = sum(line[name] for name in (*VERDICTS, "unverified"))
            decided.append({**line, "rows": rows, "unsure": rows - line["correct"] - line["wrong"]})
    unscored = []
    for one in statistics["configs"]:
        missing = one["rows"] - (one["teacher_sentences"] or {"known": 0})["known"]
        if manifest["student"] and one["kind"] == "sft" and missing:
            unscored.append({**one, "missing": missing})
    return {"spreads": spreads, "decided": decided, "unscored": unscored, "verdicts": _verdict_lines(statistics)}


def _verdict_lines(statistics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Verdicts by config and verifier. Where a config knows one verifier, its line is the one that decides as well."""
    named = [line for line in statistics["verdicts"] if line["verifier"] is not None]
    alone = {
        line["config"]: {**line, "verifier": None}
        for line in named
        if [other["config"] for other in named].count(line["config"]) == 1
    }
    return [
        {**line, "decides": line["verifier"] is None or alone.get(line["config"]) in statistics["verdicts"]}
        for line in statistics["verdicts"]
        if line["verifier"] is not None or alone.get(line["config"]) != line
    ]


def _with_others(statistics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Configs with the number of rows of the domains that are not named."""
    for one in statistics["configs"]:
        yield {**one, "others": one["rows"] - sum(part["rows"] for part in one["domains"])}


def _plots(manifest: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Plots that are files of the release."""
    for file in manifest["files"]:
        path = PurePosixPath(file["path"])
        if str(path.parent) == FOLDER and path.stem in _PLOTS:
            yield {"path": str(path), "alt": _PLOTS[path.stem]}


def _sql_link(manifest: Mapping[str, Any], kind: str, name: str) -> tuple[Markup, str | None]:
    """A rule or selector as a link to its file in the release, and the first digits of its hash."""
    stem = PurePosixPath(name).stem if name.endswith((".sql", ".py")) else name
    for path, sha256 in manifest["sql"].items():
        if PurePosixPath(path).parent.name == kind and PurePosixPath(path).stem == stem:
            return Markup(f"[{code(stem)}](.builder/{quote(path)})"), sha256[:12]
    return Markup(code(stem)), None


def _change(change: Mapping[str, Any]) -> str:
    """One entry of a version's changes in words."""
    what, name, before, after = (change[key] for key in ("what", "name", "before", "after"))
    label = f"{prose(what)} {code(name)}" if what != name else prose(what)
    if what in ("config", "held-out rows of config"):
        old, new = (number(value) for value in (before, after))
        if before is None:
            return f"{label} is new: {new} rows"
        if after is None:
            return f"{label} is gone ({old} rows)"
        return (
            f"{label}: {old} → {new} rows" if before != after else f"{label}: {new} rows as before, not the same ones"
        )
    before, after = (f"{value[:12]}…" if _HASH.fullmatch(str(value)) else value for value in (before, after))
    if before is None:
        return f"{label} is new" if what == "rule" else f"{label}: {code(after)}, new"
    if after is None:
        return f"{label} is gone" if what == "rule" else f"{label}: gone, was {code(before)}"
    return f"{label}: {code(before)} → {code(after)}"


def _front_matter(manifest: Mapping[str, Any]) -> dict[str, Any]:
    rows = sum(entry["rows"] for entry in manifest["schedule"])
    tags = ["synthetic", "distillation", "reasoning-traces"] if manifest["teacher"] else ["reinforcement-learning"]
    return {
        **hub_license(manifest["license"]),
        "size_categories": [next((name for limit, name in _SIZES if rows < limit), "100M<n<1B")],
        "task_categories": ["text-generation"],
        "pretty_name": manifest["recipe_name"],
        "tags": tags,
        "configs": [
            {
                "config_name": config["name"],
                "data_files": [
                    {"split": split, "path": f"data/{config['name']}/{split}-*.parquet"}
                    for split in SPLITS[: 1 + bool(config["held_out"])]
                ],
                **({"default": True} if index == 0 else {}),
            }
            for index, config in enumerate(_configs(manifest))
        ],
    }


def _configs(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Configs in training order, then `candidates` and `logprobs`: rows to train on, rows held out, bytes of both."""
    found, held = data_files(manifest), data_files(manifest, HELD_OUT)
    names = [entry["config"] for entry in manifest["schedule"]]
    return [
        {
            "name": name,
            "rows": sum(file["rows"] for file in found[name]),
            "held_out": sum(file["rows"] for file in held.get(name, [])),
            "bytes": sum(file["bytes"] for file in (*found[name], *held.get(name, []))),
        }
        for name in [*names, *sorted(name for name in found if name not in names)]
    ]


def _columns(schema: Any) -> list[dict[str, str]]:
    return [
        {"name": field.name, "type": str(field.type), "unit": (field.metadata or {})[b"description"].decode()}
        for field in schema
    ]
