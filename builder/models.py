"""Which weights a name stands for: a commit id for a Hub model, a hash for a folder on this machine."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from builder.config import Student, Teacher
from builder.errors import UsageError
from builder.identity import canonical_json, sha256_hex
from builder.store import file_sha256

_DECISIVE = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")
# What training leaves beside the weights and what changes no output of the model.
_IGNORED = frozenset({"training.json", "training_args.bin", "trainer_state.json", "model.safetensors.index.json"})


def model_sha256(folder: Path) -> str:
    """64 hex digits over weights, config and tokenizer of a model folder: names and contents, in order of names."""
    files = sorted(path for path in folder.iterdir() if path.suffix in _DECISIVE and path.name not in _IGNORED)
    if not any(path.suffix in (".safetensors", ".bin") for path in files):
        raise UsageError(f"{folder} holds no weights (*.safetensors); it cannot be used as a model.")
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        digest.update(path.name.encode())
        digest.update(bytes.fromhex(_file_sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)))
    return digest.hexdigest()


def weights_sha256(folder: Path) -> str:
    """What `sha256sum *.safetensors | sha256sum` prints in that folder: the trainer's name for weights alone."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UsageError(f"{folder} holds no *.safetensors, so it cannot be used as a checkpoint.")
    stats = [(path, path.stat()) for path in files]
    lines = [f"{_file_sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)}  {path.name}\n" for path, stat in stats]
    return sha256_hex("".join(lines))


@lru_cache(maxsize=1024)
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hash of a file, read once while it stays as it is: several steps of one command ask for the same weights."""
    return file_sha256(path)


def resolved_revision(model: str, revision: str | None) -> str | None:
    """The declared revision; for a folder on this machine without one, the hash of its weights."""
    if revision is None and Path(model).is_dir():
        return model_sha256(Path(model))
    return revision


def student_id(student: Student) -> str:
    """16 hex digits: the student whose scores these are. Another system prompt or dtype gives other scores.

    A folder stands for its weights, wherever it lies and whatever its name; a Hub model for its name and commit.
    """
    by_weights = student.revision is None and Path(student.model).is_dir()
    return sha256_hex(
        canonical_json(
            {
                "model": None if by_weights else student.model,
                "revision": resolved_revision(student.model, student.revision),
                "system_prompt": student.system_prompt,
                "dtype": student.dtype,
            }
        )
    )[:16]


def quantisation(student: Student) -> str | None:
    """Method by which the checkpoint is quantised (fp8, gptq, awq, bitsandbytes …); None where its config names none.

    A server may quantise what it loads: that does not show here.
    """
    path = Path(student.model) / "config.json"
    if not Path(student.model).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(student.model, "config.json", revision=student.revision))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
            return None  # loading the student says what is wrong
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    return str(settings.get("quant_method") or "method not named") if settings else None


def tokenizer_json(teacher: Teacher) -> str | None:
    """The teacher's `tokenizer.json`, from a folder or the Hub; None where there is none to be had."""
    folder = tokenizer_folder(teacher)
    path = folder / "tokenizer.json" if folder else None
    return path.read_text(encoding="utf-8") if path and path.is_file() else None


def teacher_tokenizer(teacher: Teacher) -> Any:
    """The teacher's fast tokenizer with its chat template; None where there is none to be had."""
    folder = tokenizer_folder(teacher)
    if folder is None:
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except Exception:  # which one depends on what is broken in a stranger's files
        return None
    return tokenizer if tokenizer.is_fast and tokenizer.chat_template else None


def tokenizer_folder(teacher: Teacher) -> Path | None:
    """A folder with the files of the teacher's tokenizer and chat template; None where they are not to be had."""
    name = teacher.tokenizer or teacher.model
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    revision = teacher.revision if teacher.tokenizer in (None, teacher.model) else None
    patterns = ["*token*.json", "chat_template*", "*.jinja", "config.json", "*.model", "vocab*", "merges.txt"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None
