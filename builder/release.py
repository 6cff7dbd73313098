"""selection → release: an immutable directory that anyone can pin, check and train on. Old state or new, never half."""

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import jsonschema
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from builder import journal
from builder.card import render_card
from builder.config import Recipe
from builder.errors import ReleaseError
from builder.identity import canonical_json, rowset_hash, sha256_hex
from builder.models import resolved_revision
from builder.release_rows import candidate_rows, stage_rows
from builder.resources import resource
from builder.selection import SelectionResult, plan_selection
from builder.store import Run, file_sha256, publish_file, sync_directory

FORMAT: Final = 1
_ROW_GROUP_BYTES: Final = 100_000_000
_SHARD_BYTES: Final = 500_000_000
# The Hub's viewer needs a page index; content-defined chunks let a changed file upload only what changed.
_PARQUET: Final[dict[str, Any]] = {
    "compression": "zstd",
    "compression_level": 3,
    "write_page_index": True,
    "use_content_defined_chunking": True,
}
_PACKAGES: Final = (
    "tempered", "datasets", "duckdb", "huggingface-hub", "math-verify", "msgspec", "numpy", "openai", "polars",
    "pyarrow", "pydantic", "torch", "transformers",
)  # fmt: skip


@dataclass(frozen=True)
class Release:
    """A release on disk. `is_new` is False when its rows were released before and nothing was written."""

    path: Path
    manifest: Mapping[str, Any]
    is_new: bool

    @property
    def version(self) -> str:
        return str(self.manifest["version"])


def release(run: Run, recipe: Recipe, selected: SelectionResult, *, recipe_dir: Path | None = None) -> Release:
    """Write v(N+1) of what `selected` chose, or return vN when its rows are the same.

    Raises ReleaseError when a stage has no rows or the disk refuses; earlier releases are untouched.
    """
    sql = _sql_texts(recipe, recipe_dir)
    parent = latest_release(run)
    number = int(parent.version[1:]) + 1 if parent else 1
    run.releases.mkdir(parents=True, exist_ok=True)
    work = run.releases / f".v{number}-{uuid.uuid4().hex}"
    try:
        schedule = _write_stages(work, run, recipe, parent)
        candidates = candidate_rows(run, recipe)
        _write_config(work, "candidates", candidates)
        if recipe.release.logprobs:
            _write_config(work, "logprobs", _kept_logprobs(run))
        if parent is not None and _data_files(work) == _data_files(parent.path):
            shutil.rmtree(work)
            return Release(parent.path, parent.manifest, is_new=False)
        _write_texts(work, recipe, sql)
        manifest = _manifest(work, run, recipe, selected, sql, schedule, f"v{number}", parent)
        jsonschema.validate(manifest, json.loads(resource("data_cards", "manifest.schema.json").read_text("utf-8")))
        _write(work / "README.md", render_card(manifest))
        _write(work / ".builder" / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        for folder in {path.parent for path in work.rglob("*")}:
            sync_directory(folder)
        path = run.releases / f"v{number}"
        work.rename(path)
        sync_directory(run.releases)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise ReleaseError(
            f"Writing release v{number} failed: {error}. Earlier releases are untouched and nothing half-written "
            "counts. Free space or mend the disk, then rerun builder release."
        ) from error
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return Release(path, manifest, is_new=True)


def latest_release(run: Run) -> Release | None:
    """The highest version with a manifest; None before the first."""
    numbers = [int(path.name[1:]) for path in run.releases.glob("v[0-9]*") if path.name[1:].isdigit()]
    for number in sorted(numbers, reverse=True):
        path = run.releases / f"v{number}"
        if (path / ".builder" / "manifest.json").is_file():
            return Release(path, read_manifest(path), is_new=False)
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a release directory. Raises ReleaseError where there is none, or one of another format."""
    try:
        manifest: dict[str, Any] = json.loads((path / ".builder" / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} is no release: its manifest cannot be read ({error}).") from error
    if manifest.get("format") != FORMAT:
        raise ReleaseError(
            f"{path} has manifest format {manifest.get('format')!r}; this version reads {FORMAT}. Upgrade tempered."
        )
    return manifest


def _sql_texts(recipe: Recipe, recipe_dir: Path | None) -> dict[str, str]:
    """The rules and the selector that the recipe names, by their path below `.builder/`."""
    plan = plan_selection(recipe, recipe_dir)
    texts = {f"sql/rules/{rule.name}.sql": rule.text for rule in plan.rules}
    return texts | {f"sql/selectors/{plan.selector.name}.sql": plan.selector.text}


def _write_stages(work: Path, run: Run, recipe: Recipe, parent: Release | None) -> list[dict[str, Any]]:
    """One config a stage, in training order; a stage whose rows the parent has is taken over file for file."""
    before = {entry["config"]: entry for entry in parent.manifest["schedule"]} if parent else {}
    schedule = []
    for name, stage, rows in stage_rows(run, recipe):
        if rows.num_rows == 0:
            raise ReleaseError(
                f"Stage {name!r} has no rows, so it cannot be released: a trainer would skip it in silence. "
                "Look at the funnel of builder select; loosen a rule, or take the stage out of the recipe."
            )
        frame = pl.DataFrame(pl.from_arrow(rows))
        digest = rowset_hash(frame, rows.column_names)
        if parent is not None and before.get(name, {}).get("rowset_hash") == digest:
            shutil.copytree(parent.path / "data" / name, work / "data" / name)
        else:
            _write_config(work, name, rows)
        tokens = frame["student_tokens"] if "student_tokens" in frame.columns else None
        schedule.append(
            {
                "stage": name,
                "config": name,
                "kind": stage.kind,
                "init": stage.init,
                "rows": rows.num_rows,
                "tokens": int(tokens.sum()) if tokens is not None and not tokens.has_nulls() else None,
                "rowset_hash": digest,
                "epochs": stage.epochs,
            }
        )
    return schedule


def _write_config(work: Path, config: str, rows: pa.Table) -> None:
    """Parquet shards of one config, synced."""
    folder = work / "data" / config
    folder.mkdir(parents=True)
    shards = max(1, -(-rows.nbytes // _SHARD_BYTES))
    size = max(1, -(-rows.num_rows // shards))
    group = max(1, int(_ROW_GROUP_BYTES / max(1, rows.nbytes / max(1, rows.num_rows))))
    for shard in range(shards):
        path = folder / f"train-{shard:05d}-of-{shards:05d}.parquet"
        temporary = folder / f".{path.name}"
        pq.write_table(rows.slice(shard * size, size), temporary, row_group_size=group, **_PARQUET)
        publish_file(temporary, path)


def _kept_logprobs(run: Run) -> pa.Table:
    """Teacher logprobs of the selected replies."""
    kept = run.scan("selection").filter(pl.col("kind") == "sft").select(pl.col("grain_id").alias("response_id"))
    rows = run.scan("logprobs").join(kept.unique(), on="response_id", how="semi").sort("response_id").collect()
    return rows.to_arrow().cast(run.schema("logprobs"))


def _write_texts(work: Path, recipe: Recipe, sql: Mapping[str, str]) -> None:
    """The recipe without endpoints (addresses of servers are nobody's business), the SQL, the package versions."""
    resolved = recipe.decisive()
    _write(work / ".builder" / "recipe.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    for path, text in sql.items():
        _write(work / ".builder" / path, text)
    pins = "".join(f"{name}=={found}\n" for name, found in packages().items())
    _write(work / ".builder" / "constraints.txt", pins)


def _manifest(
    work: Path,
    run: Run,
    recipe: Recipe,
    selected: SelectionResult,
    sql: Mapping[str, str],
    schedule: list[dict[str, Any]],
    name: str,
    parent: Release | None,
) -> dict[str, Any]:
    teacher = recipe.require_teacher()
    student = recipe.student
    hashes = {path: sha256_hex(text) for path, text in sorted(sql.items())}
    return {
        "format": FORMAT,
        "version": name,
        "build_id": build_id(run, recipe, hashes),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "parent": parent.version if parent else None,
        "recipe_name": recipe.name,
        "recipe_hash": recipe.hash(),
        "seed": recipe.generation.seed,
        "license": recipe.release.license,
        "repo": recipe.release.repo,
        "sql": hashes,
        "prompts": prompt_sources(run),
        "teacher": {"model": teacher.model, "revision": teacher.revision, "tokenizer": recipe.public_tokenizer()},
        "student": None
        if student is None
        else {
            "model": recipe.public_student(),
            "revision": resolved_revision(student.model, student.revision),
            "system_prompt": student.system_prompt,
        },
        "sampling": recipe.generation.model_dump(mode="json"),
        "selection": {
            "selection_id": selected.selection_id,
            "order": recipe.selection.order,
            "rules": list(recipe.selection.rules),
            "selector": recipe.selection.selector,
            "params": dict(recipe.selection.params),
            "keep": recipe.selection.keep,
        },
        "funnel": [
            {"rule": row.rule_name, "breaks": row.breaks, "breaks_alone": row.breaks_alone, "tokens": row.tokens}
            for row in selected.funnel
        ],
        "rollout": None,
        "files": [_file_entry(work, path) for path in sorted(work.rglob("*")) if path.is_file()],
        "schedule": schedule,
        "calls": calls(run),
        "packages": packages(),
    }


def build_id(run: Run, recipe: Recipe, sql_hashes: Mapping[str, str]) -> str:
    """64 hex digits of what decides the output: rows of the input tables, the recipe, the SQL."""
    tables = {}
    for name in ("prompts", "responses", "scores", "verdicts", "features"):
        frame = run.read(name)
        tables[name] = rowset_hash(frame, run.content_columns(name))
    return sha256_hex(canonical_json({"tables": tables, "recipe": recipe.decisive(), "sql": dict(sql_hashes)}))


def prompt_sources(run: Run) -> list[dict[str, Any]]:
    """Sources of the prompts with the number of prompts that each one gave."""
    frame = run.scan("prompts").select(pl.col("sources").explode()).unnest("sources")
    grouped = frame.group_by("source", "revision", "license").len("rows").sort("source", "revision", "license")
    return grouped.collect().to_dicts()


def calls(run: Run) -> dict[str, float | None]:
    """What was asked and paid, counted from the journal and the replies."""
    attempts = journal.counts(run.journal_dir)
    total = run.scan("responses").select(
        pl.len().alias("replies"),
        pl.col("prompt_tokens").sum(),
        pl.col("completion_tokens").sum(),
        pl.col("cost_usd").sum().alias("cost_usd"),
        pl.col("cost_usd").is_null().all().alias("unpriced"),
    )
    row = total.collect().row(0, named=True)
    return {
        "attempts": sum(attempts.values()),
        "maybe_billed": attempts.get("maybe_billed", 0),
        "replies": row["replies"],
        "prompt_tokens": row["prompt_tokens"],
        "completion_tokens": row["completion_tokens"],
        "cost_usd": None if row["unpriced"] else row["cost_usd"],
    }


def packages() -> dict[str, str]:
    """Versions of the packages that a rebuild depends on, those installed here."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _data_files(root: Path) -> dict[str, str]:
    """Hashes of the data files below a release."""
    return {path.relative_to(root).as_posix(): file_sha256(path) for path in sorted((root / "data").rglob("*.parquet"))}


def _file_entry(work: Path, path: Path) -> dict[str, Any]:
    rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None
    return {
        "path": path.relative_to(work).as_posix(),
        "sha256": file_sha256(path),
        "bytes": path.stat().st_size,
        "rows": rows,
    }


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    publish_file(temporary, path)
