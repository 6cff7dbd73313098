"""Find the release, prove that it is the one its manifest describes, read its rows. Fails closed."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from trainer.errors import ModelError, ReleaseError
from trainer.schedule import Stage

FORMAT = 1
MANIFEST = ".builder/manifest.json"
MESSAGES = r"(large_)?list<.*: struct<(?=.*\brole: )(?=.*\bcontent: ).*"
# Columns of an sft stage, as far as training reads them, with Arrow types that serve.
COLUMNS = {"prompt": MESSAGES, "completion": MESSAGES, "position": r"u?int\d+", "response_id": "(large_)?string"}
PREFIX = {"prefix_chars": r"u?int\d+"}  # with mask_prefix: characters of the completion that a student wrote


class File(BaseModel):
    path: str
    sha256: str
    bytes: int
    rows: int | None


class Manifest(BaseModel):
    """The part of the manifest that training reads; `data_cards/manifest.schema.json` has the whole."""

    version: str
    build_id: str
    rollout: dict[str, str | None] | None = (
        None  # the student that wrote the beginnings of mixed rows: base, weights_sha256, …
    )
    files: list[File]
    schedule: list[Stage]


@dataclass(frozen=True)
class Release:
    root: Path
    source: str
    commit: str | None
    manifest: Manifest

    @property
    def origin(self) -> dict[str, str | None]:
        """Where the release came from, as records and plans name it."""
        named = self.manifest.model_dump(include={"version", "build_id"})
        return {"source": self.source, "commit": self.commit} | named

    def files(self, config: str) -> list[File]:
        """Parquet files of a config's split `train`, in order."""
        match = re.compile(rf"data/{re.escape(config)}/train-\d+-of-\d+\.parquet").fullmatch
        return sorted((file for file in self.manifest.files if match(file.path)), key=lambda file: file.path)


def resolve(dataset: str) -> Release:
    """The verified release behind a directory or `org/name@revision`.

    From the Hub the revision becomes a commit first and only that snapshot is read, because `load_dataset` falls back
    to any cached version when the Hub is away. Configs that no stage trains on are not downloaded.
    """
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)@([\w./-]+)", dataset)
    if Path(dataset).is_dir():
        release = Release(Path(dataset), dataset, None, _manifest(Path(dataset)))
        wanted = release.manifest.files
    elif hub:
        root, commit = fetch(hub[1], hub[2], "dataset", [MANIFEST])
        manifest = _manifest(root)
        trained = tuple(f"data/{stage.config}/" for stage in manifest.schedule)
        wanted = [f for f in manifest.files if f.path.startswith(trained) or not f.path.startswith("data/")]
        root, _ = fetch(hub[1], commit, "dataset", [MANIFEST, *(file.path for file in wanted)])
        release = Release(root, dataset, commit, manifest)
    else:
        raise ReleaseError(f"{dataset} is neither a release directory nor `org/name@vN`, with its version.")
    for file in wanted:
        _verify(release.root, file)
    return release


def check_stage(release: Release, stage: Stage, mask_prefix: bool = False) -> None:
    """Refuse a stage without rows, with other rows than the manifest says, or without the columns that it needs."""
    columns = COLUMNS | PREFIX if mask_prefix else COLUMNS
    files = release.files(stage.config)
    rows = sum(file.rows or 0 for file in files)
    if rows == 0 or rows != stage.rows:
        held = f"Stage {stage.name} holds {rows:,} rows, the schedule says {stage.rows:,}"
        raise ReleaseError(f"{held}. A stage needs rows, and all of them: build the release again.")
    for file in files if stage.kind == "sft" else []:
        schema = pq.read_schema(release.root / file.path)
        found = {name: str(schema.field(name).type) if name in schema.names else "missing" for name in columns}
        wrong = [f"{name}: {kind}" for name, kind in found.items() if not re.fullmatch(columns[name], kind)]
        if wrong:
            raise ReleaseError(
                f"{file.path} has the wrong columns ({', '.join(wrong)}). An sft stage needs prompt and completion as "
                "lists of {role, content}, position as integer, response_id as string, and prefix_chars as integer if "
                "mask_prefix is on. Build the release again."
            )


def read(release: Release, config: str, mask_prefix: bool = False) -> Iterator[list[dict[str, Any]]]:
    """Rows of a config in file order, a bounded batch at a time; with `prefix_chars` only to mask prefixes."""
    columns = [*COLUMNS, *(PREFIX if mask_prefix else ())]
    for file in release.files(config):
        with pq.ParquetFile(release.root / file.path) as parquet:
            for batch in parquet.iter_batches(batch_size=512, columns=columns):
                yield batch.to_pylist()


def holds_rollouts(release: Release, config: str) -> bool:
    """Whether some rows of a config begin with what a student wrote."""
    tables = (pq.ParquetFile(release.root / file.path).read(["policy"]) for file in release.files(config))
    return any("mixed" in table.to_pydict().get("policy", ()) for table in tables)


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch(repo: str, revision: str | None, repo_type: str, patterns: list[str]) -> tuple[Path, str]:
    """Matching files of a Hub repository, at the commit behind a tag, branch or commit; and that commit."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        commit = str(HfApi().resolve_revision(repo, repo_type=repo_type, revision=revision).resolved)
        return Path(snapshot_download(repo, repo_type=repo_type, revision=commit, allow_patterns=patterns)), commit
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise (ReleaseError if repo_type == "dataset" else ModelError)(
            f"Cannot get {repo_type} {repo} at {revision or 'its default branch'}: {reason}. Check the name, the "
            "version, the network, and HF_TOKEN if it is private."
        ) from error


def _manifest(root: Path) -> Manifest:
    path = root / MANIFEST
    if not path.is_file():
        raise ReleaseError(f"{root} has no {MANIFEST}, so it is not a release. Make one with `builder release`.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (number := content.get("format")) != FORMAT:
            raise ReleaseError(f"{path} has format {number!r}; this version reads format {FORMAT}. Use a newer one.")
        return Manifest.model_validate(content)
    except (ValueError, AttributeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}" if first else str(error)
        raise ReleaseError(f"{path} is not a manifest ({reason}). Get the release again.") from error


def _verify(root: Path, file: File) -> None:
    path = root / file.path
    if PurePosixPath(file.path).is_absolute() or ".." in PurePosixPath(file.path).parts or not path.is_file():
        raise ReleaseError(f"The manifest lists {file.path}, which is not a file in {root}. Get the release again.")
    found, size = sha256_of(path), path.stat().st_size
    if found != file.sha256 or size != file.bytes:
        raise ReleaseError(
            f"{file.path} was altered: sha256 {found} ({size:,} bytes), the manifest expects {file.sha256} "
            f"({file.bytes:,} bytes). Get the release again; to change rows, build a new one with `builder release`."
        )
    if file.rows is not None and (rows := pq.read_metadata(path).num_rows) != file.rows:
        raise ReleaseError(f"{file.path} holds {rows:,} rows, the manifest expects {file.rows:,}. Build it again.")
