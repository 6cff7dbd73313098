"""What a stage directory says about itself, and how it comes to be: whole or not at all."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template

from trainer import config, data
from trainer.errors import ModelError, StageError

RECORD = "training.json"
CARD = Path(__file__).parent / "card.md.jinja"
TOKENIZER = ("*token*.json", "vocab.*", "merges.txt", "*.model", "chat_template*", "special_tokens_map.json")


@dataclass(frozen=True)
class Base:
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
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{directory} has no *.safetensors weights. Save the model with `save_pretrained`.")
    return _digest(files)


def tokenizer_sha256(directory: Path) -> str:
    return _digest(sorted({path for pattern in TOKENIZER for path in directory.glob(pattern)}))


def read(directory: Path) -> dict[str, Any] | None:
    """The record of a finished stage, None where there is none."""
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8")) if directory.exists() else None
        return record and {"weights_sha256": record["weights_sha256"], "settings": record["settings"]} | record
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StageError(f"{directory} is no stage of ours: {error!r}. Choose another --output.") from error


def differences(record: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What a finished stage was trained with that is now asked otherwise. A wanted None is not known yet."""
    then, now = record["settings"], wanted["settings"]
    changed = sorted(name for name in {*then, *now} - config.COSMETIC if then.get(name) != now.get(name))
    found = [f"{name} {then.get(name)!r}, now {now.get(name)!r}" for name in changed]
    found += [k for k, v in wanted.items() if k != "settings" and v is not None and record.get(k) != v]
    return found


def commit(partial: Path, directory: Path, record: dict[str, Any]) -> None:
    """Give a finished stage its record, its card and its name, once all of it is on disk."""
    (partial / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    template = Template(CARD.read_text(encoding="utf-8"), undefined=StrictUndefined, keep_trailing_newline=True)
    (partial / "README.md").write_text(template.render(record), encoding="utf-8")
    for path in [*partial.rglob("*"), partial]:
        _sync(path)
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


def _digest(files: list[Path]) -> str:
    return hashlib.sha256("".join(f"{data.sha256_of(path)}  {path.name}\n" for path in files).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
