"""manifest → README.md of a release. Every number on the card comes from the manifest; nothing is typed twice."""

from collections.abc import Mapping
from typing import Any, Final

from huggingface_hub import DatasetCardData
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from builder.resources import resource
from builder.schema import RELEASE_CANDIDATES, RELEASE_KINDS

# The Hub's legal buckets; anything else makes its metadata invalid.
_SIZES: Final = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)


def render_card(manifest: Mapping[str, Any]) -> str:
    """The card of a release: legal front matter, then the text of `data_cards/card.md.jinja`."""
    environment = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = lambda value: "not counted" if value is None else f"{value:,}"
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    template = environment.from_string(resource("data_cards", "card.md.jinja").read_text(encoding="utf-8"))
    kinds = sorted({entry["kind"] for entry in manifest["schedule"]})
    body = template.render(
        manifest=manifest,
        repo=manifest["repo"] or "PATH/OF/THE/RELEASE",
        pinned=bool(manifest["repo"]),
        configs=_configs(manifest),
        first=manifest["schedule"][0]["config"],
        columns={kind: _columns(RELEASE_KINDS[kind]) for kind in kinds},
        candidate_columns=_columns(RELEASE_CANDIDATES),
    )
    return f"---\n{_front_matter(manifest)}\n---\n\n{body.strip()}\n"


def _front_matter(manifest: Mapping[str, Any]) -> str:
    rows = sum(entry["rows"] for entry in manifest["schedule"])
    data = DatasetCardData(
        pretty_name=manifest["recipe_name"],
        license=(manifest["license"] or "unknown").lower(),  # the Hub's identifiers are lower case
        task_categories=["text-generation"],
        size_categories=[next((name for limit, name in _SIZES if rows < limit), "100M<n<1B")],
        tags=["synthetic", "distillation", "reasoning-traces"],
        configs=[
            {
                "config_name": config["name"],
                "data_files": [{"split": "train", "path": f"data/{config['name']}/train-*.parquet"}],
                **({"default": True} if index == 0 else {}),
            }
            for index, config in enumerate(_configs(manifest))
        ],
    )
    return str(data.to_yaml())


def _configs(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Configs in training order, then `candidates` and `logprobs`, with rows and bytes."""
    names = [entry["config"] for entry in manifest["schedule"]]
    found: dict[str, dict[str, Any]] = {}
    for file in manifest["files"]:
        parts = file["path"].split("/")
        if parts[0] == "data":
            entry = found.setdefault(parts[1], {"name": parts[1], "rows": 0, "bytes": 0})
            entry["rows"] += file["rows"]
            entry["bytes"] += file["bytes"]
    ordered = names + sorted(name for name in found if name not in names)
    return [found[name] for name in ordered]


def _columns(schema: Any) -> list[dict[str, str]]:
    return [
        {"name": field.name, "type": str(field.type), "unit": (field.metadata or {})[b"description"].decode()}
        for field in schema
    ]
