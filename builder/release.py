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
import yaml

from builder import journal
from builder.card import render_card
from builder.config import MixedPolicy, Recipe
from builder.decontaminate import benchmarks_id
from builder.errors import ReleaseError
from builder.identity import canonical_json, rowset_hash, sha256_hex
from builder.models import resolved_revision
from builder.release_files import file_entry, put_config, put_text, sync_folders
from builder.release_rows import candidate_rows, fit, score_remarks, stage_rows, unplaced
from builder.resources import resource
from builder.schema import PAID_ROLES
from builder.selection import SelectionResult, plan_selection
from builder.stages import is_mixed
from builder.store import Run, sync_directory

FORMAT: Final = 1
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
    """Write v(N+1) of what `selected` chose, or return vN when its rows, schedule and licence are the same.

    Raises ReleaseError when the selection is not the recipe's, a stage has no rows or the disk refuses; earlier
    releases are untouched.
    """
    sql = _sql_texts(run, recipe, selected, recipe_dir)
    parent = latest_release(run)
    number = int(parent.version[1:]) + 1 if parent else 1
    run.releases.mkdir(parents=True, exist_ok=True)
    work = run.releases / f".v{number}-{uuid.uuid4().hex}"
    try:
        schedule, taken = _write_configs(work, run, recipe, parent)
        if parent is not None and taken and _same_frame(parent, recipe, schedule, list((work / "data").iterdir())):
            shutil.rmtree(work)
            return Release(parent.path, parent.manifest, is_new=False)
        _write_texts(work, recipe, sql)
        manifest = _manifest(work, run, recipe, selected, sql, schedule, f"v{number}", parent)
        jsonschema.validate(manifest, json.loads(resource("data_cards", "manifest.schema.json").read_text("utf-8")))
        put_text(work / "README.md", render_card(manifest))
        put_text(work / ".builder" / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        sync_folders(work)
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


def _sql_texts(run: Run, recipe: Recipe, selected: SelectionResult, recipe_dir: Path | None) -> dict[str, str]:
    """Every file that made the selection, by its path below `.builder/`."""
    plan = plan_selection(recipe, recipe_dir, mixed=is_mixed(run, recipe))
    made = {plan.selection_id, *run.ids("selection", "selection_id")}
    if made != {selected.selection_id}:
        raise ReleaseError(
            f"Selection {selected.selection_id} is not the one of the table and of today's recipe and SQL "
            f"({', '.join(sorted(made))}). A release names the SQL that made its rows; run builder select again."
        )
    return {f"sql/{file.kind}/{file.path.name}": file.text for file in plan.files}


def _write_configs(work: Path, run: Run, recipe: Recipe, parent: Release | None) -> tuple[list[dict[str, Any]], bool]:
    """Configs of the stages in training order, then `candidates` and `logprobs`; the schedule, and whether all of them
    were taken over from the parent."""
    hashes = {entry["path"]: entry["sha256"] for entry in parent.manifest["files"]} if parent else {}
    before = parent.path if parent else None
    schedule, taken = [], []
    for name, stage, rows in stage_rows(run, recipe):
        if rows.num_rows == 0:
            raise ReleaseError(
                f"Stage {name!r} has no rows, so it cannot be released: a trainer would skip it in silence. "
                "Look at the funnel of builder select; loosen a rule, or take the stage out of the recipe."
            )
        frame = pl.DataFrame(pl.from_arrow(rows))
        taken.append(put_config(work, name, rows, before, hashes))
        tokens = frame["student_tokens"] if "student_tokens" in frame.columns else None
        schedule.append(
            {
                "stage": name,
                "config": name,
                "kind": stage.kind,
                "init": stage.init,
                "rows": rows.num_rows,
                "tokens": int(tokens.sum()) if tokens is not None and not tokens.has_nulls() else None,
                "rowset_hash": rowset_hash(frame, rows.column_names),
                "epochs": stage.epochs,
            }
        )
    taken.append(put_config(work, "candidates", candidate_rows(run, recipe), before, hashes))
    if recipe.release.logprobs:
        taken.append(put_config(work, "logprobs", _kept_logprobs(run), before, hashes))
    return schedule, all(taken)


def _same_frame(parent: Release, recipe: Recipe, schedule: list[dict[str, Any]], configs: list[Path]) -> bool:
    """Whether the parent says the same of the same configs: how to train on them, under which licence."""
    manifest = parent.manifest
    before = {path.name for path in (parent.path / "data").iterdir()}
    same_configs = before == {path.name for path in configs}
    return bool(same_configs and manifest["schedule"] == schedule and manifest["license"] == recipe.release.license)


def _kept_logprobs(run: Run) -> pa.Table:
    """Teacher logprobs of the selected replies."""
    kept = run.scan("selection").filter(pl.col("kind") == "sft").select(pl.col("grain_id").alias("response_id"))
    rows = run.scan("logprobs").join(kept.unique(), on="response_id", how="semi").sort("response_id").collect()
    return fit(rows.to_arrow(), run.schema("logprobs"))


def _write_texts(work: Path, recipe: Recipe, sql: Mapping[str, str]) -> None:
    """The recipe without endpoints and folders (they are nobody's business), the SQL, the package versions."""
    resolved = recipe.decisive()
    named = [(source, "source") for source in resolved["prompts"]]
    named += [(resolved[part], key) for part in ("teacher", "student") for key in ("model", "tokenizer")]
    for section, key in named:
        if section and section.get(key):
            section[key] = unplaced(section[key])
    put_text(work / ".builder" / "recipe.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    for path, text in sql.items():
        put_text(work / ".builder" / path, text)
    pins = "".join(f"{name}=={found}\n" for name, found in packages().items())
    put_text(work / ".builder" / "constraints.txt", pins)


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
        "teacher": {
            "model": unplaced(teacher.model),
            "revision": teacher.revision,
            "tokenizer": unplaced(recipe.public_tokenizer() or teacher.model),
        },
        "student": None
        if student is None
        else {
            "model": unplaced(recipe.public_student() or student.model),
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
        "rollout": rollout(run) if is_mixed(run, recipe) else None,
        "mixed_policy": mixed_policy(run, recipe.mixed_policy) if is_mixed(run, recipe) else None,
        "files": [file_entry(work, path) for path in sorted(work.rglob("*")) if path.is_file()],
        "schedule": schedule,
        "score_remarks": score_remarks(run, recipe),
        "calls": calls(run),
        "packages": packages(),
    }


def build_id(run: Run, recipe: Recipe, sql_hashes: Mapping[str, str]) -> str:
    """64 hex digits of what decides the output: rows of the input tables, the recipe, the SQL."""
    tables = {}
    for name in ("prompts", "responses", "scores", "verdicts", "features", "rollouts"):
        frame = run.read(name)
        tables[name] = rowset_hash(frame, run.content_columns(name))
    decides: dict[str, Any] = {"tables": tables, "recipe": recipe.decisive(), "sql": dict(sql_hashes)}
    if recipe.decontamination is not None:
        decides["benchmarks"] = benchmarks_id(recipe.require_benchmarks())
    return sha256_hex(canonical_json(decides))


def rollout(run: Run) -> dict[str, str | None]:
    """The checkpoint that began the mixed rows: its weights, and what they were trained from and on."""
    return run.read("rollouts", ["base", "dataset", "stage", "weights_sha256"]).row(0, named=True)


def mixed_policy(run: Run, policy: MixedPolicy | None) -> dict[str, Any] | None:
    """How the mixed rows were made and how many there are, counted from the tables."""
    if policy is None:
        return None
    rollouts = run.read("rollouts", ["hit_cap", "outcome", "continuation_id"])
    rows = run.scan("selection").filter(pl.col("stage") == policy.stage).select(response_id="grain_id")
    roles = rows.join(run.scan("responses").select("response_id", "role"), on="response_id").collect()["role"]
    settings = policy.model_dump(mode="json", include={"keep", "length_cap", "cut", "temperature", "off_policy_ratio"})
    return {
        "stage": policy.stage,
        **settings,
        "rollouts": rollouts.height,
        "hit_cap": int(rollouts["hit_cap"].sum()),
        "cut_rollouts": int((rollouts["outcome"] == "cut").sum()),
        "continued": rollouts.height - rollouts["continuation_id"].null_count(),
        "mixed_rows": int((roles == "mixed").sum()),
        "off_policy_rows": int((roles != "mixed").sum()),
    }


def prompt_sources(run: Run) -> list[dict[str, Any]]:
    """Sources of the prompts with the number of prompts that each one gave."""
    frame = run.scan("prompts").select(pl.col("sources").explode()).unnest("sources")
    grouped = frame.group_by("source", "revision", "license").len("rows").sort("source", "revision", "license")
    return grouped.collect().to_dicts()


def calls(run: Run) -> dict[str, float | None]:
    """What was asked and paid, counted from the journal and the replies."""
    attempts = journal.counts(run.journal_dir)
    paid = pl.col("role").is_in(PAID_ROLES)
    total = run.scan("responses").select(
        paid.sum().alias("replies"),
        (pl.col("role") == "student").sum().alias("rollouts"),
        *(_sum_of_known(name, paid) for name in ("prompt_tokens", "completion_tokens")),
        pl.col("cost_usd").sum().alias("cost_usd"),
        pl.col("cost_usd").is_null().all().alias("unpriced"),
    )
    row = total.collect().row(0, named=True)
    return {
        "attempts": sum(attempts.values()),
        "maybe_billed": attempts.get("maybe_billed", 0),
        "replies": row["replies"],
        "rollouts": row["rollouts"],
        "prompt_tokens": row["prompt_tokens"],
        "completion_tokens": row["completion_tokens"],
        "cost_usd": None if row["unpriced"] else row["cost_usd"],
    }


def _sum_of_known(name: str, where: pl.Expr) -> pl.Expr:
    """The sum, null where no row says anything."""
    known = pl.col(name).filter(where & pl.col(name).is_not_null())
    return pl.when(known.len() > 0).then(known.sum()).alias(name)


def packages() -> dict[str, str]:
    """Versions of the packages that a rebuild depends on, those installed here."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
