"""What a stage directory says about itself, and how it comes to be: whole or not at all."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import is_zipfile

from jinja2 import StrictUndefined, Template

from trainer import config, data
from trainer.errors import ModelError, StageError

Record = dict[str, Any]
RECORD, STARTED = "training.json", "started.json"  # of a finished stage, of an unfinished one
CARD = Path(__file__).parent / "card.md.jinja"
TOKENIZER = ("*token*.json", "vocab.*", "merges.txt", "*.model", "chat_template*", "special_tokens_map.json")


class Base(NamedTuple):  # the student before training: a directory, or a Hub model at a commit
    name: str
    revision: str | None
    path: Path
    weights_sha256: str | None  # None where only the rest of it was fetched


def resolve_base(model: str, revision: str | None, weights: bool) -> Base:
    """The student's files; from the Hub at one commit, without weights where only the tokenizer is needed."""
    path, commit = Path(model), None
    if not path.is_dir() or revision is not None:
        if path.is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            raise ModelError(f"{model} at {revision} is neither a directory, which has none, nor a Hub model org/name.")
        patterns = ["*.json", "*.jinja", "*.txt", "*.model", *(["*.safetensors"] if weights else [])]
        path, commit = data.fetch(model, revision, "model", allow_patterns=patterns)
    here = weights or any(path.glob("*.safetensors"))
    return Base(model if commit else path.resolve().name, commit, path, weights_sha256(path) if here else None)


def weights_sha256(directory: Path) -> str:
    if not any(directory.glob("*.safetensors")):
        raise ModelError(f"{directory} has no *.safetensors weights. Save the model with `save_pretrained`.")
    return data.sha256_in(directory, "*.safetensors")


def read(directory: Path) -> Record | None:
    """The record of a finished stage, None where there is none."""
    record: Record | None = content(directory / RECORD)
    if directory.exists() and not (isinstance(record, dict) and {"weights_sha256", "settings"} <= record.keys()):
        raise StageError(f"{directory} is no stage of ours: it has no whole {RECORD}. Choose another --output.")
    return record


def differences(record: Record, wanted: Record) -> list[str]:
    """What a stage was trained with that is now asked otherwise. A wanted None is not known yet."""
    then, now = record["settings"], wanted["settings"]
    names = sorted({*then, *now} - {*config.ARGUMENTS["cosmetic"]})
    found = [f"{n} {then.get(n)!r}, now {now.get(n)!r}" for n in names if then.get(n) != now.get(n)]
    return found + [k for k, v in wanted.items() if k != "settings" and v is not None and record.get(k) != v]


def chain(initial: Path, record: Record) -> list[Record]:
    """The stages that led to this one's weights, itself the last, as far back as stages of ours tell."""
    before, dataset = content(initial / RECORD), record["dataset"]
    ours = isinstance(before, dict) and before.get("weights_sha256") == record["initial_weights_sha256"]
    own = {key: record[key] for key in ("stage", "kind", "weights_sha256")} | {"build_id": dataset["build_id"]}
    own |= {"dataset": {key: dataset[key] for key in ("recipe_name", "version")}}
    return [*(before.get("lineage", []) if ours else []), own]


def start(partial: Path, wanted: dict[str, Any]) -> Path | None:
    """Keep of an unfinished stage what the very same one can go on from: its newest whole checkpoint, else None."""
    if (before := content(partial / STARTED)) is None or differences(before, wanted):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / STARTED).write_text(json.dumps(wanted), encoding="utf-8")
    found = sorted(partial.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    # The first process writes trainer_state.json last, each one its random state, and these only beside an optimizer.
    states = {path: sum(map(is_zipfile, path.glob("rng_state*"))) for path in found}
    whole = [path for path in found if states[path] == wanted["processes"] and content(path / "trainer_state.json")]
    for path in {*found} - {*whole}:
        shutil.rmtree(path)
    return whole[-1] if whole else None


def commit(partial: Path, directory: Path, record: Record, initial: Path) -> None:
    """Give a finished stage its record, its card and its name, once all of it is on disk."""
    record = record | {"weights_sha256": weights_sha256(partial)}
    record |= {"lineage": chain(initial, record)}
    # Checkpoints to go on from have served; those of models alone were asked for. training_args.bin is a pickle.
    for path in {path.parent for path in partial.glob("checkpoint-*/rng_state*")}:
        shutil.rmtree(path)
    for path in (partial / "training_args.bin", partial / STARTED):
        path.unlink(missing_ok=True)
    (partial / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    template = Template(CARD.read_text(encoding="utf-8"), undefined=StrictUndefined, keep_trailing_newline=True)
    (partial / "README.md").write_text(template.render(record), encoding="utf-8")
    os.sync()
    partial.rename(directory)
    os.sync()


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
        told = f"{directory} is trained and kept, but cannot be pushed to {repo}: {' '.join(str(error).split())}"
        raise StageError(f"{told}. Check HF_TOKEN and the name, then rerun: nothing is trained again.") from error


def content(path: Path) -> Any:
    """What a file holds, None where it is missing or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
