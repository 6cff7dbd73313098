"""selection → release: an immutable directory that anyone can pin, check and train on. Old state or new, never half."""

import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from builder.card import render_card
from builder.card_plots import card_plots
from builder.config import Recipe
from builder.console import Progress
from builder.decision import plan_selection
from builder.errors import HubError, ReleaseError, UsageError
from builder.release_files import Written, file_entry, ids_of, put_config, put_text, sync_folders
from builder.release_held_out import HELD_OUT
from builder.release_history import history
from builder.release_manifest import FORMAT, held_out, manifest_of, packages
from builder.release_rows import Config, configs, unplaced
from builder.release_scores import unscored
from builder.resources import resource
from builder.selection import SelectionResult
from builder.stages import is_mixed, needs_replies
from builder.store import Run, sync_directory
from builder.withdrawal import withdrawn, without

_VERSION = re.compile(r"v([1-9][0-9]*)")
_WORK = re.compile(r"\.release-[0-9a-f]{32}")


@dataclass(frozen=True)
class Release:
    """A release on disk. `is_new` is False when its rows were released before and nothing was written."""

    path: Path
    manifest: Mapping[str, Any]
    is_new: bool
    warnings: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        return str(self.manifest["version"])


def release(
    run: Run,
    recipe: Recipe,
    selected: SelectionResult,
    *,
    recipe_dir: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Release:
    """Write the next version of what `selected` chose, or return the last one when its rows, schedule and license are
    the same.

    Raises UsageError for replies without a teacher, ReleaseError when the selection is not the recipe's, a stage has no
    rows, rows were chosen by scores that are not there, something unknown is to be withdrawn, another release of this
    run goes on, or the disk refuses; earlier releases are untouched. One that dies leaves a hidden folder, which the
    next one clears away.
    """
    if recipe.teacher is None and needs_replies(recipe):
        raise UsageError(
            f"Recipe {recipe.name!r} has no `teacher`, and its stages are made of replies: a release says who wrote "
            "them. Name the model and its revision under `teacher`; it is not asked."
        )
    sql = _sql_texts(run, recipe, selected, recipe_dir)
    warnings = _score_warnings(run, recipe)
    try:
        with _work_folder(run) as work:
            parent = latest_release(run)
            ids, id_warnings = withdrawn(run, recipe, parent.manifest if parent else None)
            number, hub_warnings = _next_number(run, recipe, parent)
            found = _write(work, run, recipe, selected, sql, parent, f"v{number}", ids, progress)
    except OSError as error:
        raise ReleaseError(
            f"Writing a release of {run.root} failed: {error}. Earlier releases are untouched and nothing half-written "
            "counts. Free space or mend the disk, then rerun builder release."
        ) from error
    conflicts = [f"license: {one['source']} {one['reason']}" for one in found.manifest.get("license_conflicts", [])]
    return Release(found.path, found.manifest, found.is_new, (*warnings, *id_warnings, *hub_warnings, *conflicts))


def _write(
    work: Path,
    run: Run,
    recipe: Recipe,
    selected: SelectionResult,
    sql: Mapping[str, str],
    parent: Release | None,
    name: str,
    ids: Sequence[str],
    progress: Progress,
) -> Release:
    """The release as a folder below `work`, renamed to its place when all of it is on disk."""
    kept = without(run, ids)
    root = work / name
    schedule, held, written = _write_configs(root, work, kept, recipe, parent, progress)
    hashes = {path: found for config in written for path, found in config.hashes.items()}
    if parent is not None and all(config.is_taken for config in written):
        listed = [file_entry(root, root / path, hashes) for path in sorted(hashes)]
        same = _says_the_same(parent.manifest, recipe, schedule, held, listed, ids)
        if same and not _is_taken(recipe, parent):
            return Release(parent.path, parent.manifest, is_new=False)
    progress("statistics and card", 0, None)
    _write_texts(root, recipe, sql, ids)
    told = manifest_of(run, kept, recipe, selected, sql, ids)
    for plot, svg in card_plots(told["statistics"]).items():
        put_text(root / plot, svg)
    manifest = told | {
        "version": name,
        "parent": parent.version if parent else None,
        "files": [file_entry(root, path, hashes) for path in sorted(root.rglob("*")) if path.is_file()],
        "schedule": schedule,
        "held_out": held,
    }
    manifest["history"] = history(parent.manifest if parent else None, manifest)
    jsonschema.validate(manifest, json.loads(resource("data_cards", "manifest.schema.json").read_text("utf-8")))
    put_text(root / "README.md", render_card(manifest))
    put_text(root / ".builder" / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    sync_folders(root)
    path = run.releases / name
    root.rename(path)
    sync_directory(run.releases)
    return Release(path, manifest, is_new=True)


@contextmanager
def _work_folder(run: Run) -> Iterator[Path]:
    """A hidden folder for one release at a time of this run; what killed ones left is cleared away first.

    The lock goes with its process, so a folder that is there under the lock is nobody's.
    """
    run.releases.mkdir(parents=True, exist_ok=True)
    with (run.root / ".release.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReleaseError(f"Another release of {run.root} is being written. Wait for it, then rerun.") from None
        for stale in [path for path in run.releases.iterdir() if _WORK.fullmatch(path.name)]:
            shutil.rmtree(stale)
        work = run.releases / f".release-{uuid.uuid4().hex}"
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def latest_release(run: Run) -> Release | None:
    """The highest version with a manifest; None before the first."""
    for number in sorted(_numbers(run), reverse=True):
        path = run.releases / f"v{number}"
        if (path / ".builder" / "manifest.json").is_file():
            return Release(path, read_manifest(path), is_new=False)
    return None


def _numbers(run: Run) -> list[int]:
    return [int(match[1]) for path in run.releases.glob("v*") if (match := _VERSION.fullmatch(path.name))]


def _next_number(run: Run, recipe: Recipe, parent: Release | None) -> tuple[int, list[str]]:
    """One more than the highest version, here and on the Hub; and what to know where the Hub was not asked."""
    here, there, warnings = max(_numbers(run), default=0), 0, []
    if repo := recipe.release.repo:
        try:
            there = max(_remote_versions(repo), default=0)
        except HubError as error:
            warnings.append(
                f"which versions {repo} has is not known, so v{here + 1} counts those of this run only, and builder "
                f"publish refuses it where the Hub has that version already. {error}"
            )
    known = int(parent.version[1:]) if parent else 0
    if there > known:
        warnings.append(
            f"{repo} has v{there} on the Hub, this run knows {parent.version if parent else 'none'}: files are not "
            "taken over from there, and what it withdrew is left out only where release.withdrawn names it"
        )
    return max(here, there) + 1, warnings


def _remote_versions(repo: str) -> list[int]:
    if _is_offline():
        raise HubError("HF_HUB_OFFLINE is set.")
    from builder.hub import remote_versions

    return remote_versions(repo)


def _is_taken(recipe: Recipe, parent: Release) -> bool:
    """Whether the Hub holds another build under the parent's number: then the same rows need a number of their own."""
    repo = recipe.release.repo
    if repo is None or _is_offline():
        return False
    from builder.hub import published_build

    with suppress(HubError):  # `_next_number` has told of it
        return published_build(repo, int(parent.version[1:])) not in (None, parent.manifest["build_id"])
    return False


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _score_warnings(run: Run, recipe: Recipe) -> list[str]:
    """What to know where the recipe's student has not scored what is selected; ReleaseError where scores chose it."""
    left, rows = unscored(run, recipe) if recipe.student is not None else (0, 0)
    if not left:
        return []
    told = f"{left:,} of {rows:,} selected replies were never scored by student {recipe.public_student()!r}"
    if recipe.selection.needs_logprobs:
        raise ReleaseError(
            f"{told}, by whose scores selector {recipe.selection.selector!r} or rule score_missing choose: their "
            "scores would be null, their rank arbitrary. Run builder score, then builder select; for a student that "
            "changed, that costs no request to the teacher."
        )
    return [f"{told}: their score columns are null. Run builder score first to fill them"]


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


def _write_configs(
    root: Path, work: Path, run: Run, recipe: Recipe, parent: Release | None, progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any] | None, list[Written]]:
    """Configs of the stages in training order, then the others; the schedule, what is held out, what was written."""
    schedule, held, written = [], [], []

    def before(config: str, key: str) -> list[str]:
        return ids_of(parent.path, _files(parent, config), key) if parent else []

    for config in configs(run, recipe, before, work, progress):
        if config.stage is not None and config.rows == 0:
            raise ReleaseError(
                f"Stage {config.name!r} has no rows, so it cannot be released: a trainer would skip it in silence. "
                "Look at the funnel of builder select; loosen a rule, or take the stage out of the recipe."
            )
        listed = _files(parent, config.name) if parent else []
        path = parent.path if parent else None

        def seen(rows: int, config: Config = config) -> None:
            progress(f"release {config.name}", rows, config.rows)

        put = put_config(root, config.name, config.schema, config.tables, path, listed, config.split, progress=seen)
        written.append(put)
        if config.split == HELD_OUT:
            held.append(config)
        elif config.stage is not None:
            schedule.append(_scheduled(config, written[-1]))
    return schedule, held_out(recipe.release.held_out, held), written


def _scheduled(config: Config, written: Written) -> dict[str, Any]:
    """A stage as the manifest lists it."""
    assert config.stage is not None
    return {
        "stage": config.name,
        "config": config.name,
        "kind": config.stage.kind,
        "init": config.stage.init,
        "rows": written.rows,
        "tokens": config.tokens,
        "rowset_hash": written.rowset_hash,
        "epochs": config.stage.epochs,
    }


def _files(release: Release, config: str) -> list[dict[str, Any]]:
    """Parquet files of one config as the manifest lists them."""
    return [entry for entry in release.manifest["files"] if entry["path"].startswith(f"data/{config}/")]


def _says_the_same(
    before: Mapping[str, Any],
    recipe: Recipe,
    schedule: list[Any],
    held: Mapping[str, Any] | None,
    files: list[Any],
    ids: Sequence[str],
) -> bool:
    """Whether the version before has the same data files, trains in the same way, under the same license."""
    data = [entry for entry in before["files"] if entry["path"].startswith("data/")]
    said = (before["schedule"], before.get("held_out"), before["license"], before.get("withdrawn", []), data)
    return bool(said == (schedule, held, recipe.release.license, list(ids), files))


def _write_texts(root: Path, recipe: Recipe, sql: Mapping[str, str], ids: Sequence[str]) -> None:
    """The recipe without endpoints and folders (they are nobody's business), the SQL, the package versions."""
    resolved = recipe.decisive()
    for source in resolved["prompts"]:
        source["source"] = unplaced(source["source"])
    if teacher := resolved["teacher"]:
        teacher["model"] = unplaced(teacher["model"])
        teacher["tokenizer"] = unplaced(recipe.public_tokenizer() or "") if teacher["tokenizer"] else None
    if student := resolved["student"]:
        student["model"] = unplaced(recipe.public_student() or "")
    resolved["release"]["withdrawn"] = list(ids)
    put_text(root / ".builder" / "recipe.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    for path, text in sql.items():
        put_text(root / ".builder" / path, text)
    pins = "".join(f"{name}=={found}\n" for name, found in packages().items())
    put_text(root / ".builder" / "constraints.txt", pins)
