"""A release that somebody published: at its commit, checked against its manifest, as local Parquet or as a database.

From the Hub the revision becomes a commit first and only that snapshot is read: `datasets.load_dataset` falls back to
any cached version when the Hub is away. What a manifest lists is believed only where size, hash and rows agree.
"""

import json
import os
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from builder.errors import ReleaseError, UsageError
from builder.identity import canonical_json, sha256_hex
from builder.release_held_out import TRAIN
from builder.store import file_sha256

_MANIFEST: Final = ".builder/manifest.json"
_FORMAT: Final = 1
_HUB_NAME: Final = re.compile(r"([\w.-]+/[\w.-]+)@([\w./-]+)")
_DATA_FILE: Final = re.compile(r"data/([a-z0-9][a-z0-9._-]*)/([\w.]+)-\d{5}-of-\d{5}\.parquet")


class _File(BaseModel):
    path: str
    sha256: str
    bytes: int
    rows: int | None


class _Manifest(BaseModel):
    """The part of the manifest that is read here; `data_cards/manifest.schema.json` has the whole."""

    version: str
    build_id: str
    recipe_name: str
    license: str | None
    student: dict[str, str | None] | None
    prompts: list[dict[str, Any]]
    selection: dict[str, Any]
    files: list[_File]


@dataclass(frozen=True)
class Published:
    """A release by its manifest. `source` and `revision` name it in other releases: the dataset and its commit, or, for
    a folder, its recipe with its version and its build_id.
    """

    root: Path
    repo: str | None
    source: str
    revision: str
    manifest: _Manifest

    @cached_property
    def configs(self) -> dict[str, list[_File]]:
        """Parquet files by config, in order of their names: under `CONFIG` those of split `train`, under
        `CONFIG/validation` what is held out of it, so that who asks for a config gets nothing of that."""
        found: dict[str, list[_File]] = {}
        for file in sorted(self.manifest.files, key=lambda file: file.path):
            if match := _DATA_FILE.fullmatch(file.path):
                name = match[1] if match[2] == TRAIN else f"{match[1]}/{match[2]}"
                found.setdefault(name, []).append(file)
        return found

    def files(self, *configs: str) -> list[Path]:
        """Verified Parquet files of these configs, downloaded where they are not here. Raises ReleaseError."""
        return self.get([file for config in configs for file in self.configs.get(config, [])])

    def get(self, wanted: Sequence[_File]) -> list[Path]:
        """Verified files of the release. Raises ReleaseError for one that is not as the manifest says."""
        for file in wanted:
            parts = PurePosixPath(file.path).parts
            if PurePosixPath(file.path).is_absolute() or ".." in parts:
                raise ReleaseError(f"The manifest of {self.source} lists {file.path}, which lies outside of it.")
        if self.repo is not None and wanted:
            _fetch(self.repo, self.revision, [file.path for file in wanted])
        for file in wanted:
            _verify(self.root / file.path, file)
        return [self.root / file.path for file in wanted]

    def text(self, path: str) -> str | None:
        """A verified small file of the release; None where the manifest lists none of that name."""
        found = [file for file in self.manifest.files if file.path == path]
        return read_text(self.get(found)[0]) if found else None


def is_dataset(name: str) -> bool:
    """Whether a RECIPE_OR_DATASET is a dataset: a folder with a manifest, else `org/name@revision` that is no path."""
    path = Path(name)
    if path.exists():
        return (path / _MANIFEST).is_file()
    return _HUB_NAME.fullmatch(name) is not None


def open_published(dataset: str) -> Published:
    """The release behind a folder or `org/name@revision`, of which only the manifest is fetched.

    Raises UsageError for a name that is neither, ReleaseError where the release cannot be got or its manifest read.
    """
    if Path(dataset).is_dir():
        root = Path(dataset)
        manifest = _read_manifest(root)
        return Published(root, None, f"{manifest.recipe_name}-{manifest.version}", manifest.build_id, manifest)
    named = _HUB_NAME.fullmatch(dataset)
    if named is None:
        raise UsageError(f"{dataset} is neither the folder of a release nor `org/name@vN`, with its version.")
    commit = _commit(named[1], named[2])
    root = _fetch(named[1], commit, [_MANIFEST])
    return Published(root, named[1], f"hf://datasets/{named[1]}", commit, _read_manifest(root))


def database(published: Published) -> Path:
    """A DuckDB file with a table for each config, `-` and `.` of its name as `_`, and one for its held-out rows
    (`CONFIG_validation`); made once, kept in the user's cache.

    It is named by the hashes of the files, so a database that is there holds exactly these rows. `stg_candidates` is
    the name by which a run calls `candidates`. Raises ReleaseError.
    """
    tables: dict[str, str] = {}
    for config in published.configs:
        name = re.sub("[-./]", "_", config)
        if name in tables:
            raise ReleaseError(f"Configs {tables[name]} and {config} of {published.source} would both be table {name}.")
        tables[name] = config
    if not tables:
        raise ReleaseError(f"{published.source} lists no Parquet files, so there is nothing to query.")
    identity = canonical_json([[file.path, file.sha256] for files in published.configs.values() for file in files])
    path = cache_dir() / f"{sha256_hex(identity)[:32]}.duckdb"
    if path.is_file():
        return path
    files = {name: published.files(config) for name, config in tables.items()}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _load(temporary, files)
        temporary.replace(path)
    except (OSError, duckdb.Error) as error:
        raise ReleaseError(
            f"Loading {published.source} into {path} failed: {error}. Free space, or name another folder in "
            "XDG_CACHE_HOME; then rerun."
        ) from error
    finally:
        for left in (temporary, temporary.with_name(f"{temporary.name}.wal")):
            with suppress(OSError):
                left.unlink(missing_ok=True)
    return path


def read_text(path: Path) -> str:
    """A text file of a release. Raises ReleaseError where it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReleaseError(f"{path} cannot be read as text: {error}.") from error


def cache_dir() -> Path:
    """Where databases of published releases are kept; what is deleted there is made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tempered" / "datasets"


def _load(path: Path, files: dict[str, list[Path]]) -> None:
    with duckdb.connect(str(path), config={"python_enable_replacements": "false"}) as connection:
        for name, paths in files.items():
            listed = ", ".join("'" + str(one.absolute()).replace("'", "''") + "'" for one in paths)
            connection.execute(f'create table "{name}" as select * from read_parquet([{listed}])')
        if "candidates" in files and "stg_candidates" not in files:
            connection.execute("create view stg_candidates as select * from candidates")


def _commit(repo: str, revision: str) -> str:
    """The commit behind a tag, branch or commit; where the Hub is away, the one that this name last stood for here."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().resolve_revision(repo, repo_type="dataset", revision=revision).resolved)
    except Exception as error:  # the Hub client raises a dozen unrelated classes; the message names the cause
        raise _unreachable(repo, revision, error) from error


def _fetch(repo: str, commit: str, paths: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, repo_type="dataset", revision=commit, allow_patterns=paths))
    except Exception as error:  # as above
        raise _unreachable(repo, commit, error) from error


def _unreachable(repo: str, revision: str, error: Exception) -> ReleaseError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return ReleaseError(
        f"Cannot get dataset {repo} at {revision}: {reason}. Check the name, the version, the network, and HF_TOKEN "
        "if it is private."
    )


def _read_manifest(root: Path) -> _Manifest:
    path = root / _MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{root} is no release of builder: its manifest cannot be read ({error}).") from error
    number = content.get("format") if isinstance(content, dict) else None
    if number != _FORMAT:
        raise ReleaseError(f"{path} has manifest format {number!r}; this version reads {_FORMAT}. Upgrade tempered.")
    try:
        return _Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ReleaseError(f"{path} is not a manifest ({where}: {first['msg'].lower()}). Get it again.") from error


def _verify(path: Path, file: _File) -> None:
    if not path.is_file():
        raise ReleaseError(f"The manifest lists {file.path}, which is not there. Get the release again.")
    found, size = file_sha256(path), path.stat().st_size
    if found != file.sha256 or size != file.bytes:
        raise ReleaseError(
            f"{file.path} was altered: sha256 {found} ({size:,} bytes), the manifest expects {file.sha256} "
            f"({file.bytes:,} bytes). Get the release again."
        )
    if file.rows is not None and path.suffix == ".parquet":
        try:
            rows = pq.read_metadata(path).num_rows
        except (OSError, pa.ArrowException) as error:
            raise ReleaseError(f"{file.path} cannot be read as Parquet: {error}. Get the release again.") from error
        if rows != file.rows:
            raise ReleaseError(f"{file.path} holds {rows:,} rows, the manifest expects {file.rows:,}.")
