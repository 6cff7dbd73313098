"""What a stage directory says about itself, and how it comes to be: whole or not at all."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, Template

from trainer import config, data
from trainer.errors import ModelError, StageError

RECORD, STARTED = "training.json", "started.json"  # of a finished stage, of an unfinished one
CARD = Path(__file__).parent / "card.md.jinja"
TOKENIZER = ("*token*.json", "vocab.*", "merges.txt", "*.model", "chat_template*", "special_tokens_map.json")


class Base(NamedTuple):
    """The student before training: a directory, or a Hub model at a commit."""

    name: str
    revision: str | None
    path: Path
    weights_sha256: str | None  # None where only the rest of it was fetched


def resolve_base(model: str, revision: str | None, weights: bool) -> Base:
    """The student's files; from the Hub at one commit, without weights where only the tokenizer is needed."""
    path, commit = Path(model), None
    if not path.is_dir() or revision is not None:
        if path.is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            named = f"{model} at {revision}"
            raise ModelError(f"{named} is neither a directory (without revision) nor a Hub model `org/name`.")
        patterns = ["*.json", "*.jinja", "*.txt", "*.model", *(["*.safetensors"] if weights else [])]
        path, commit = data.fetch(model, revision, "model", patterns)
    here = weights or any(path.glob("*.safetensors"))
    return Base(model, commit, path, weights_sha256(path) if here else None)


def weights_sha256(directory: Path) -> str:
    """What `sha256sum *.safetensors | sha256sum` prints in that directory."""
    if not any(directory.glob("*.safetensors")):
        raise ModelError(f"{directory} has no *.safetensors weights. Save the model with `save_pretrained`.")
    return sha256_of(directory, "*.safetensors")


def sha256_of(directory: Path, *patterns: str) -> str:
    files = sorted({path for pattern in patterns for path in directory.glob(pattern)})
    return hashlib.sha256("".join(f"{data.sha256_of(path)}  {path.name}\n" for path in files).encode()).hexdigest()


def read(directory: Path) -> dict[str, Any] | None:
    """The record of a finished stage, None where there is none."""
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8")) if directory.exists() else None
        return record and {"weights_sha256": record["weights_sha256"], "settings": record["settings"]} | record
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StageError(f"{directory} is no stage of ours: {error!r}. Choose another --output.") from error


def differences(record: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What a stage was trained with that is now asked otherwise. A wanted None is not known yet."""
    then, now = record["settings"], wanted["settings"]
    changed = sorted(name for name in {*then, *now} - config.COSMETIC if then.get(name) != now.get(name))
    found = [f"{name} {then.get(name)!r}, now {now.get(name)!r}" for name in changed]
    return found + [k for k, v in wanted.items() if k != "settings" and v is not None and record.get(k) != v]


def start(partial: Path, wanted: dict[str, Any]) -> Path | None:
    """Keep of an unfinished stage what the very same one can go on from: its newest whole checkpoint, else None.

    transformers writes trainer_state.json last, and random states only beside an optimizer.
    """
    if (before := _json(partial / STARTED)) is None or differences(before, wanted):
        discard(partial)
        partial.mkdir(parents=True)
        (partial / STARTED).write_text(json.dumps(wanted), encoding="utf-8")
    found = sorted(partial.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    whole = [path for path in found if _json(path / "trainer_state.json") and any(path.glob("rng_state*"))]
    for path in {*found} - {*whole}:
        discard(path)
    return whole[-1] if whole else None


def commit(partial: Path, directory: Path, record: dict[str, Any]) -> None:
    """Give a finished stage its record, its card and its name, once all of it is on disk.

    Checkpoints to go on from have served; those of models alone were asked for. training_args.bin is a pickle with
    paths: the record says it all.
    """
    for path in {path.parent for path in partial.glob("checkpoint-*/rng_state*")}:
        discard(path)
    for path in (partial / "training_args.bin", partial / STARTED):
        path.unlink(missing_ok=True)
    (partial / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    template = Template(CARD.read_text(encoding="utf-8"), undefined=StrictUndefined, keep_trailing_newline=True)
    (partial / "README.md").write_text(template.render(record), encoding="utf-8")
    _sync(*partial.rglob("*"), partial)
    partial.rename(directory)
    _sync(directory.parent)


def discard(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def link_final(output: Path, directory: Path) -> None:
    """Point `final` at a stage, by rename so that it always points somewhere."""
    (output / ".final").unlink(missing_ok=True)
    (output / ".final").symlink_to(directory.name)
    (output / ".final").rename(output / "final")


def push(repo: str, directory: Path) -> str:
    """Upload a finished stage to a model repository, private if it is new; the address of its commit."""
    from huggingface_hub import HfApi

    try:
        repo = HfApi().create_repo(repo, private=True, exist_ok=True).repo_id
        return str(HfApi().upload_folder(repo_id=repo, folder_path=directory, commit_message=directory.name).commit_url)
    except Exception as error:
        reason = f"{directory} is trained and kept, but cannot be pushed to {repo}: {' '.join(str(error).split())}"
        raise StageError(f"{reason}. Check HF_TOKEN and the name, then rerun: nothing is trained again.") from error


def _json(path: Path) -> Any:
    """What a file holds, None where it is missing or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _sync(*paths: Path) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
