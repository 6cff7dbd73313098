"""Find the dataset, prove that it is the one its manifest describes, read its rows. Fails closed."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from trainer.errors import ModelError, ReleaseError
from trainer.schedule import Stage

MANIFEST = ".builder/manifest.json"
UNREAD = ("data/candidates/", "data/logprobs/")  # stay on the Hub
# Columns that training reads, with Arrow types that serve: messages with keys of their own are JSON to `datasets`.
MESSAGES = r"(large_)?list<.*: (struct<(?=.*\brole: )(?=.*\bcontent: )|extension<arrow.json>).*"
NUMBER, TEXT = r"u?int\d+", "(large_)?string"
TURNS, PREFIX = {"prompt": MESSAGES, "completion": MESSAGES}, {"prefix_chars": NUMBER}  # what a student wrote
GOLD = dict.fromkeys(("solution", "gold_type", "verifier", "language", "domain"), TEXT)
COLUMNS = {
    "sft": TURNS | {"position": NUMBER, "response_id": TEXT},
    "grpo": {"prompt": MESSAGES, "position": NUMBER} | GOLD,
    "reward": {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES, "position": NUMBER},
}


class File(BaseModel):
    path: str
    sha256: str


class Manifest(BaseModel):
    """The part of the manifest that training reads; `data_cards/manifest.schema.json` has the whole."""

    format: Literal[1]
    recipe_name: str | None = None
    version: str
    build_id: str
    rollout: dict[str, str | None] | None = None  # the student that wrote the beginnings of mixed rows
    files: list[File]
    schedule: list[Stage] = Field(min_length=1)


@dataclass(frozen=True)
class Release:
    root: Path
    source: str
    commit: str | None
    manifest: Manifest
    plain: Any = None  # a `datasets.DatasetDict`, where there is no manifest: one stage, rows in file order

    def files(self, config: str, split: str = "train") -> list[Path]:
        """Parquet files of one split of a config, in order."""
        match = re.compile(rf"data/{re.escape(config)}/{split}-\d+-of-\d+\.parquet").fullmatch
        return [self.root / path for path in sorted(file.path for file in self.manifest.files) if match(path)]


def resolve(dataset: str) -> Release:
    """The verified release behind a directory or `org/name@revision`, or a plain dataset that has no manifest."""
    root, commit, hub = Path(dataset), None, re.fullmatch(r"([\w.-]+/[\w.-]+)@([\w./-]+)", dataset)
    if hub and not root.is_dir():
        root, commit = fetch(hub[1], hub[2], "dataset", ignore_patterns=[f"{folder}*" for folder in UNREAD])
    if not root.is_dir():
        raise ReleaseError(f"{dataset} is neither a release directory nor `org/name@vN`, with its version.")
    source = dataset if commit else root.resolve().name  # for records: not where it lies on this machine
    if not (root / MANIFEST).is_file():
        return _plain(root, source, commit)
    try:
        manifest = Manifest.model_validate_json((root / MANIFEST).read_bytes())
    except ValidationError as error:
        reason = f"{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg'].lower()}"
        raise ReleaseError(f"{root / MANIFEST} is not a manifest that this version trains on ({reason}).") from error
    for file in (file for file in manifest.files if not (commit and file.path.startswith(UNREAD))):
        _verify(root, file)
    return Release(root, source, commit, manifest)


def check_stage(release: Release, stage: Stage, mask_prefix: bool = False, held_out: bool = False) -> None:
    """Refuse a stage with other rows than the manifest says or none, or without the columns that it needs."""
    plain, files = release.plain, release.files(stage.config)
    held = release.files(stage.config, "validation") if held_out else []
    rows = plain["train"].num_rows if plain else sum(pq.read_metadata(path).num_rows for path in files)
    if rows == 0 or rows != stage.rows:
        raise ReleaseError(f"Stage {stage.name} holds {rows:,} rows, the schedule says {stage.rows:,}. Build it again.")
    if held_out and not held:
        told = f"{release.source} has no data/{stage.config}/validation-*.parquet, which eval_strategy asks for"
        raise ReleaseError(f"{told}. Choose a release with held-out prompts.")
    schemas = {path: pq.read_schema(path) for path in files + held}
    for path, schema in (schemas | ({release.root: plain["train"].features.arrow_schema} if plain else {})).items():
        needed = ({"messages": MESSAGES} if "messages" in schema.names else TURNS) if plain else COLUMNS[stage.kind]
        needed = needed | (PREFIX if mask_prefix else {})
        found = {name: str(schema.field(name).type) if name in schema.names else "missing" for name in needed}
        if wrong := [f"{name}: {kind}" for name, kind in found.items() if not re.fullmatch(needed[name], kind)]:
            told = f"{path} has wrong columns: {', '.join(wrong)}. It needs {', '.join(needed)}, turns as lists of"
            raise ReleaseError(f"{told} {{role, content}}; without a manifest messages do. Build it again.")
    trained = [path for other in release.manifest.schedule for path in release.files(other.config)] if held else []
    for column in ("prompt_id", "prompt"):  # rows to reinforce or to prefer have no id
        if both := values(held, column) & values(trained, column):
            told = f"{len(both)} prompts held out of {stage.name} are trained on, as {min(both)}"
            raise ReleaseError(f"{told}: split anew.")


def values(files: list[Path], column: str) -> set[Any]:
    """What a column of these files holds, messages as text; nothing where they have none of that name."""
    found = (value for path in files for value in pq.ParquetFile(path).read([column]).to_pydict().get(column, ()))
    return {value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False) for value in found}


def read(
    release: Release, config: str, prefixes: bool = False, split: str = "train", kind: str = "sft"
) -> Iterator[Any]:
    """Rows of a config in file order, a bounded batch at a time; with `prefix_chars` only to mask prefixes."""
    columns = [*COLUMNS[kind], *(PREFIX if prefixes else ())]
    for path in release.files(config, split):
        for batch in pq.ParquetFile(path).iter_batches(512, columns=columns):
            yield batch.to_pylist()
    number = 0
    for held in release.plain[split].iter(512) if release.plain else ():
        rows = [dict(zip(held, values, strict=True)) for values in zip(*held.values(), strict=True)]
        for row in rows:
            number, turns = number + 1, row.get("messages") or []
            row.update({"prompt": turns[:-1], "completion": turns[-1:]} if "messages" in row else {})
            row.update(position=number, response_id=f"number {number:,}")
        yield rows


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_in(directory: Path, *patterns: str) -> str:
    """What `sha256sum FILES | sha256sum` prints in that directory, hidden files and folders left out."""
    found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    files = sorted(path for path in found if "/." not in f"/{path.relative_to(directory).as_posix()}")
    return hashlib.sha256("".join(f"{sha256_of(path)}  {path.name}\n" for path in files).encode()).hexdigest()


def fetch(repo: str, revision: str | None, repo_type: str, **patterns: Any) -> tuple[Path, str]:
    """Files of a Hub repository at the commit behind a tag, branch or commit, and that commit; never a stale copy."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        commit = str(HfApi().resolve_revision(repo, repo_type=repo_type, revision=revision).resolved)
        return Path(snapshot_download(repo, repo_type=repo_type, revision=commit, **patterns)), commit
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        told = f"Cannot get {repo_type} {repo} at {revision or 'its default branch'}: {reason}. Check the name, the"
        refused = ReleaseError if repo_type == "dataset" else ModelError
        raise refused(f"{told} version, the network, and HF_TOKEN if it is private.") from error


def _plain(root: Path, source: str, commit: str | None) -> Release:
    """A folder of parquet or jsonl files as one stage: what `datasets` finds to be its split train."""
    import datasets

    try:
        splits = datasets.load_dataset(str(root)) if not (root / MANIFEST).parent.exists() else {}
        rows = splits["train"].num_rows
    except Exception as error:
        why = f"nor can it be read as a plain dataset with a split train ({error.__cause__ or repr(error)})"
        raise ReleaseError(f"{root} has no {MANIFEST}, so it is not a release, {why}.") from error
    digest = sha256_in(root, "**/*")  # whatever `datasets` may have read, and a README.md that chooses files
    stage = {"stage": "train", "config": "train", "kind": "sft", "init": "base", "rowset_hash": digest, "rows": rows}
    known = {"format": 1, "version": "-", "build_id": digest, "schedule": [stage | {"tokens": None, "epochs": None}]}
    return Release(root, source, commit, Manifest.model_validate(known | {"files": []}), splits)


def _verify(root: Path, file: File) -> None:
    path = root / file.path
    if {"/", "//", ".."} & {*PurePosixPath(file.path).parts} or not path.is_file():
        raise ReleaseError(f"The manifest lists {file.path}, which is not a file in {root}. Get the release again.")
    if (found := sha256_of(path)) != file.sha256:
        told = f"{file.path} was altered: sha256 {found}, the manifest expects {file.sha256}"
        raise ReleaseError(f"{told}. Get the release again; to change rows, build a new one.")
