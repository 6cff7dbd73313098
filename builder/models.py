"""Which weights a name stands for: a commit id for a Hub model, a hash for a folder on this machine."""

import hashlib
from pathlib import Path

from builder.config import Student
from builder.errors import UsageError
from builder.identity import canonical_json, sha256_hex

_DECISIVE = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")
# What training leaves beside the weights and what changes no output of the model.
_IGNORED = frozenset({"training.json", "trainer_state.json", "model.safetensors.index.json"})


def weights_sha256(folder: Path) -> str:
    """64 hex digits over weights, config and tokenizer of a model folder: names and contents, in order of names."""
    digest = hashlib.sha256()
    files = sorted(path for path in folder.iterdir() if path.suffix in _DECISIVE and path.name not in _IGNORED)
    if not any(path.suffix in (".safetensors", ".bin") for path in files):
        raise UsageError(f"{folder} holds no weights (*.safetensors); it cannot be used as a model.")
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def resolved_revision(model: str, revision: str | None) -> str | None:
    """The declared revision; for a folder on this machine without one, the hash of its weights."""
    if revision is None and Path(model).is_dir():
        return weights_sha256(Path(model))
    return revision


def student_id(student: Student) -> str:
    """16 hex digits: the student whose scores these are. Another system prompt or dtype gives other scores."""
    return sha256_hex(
        canonical_json(
            {
                "model": Path(student.model).name if Path(student.model).is_dir() else student.model,
                "revision": resolved_revision(student.model, student.revision),
                "system_prompt": student.system_prompt,
                "dtype": student.dtype,
            }
        )
    )[:16]
