"""What changed from version to version of a release, read off their manifests."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from builder.release_held_out import HELD_OUT, TRAIN

_MIX_SETTINGS: Final = ("keep", "length_cap", "cut", "temperature", "off_policy_ratio")

Facts = dict[tuple[str, str], tuple[Any, Any]]
"""What decides a version, by kind and name: the value that is shown, and the one that is compared."""


def history(parent: Mapping[str, Any] | None, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry a version, the oldest first: the parent's history, then this version with what it changes.

    `manifest` needs no key `history` yet. An entry is {version, created, rows by config, changes}; `changes` is empty
    for a first version and null where nobody recorded them, else a list of {what, name, before, after}: before is null
    for what is new, after for what is gone. Rows of a config are those of split `train`.
    """
    if parent is None:
        return [_first(manifest)]
    return [*(parent.get("history") or [_first(parent)]), _entry(manifest, _changes(parent, manifest))]


def data_files(manifest: Mapping[str, Any], split: str = TRAIN) -> dict[str, list[Mapping[str, Any]]]:
    """Data files of one split of a release by config, in the order of the manifest."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for file in manifest["files"]:
        parts = PurePosixPath(file["path"]).parts
        if parts[0] == "data" and parts[-1].startswith(f"{split}-"):
            found.setdefault(parts[1], []).append(file)
    return found


def _first(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return _entry(manifest, [] if manifest["parent"] is None else None)


def _entry(manifest: Mapping[str, Any], changes: list[dict[str, Any]] | None) -> dict[str, Any]:
    files = data_files(manifest)
    names = dict.fromkeys([*(stage["config"] for stage in manifest["schedule"]), *files])
    rows = {name: sum(file["rows"] for file in files[name]) for name in names}
    return {"version": manifest["version"], "created": manifest["created"], "rows": rows, "changes": changes}


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    old, new = _facts(before), _facts(after)
    for what, name in [*old, *(key for key in new if key not in old)]:
        (shown, decides), (shown_now, decides_now) = (facts.get((what, name), (None, None)) for facts in (old, new))
        if decides != decides_now:
            found.append({"what": what, "name": name, "before": shown, "after": shown_now})
    return found


def _facts(manifest: Mapping[str, Any]) -> Facts:
    selection = manifest["selection"]
    plain = {("init of stage", stage["stage"]): stage["init"] for stage in manifest["schedule"]}
    plain |= {("epochs of stage", stage["stage"]): stage["epochs"] for stage in manifest["schedule"]}
    plain |= {("rule", rule): "asked for" for rule in selection["rules"]}
    plain |= {("selection", name): selection[name] for name in ("selector", "order", "keep")}
    plain |= {("parameter", name): value for name, value in sorted(selection["params"].items())}
    plain |= {("SQL", path): sha256 for path, sha256 in sorted(manifest["sql"].items())}
    for name in ("teacher", "student"):
        plain |= {(name, key): value for key, value in (manifest[name] or {}).items()}
    plain |= {("sampling", name): value for name, value in sorted((manifest["sampling"] or {}).items())}
    plain |= {
        ("mixed policy", name): manifest["mixed_policy"][name] for name in _MIX_SETTINGS if manifest["mixed_policy"]
    }
    if manifest["rollout"]:
        plain["mixed policy", "checkpoint"] = manifest["rollout"]["weights_sha256"]
    for source in manifest["prompts"]:
        name = " at ".join(filter(None, (source["source"], source["revision"], source["license"])))
        plain["source", name] = source["rows"]
    plain["license", "license"] = manifest["license"]
    if gone := manifest.get("withdrawn"):
        plain["withdrawn", "prompts and replies"] = len(gone)
    if held_out := manifest.get("held_out"):
        plain["held out", "share of prompts"] = held_out["share"]
    hashes = {stage["config"]: stage["rowset_hash"] for stage in manifest["schedule"]}
    configs = {
        ("config", name): (sum(file["rows"] for file in files), hashes.get(name, [_rows_of(file) for file in files]))
        for name, files in data_files(manifest).items()
    }
    configs |= {
        ("held-out rows of config", name): (sum(file["rows"] for file in files), [_rows_of(file) for file in files])
        for name, files in data_files(manifest, HELD_OUT).items()
    }
    return configs | {key: (_scalar(value), value) for key, value in plain.items()}


def _rows_of(file: Mapping[str, Any]) -> str:
    """What tells the rows of a file: their hash, or that of its bytes where nobody recorded it."""
    return str(file.get("rowset_hash", file["sha256"]))


def _scalar(value: Any) -> str | int | float | None:
    return value if isinstance(value, str | int | float | None) else str(value)
