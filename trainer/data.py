"""Find the dataset, prove that it is the one its manifest describes, read its rows. Fails closed."""

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

FORMAT, MANIFEST = 1, ".builder/manifest.json"
MESSAGES = r"(large_)?list<.*: struct<(?=.*\brole: )(?=.*\bcontent: ).*"
TURNS = {"prompt": MESSAGES, "completion": MESSAGES}
# Columns of an sft stage, as far as training reads them, with Arrow types that serve.
COLUMNS = TURNS | {"position": r"u?int\d+", "response_id": "(large_)?string"}
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
    rollout: dict[str, str | None] | None = None  # the student that wrote the beginnings of mixed rows
    files: list[File]
    schedule: list[Stage]


@dataclass(frozen=True)
class Release:
    root: Path
    source: str
    commit: str | None
    manifest: Manifest
    plain: Any = None  # a `datasets.DatasetDict`, where there is no manifest: one stage, rows in file order

    @property
    def origin(self) -> dict[str, str | None]:
        return {"source": self.source, "commit": self.commit} | self.manifest.model_dump(
            include={"version", "build_id"}
        )

    def files(self, config: str, split: str = "train") -> list[File]:
        """Parquet files of one split of a config, in order."""
        match = re.compile(rf"data/{re.escape(config)}/{split}-\d+-of-\d+\.parquet").fullmatch
        return sorted((file for file in self.manifest.files if match(file.path)), key=lambda file: file.path)


def resolve(dataset: str) -> Release:
    """The verified release behind a directory or `org/name@revision`, or a plain dataset that has no manifest."""
    hub, root, commit = re.fullmatch(r"([\w.-]+/[\w.-]+)@([\w./-]+)", dataset), Path(dataset), None
    if not root.is_dir():
        if not hub:
            raise ReleaseError(f"{dataset} is neither a release directory nor `org/name@vN`, with its version.")
        # One commit, and that alone: `load_dataset` falls back to any cached version when the Hub is away.
        root, commit = fetch(hub[1], hub[2], "dataset", [MANIFEST])
    if not (root / MANIFEST).is_file():
        patterns = ["*.parquet", "*.jsonl"]
        return _plain(fetch(hub[1], commit, "dataset", patterns)[0] if hub and commit else root, dataset, commit)
    manifest = _manifest(root / MANIFEST)
    wanted = manifest.files
    if hub and commit:  # configs that no stage trains on stay there
        trained = tuple(f"data/{stage.config}/" for stage in manifest.schedule)
        wanted = [f for f in wanted if f.path.startswith(trained) or not f.path.startswith("data/")]
        root, _ = fetch(hub[1], commit, "dataset", [MANIFEST, *(file.path for file in wanted)])
    for file in wanted:
        _verify(root, file)
    return Release(root, dataset, commit, manifest)


def check_stage(release: Release, stage: Stage, mask_prefix: bool = False, held_out: bool = False) -> None:
    """Refuse a stage without rows, with other rows than the manifest says, or without the columns that it needs."""
    files, held = release.files(stage.config), release.files(stage.config, "validation") if held_out else []
    rows = sum(file.rows or 0 for file in files) if release.plain is None else release.plain["train"].num_rows
    if rows == 0 or rows != stage.rows:
        told = f"Stage {stage.name} holds {rows:,} rows, the schedule says {stage.rows:,}"
        raise ReleaseError(f"{told}. A stage needs rows, and all of them: build the release again.")
    if held_out and not held:
        lacks = f"{release.source} has no data/{stage.config}/validation-*.parquet to evaluate stage {stage.name} on"
        raise ReleaseError(f"{lacks}. Choose a release with held-out prompts, or set eval_strategy to no.")
    schemas = {file.path: pq.read_schema(release.root / file.path) for file in files + held}
    schemas |= {} if release.plain is None else {release.source: release.plain["train"].features.arrow_schema}
    for path, schema in schemas.items() if stage.kind == "sft" else ():
        columns = COLUMNS if release.plain is None else {"messages": MESSAGES} if "messages" in schema.names else TURNS
        columns = columns | (PREFIX if mask_prefix else {})
        found = {name: str(schema.field(name).type) if name in schema.names else "missing" for name in columns}
        if wrong := [f"{name}: {kind}" for name, kind in found.items() if not re.fullmatch(columns[name], kind)]:
            raise ReleaseError(
                f"{path} has the wrong columns ({', '.join(wrong)}). An sft stage needs prompt and completion as lists "
                "of {role, content}, position as integer, response_id as string, and prefix_chars as integer if "
                "mask_prefix is on; without a manifest only prompt and completion, or messages. Build it again."
            )
    trained = [file for other in release.manifest.schedule for file in release.files(other.config)] if held else []
    if both := _prompts(release, held) & _prompts(release, trained):
        told = f"{len(both):,} held-out prompts of stage {stage.name} are trained on too, {min(both)} among them"
        raise ReleaseError(f"{told}: their loss would say nothing. Build the release again, split by prompt.")


def read(release: Release, config: str, mask_prefix: bool = False, split: str = "train") -> Iterator[list[Any]]:
    """Rows of a config in file order, a bounded batch at a time; with `prefix_chars` only to mask prefixes."""
    for file in release.files(config, split):
        with pq.ParquetFile(release.root / file.path) as parquet:
            for batch in parquet.iter_batches(512, columns=[*COLUMNS, *(PREFIX if mask_prefix else ())]):
                yield batch.to_pylist()
    number = 0
    for batch in () if release.plain is None else release.plain[split].with_format("arrow").iter(512):
        for row in (rows := batch.to_pylist()):
            number += 1
            turns = row.pop("messages", None) or []
            row.update({"position": number, "response_id": f"number {number:,}"})
            row.update({} if "prompt" in row else {"prompt": turns[:-1], "completion": turns[-1:]})
        yield rows


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


def _plain(root: Path, source: str, commit: str | None) -> Release:
    """A folder of parquet or jsonl files as one stage: what `datasets` finds to be its split train."""
    import datasets

    try:
        splits = datasets.load_dataset(str(root)) if not (root / MANIFEST).parent.exists() else {}
        rows = splits["train"].num_rows
    except Exception as error:
        why = f"nor can it be read as a plain dataset with a split train ({' '.join(str(error).split())})"
        raise ReleaseError(f"{root} has no {MANIFEST}, so it is not a release, {why}.") from error
    files = sorted(path for pattern in ("*.parquet", "*.jsonl") for path in root.rglob(pattern))
    digest = hashlib.sha256("".join(sha256_of(path) for path in files).encode()).hexdigest()
    stage = {"stage": "train", "config": "train", "kind": "sft", "init": "base", "rowset_hash": digest, "rows": rows}
    schedule = [Stage.model_validate(stage | {"tokens": None, "epochs": None})]
    return Release(root, source, commit, Manifest(version="-", build_id=digest, files=[], schedule=schedule), splits)


def _prompts(release: Release, files: list[File]) -> set[Any]:
    paths = [release.root / file.path for file in files]
    named = [path for path in paths if "prompt_id" in pq.read_schema(path).names]  # preference pairs have none
    return {prompt for path in named for prompt in pq.read_table(path, columns=["prompt_id"])["prompt_id"].to_pylist()}


def _manifest(path: Path) -> Manifest:
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
    if {"/", ".."} & {*PurePosixPath(file.path).parts} or not path.is_file():
        raise ReleaseError(f"The manifest lists {file.path}, which is not a file in {root}. Get the release again.")
    found, size = sha256_of(path), path.stat().st_size
    if (found, size) != (file.sha256, file.bytes):
        told = f"sha256 {found} ({size:,} bytes), the manifest expects {file.sha256} ({file.bytes:,} bytes)"
        raise ReleaseError(
            f"{file.path} was altered: {told}. Get the release again, or build a new one to change rows."
        )
    if file.rows is not None and (rows := pq.read_metadata(path).num_rows) != file.rows:
        raise ReleaseError(f"{file.path} holds {rows:,} rows, the manifest expects {file.rows:,}. Build it again.")
