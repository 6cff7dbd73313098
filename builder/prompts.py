"""Sources → table `prompts`. Every source row becomes a prompt or stops the run; duplicates merge and are counted."""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from builder.collector import no_collection
from builder.config import Recipe
from builder.errors import SourceError
from builder.identity import normalize_messages, normalized_prompt_id
from builder.section import Gold, PromptSource
from builder.store import Run, columns_table, where
from builder.verifiers import default_verifier

_CHUNK = 4096
"""Prompts that become columns at once: while they do, each takes 15 kB."""
_ROLES = ("system", "user", "assistant", "tool", "developer")


@dataclass(frozen=True)
class Prompts:
    """Prompts of a recipe, in order of reading, what merging them found, and notes on how columns were read."""

    rows: list[dict[str, Any]]
    source_rows: int
    duplicates: int
    gold_conflicts: int
    notes: tuple[str, ...] = ()


def load_prompts(recipe: Recipe, *, limit: int | None = None) -> Prompts:
    """Read all sources. Raises SourceError naming source and row for anything that cannot become a prompt."""
    if not recipe.prompts:
        raise SourceError(f"Recipe {recipe.name!r} has no `prompts`; add at least one source with questions.")
    merged: dict[str, dict[str, Any]] = {}
    golds: dict[str, set[str]] = {}
    notes: list[str] = []
    total = 0
    for source in recipe.prompts:
        if limit is not None and len(merged) >= limit:
            break
        revision, rows = open_source(source)
        count = 0
        with no_collection():
            for number, row in enumerate(rows, start=1):
                if limit is not None and len(merged) >= limit:
                    break
                count += 1
                if number == 1:
                    columns = _columns(source, row, notes)
                _merge(merged, golds, _prompt(columns, revision, number, row))
        total += count
        if count == 0 and (limit is None or len(merged) < limit):
            raise SourceError(f"{source.source} holds no rows. Check the file, the config and the split.")
        if source.rows is not None and limit is None and count != source.rows:
            raise SourceError(
                f"{source.source} has {count} rows, but the recipe declares {source.rows}. Costs were planned for the "
                "declared number; correct `rows`, or the source."
            )
    for key, different in golds.items():
        merged[key] |= {"gold": None, "gold_conflicts": len(different) - 1}
    return Prompts(list(merged.values()), total, total - len(merged), len(golds), tuple(notes))


def _columns(source: PromptSource, first: dict[str, Any], notes: list[str]) -> PromptSource:
    """The source as its first row can be read: a file in place of the recipe's own may have the standard columns."""
    named = source.messages or source.prompt
    standard = next((name for name in ("prompt", "messages") if name in first), None)
    if source.is_hub or named is None or named in first or standard is None:
        return source
    gold = source.gold.column if isinstance(source.gold, Gold) else source.gold
    notes.append(f"{source.source} has no column {named!r}; its column {standard!r} is read instead")
    if gold is not None and gold not in first:
        notes.append(f"{source.source} has no column {gold!r}; its column 'gold', where it has one, is read instead")
        source = source.model_copy(update={"gold": None})
    return source.model_copy(update={"prompt": None, "messages": None})


def write_prompts(run: Run, prompts: Prompts, *, limited: bool = False) -> None:
    """Make them the table `prompts`. A run over the first few prompts (`limited`) keeps the others that are there.

    Replies to prompts that left the recipe stay in `responses`; they are candidates again when the prompt returns.
    Prompts of imported replies stay in any case: no recipe brings them back.
    """
    starts = range(0, len(prompts.rows), _CHUNK) or [0]
    rows = pa.concat_tables([columns_table("prompts", prompts.rows[start : start + _CHUNK]) for start in starts])
    run.replace("prompts", pa.concat_tables([rows, _others(run, prompts, limited=limited)]))


def _others(run: Run, prompts: Prompts, *, limited: bool) -> "pa.Table":
    """Rows of the table that stay beside `prompts`."""
    wanted = {row["prompt_id"] for row in prompts.rows}
    ids = run.columns("prompts", ["prompt_id"])["prompt_id"].to_pylist()
    stays = [identity not in wanted for identity in ids]
    if any(stays) and not limited:
        imported = _imported(run)
        stays = [identity in imported and stay for identity, stay in zip(ids, stays, strict=True)]
    return where(run.columns("prompts"), stays) if any(stays) else columns_table("prompts", [])


def _imported(run: Run) -> set[str]:
    """Ids of the prompts of imported replies, which were received at no time."""
    found: set[str] = set()
    for _, rows in run.by_part("responses", ["prompt_id", "received_at"]):
        never = rows["received_at"].is_null().to_pylist()  # the times themselves would come by way of pandas
        ids: list[Any] = rows["prompt_id"].to_pylist()
        found.update(prompt for prompt, is_imported in zip(ids, never, strict=True) if is_imported)
    return found


def open_source(source: PromptSource) -> tuple[str, Iterable[dict[str, Any]]]:
    """Revision (commit, or sha256 of the file) and rows of a source."""
    if source.is_hub:
        return _open_hub(source)
    path = Path(source.source)
    if not path.is_file():
        raise SourceError(f"Prompt source {source.source} does not exist (looked in {Path.cwd()}).")
    try:
        with path.open("rb") as file:
            revision = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"Prompt source {source.source} cannot be read: {error}.") from error
    return revision, _open_file(path)


def _open_file(path: Path) -> Iterator[dict[str, Any]]:
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        return _json_lines(path)
    if name.endswith(".parquet"):
        return _arrow_rows(path)
    raise SourceError(f"{path} is no .jsonl, .jsonl.gz or .parquet file; convert it to one of these.")


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):  # bytes: lines end at \n only, never at U+2028
                if not line.strip():
                    continue
                row = msgspec.json.decode(line.removeprefix(b"\xef\xbb\xbf"))
                if not isinstance(row, dict):
                    raise SourceError(f"{path} line {number} is no JSON object but {type(row).__name__}.")
                yield row
    except msgspec.DecodeError as error:
        raise SourceError(f"{path} line {number} is no JSON: {error}. Each line must hold one JSON object.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path} cannot be read after line {number}: {error}.") from error


def _arrow_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=4096):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path} cannot be read as Parquet: {error}.") from error


def _open_hub(source: PromptSource) -> tuple[str, Iterable[dict[str, Any]]]:
    """Rows of a Hub dataset at its pinned commit, read from the snapshot: never whatever version a cache holds."""
    if source.revision is None:
        raise SourceError(
            f"{source.source} is not pinned. A branch can change between two runs; "
            "set prompts.N.revision to the full commit id of the version you mean."
        )
    from datasets import load_dataset
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            source.source.removeprefix("hf://datasets/"), repo_type="dataset", revision=source.revision
        )
        rows = load_dataset(folder, source.config, split=source.split)
    except Exception as error:  # the Hub client raises a dozen unrelated classes; the message names the cause
        raise SourceError(
            f"{source.source} at {source.revision[:12]} cannot be read: {type(error).__name__}: {error}. "
            "Check the network, HF_TOKEN, the config and the split, or give a local file with prompts.N.source=FILE."
        ) from error
    return source.revision, rows


def _prompt(source: PromptSource, revision: str, number: int, row: dict[str, Any]) -> dict[str, Any]:
    """One source row as a row of `prompts`."""
    where = f"{source.source} row {number}"
    messages = normalize_messages(_messages(source, where, row))
    if not messages[-1]["content"] or not any(message["role"] == "user" for message in messages):
        raise SourceError(f"{where} has an empty question. Nothing can be asked; remove the row or fill it in.")
    if messages[-1]["role"] == "assistant":
        raise SourceError(
            f"{where} ends with the assistant's own reply, which is no part of a question: endpoints would be paid to "
            "answer nothing. Keep the messages up to the last user turn."
        )
    gold_type = source.gold_type or _text(row, "gold_type")
    gold = _gold(source, where, row)
    return {
        "prompt_id": normalized_prompt_id(messages),
        "messages": messages,
        "domain": source.domain or _text(row, "domain"),
        "gold": gold,
        "gold_type": gold_type,
        "verifier": source.verifier or _text(row, "verifier") or default_verifier(gold_type),
        "language": source.language or _text(row, "language"),
        "sources": [
            {
                "source": source.source if source.is_hub else _file_name(source.source),
                "revision": revision,
                "license": source.license or _text(row, "license") or _text(row, "licence"),
            }
        ],
        "gold_conflicts": 0,
    }


@cache
def _file_name(path: str) -> str:
    return Path(path).name


def _messages(source: PromptSource, where: str, row: dict[str, Any]) -> list[dict[str, str]]:
    column = source.messages or source.prompt or ("messages" if "prompt" not in row else "prompt")
    if column not in row:
        raise SourceError(
            f"{where} has no column {column!r}; it has {', '.join(sorted(row)) or 'none'}. "
            "Name the column of the question with prompts.N.prompt=COLUMN."
        )
    value = row[column]
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise SourceError(f"{where}: column {column!r} holds {type(value).__name__}, neither text nor messages.")
    for message in value:
        if (
            not isinstance(message, dict)
            or message.get("role") not in _ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise SourceError(f"{where}: {message!r} is no message with a role of {', '.join(_ROLES)} and a text.")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _gold(source: PromptSource, where: str, row: dict[str, Any]) -> str | None:
    spec = source.gold
    if spec is None:
        return _text(row, "gold")
    column = spec.column if isinstance(spec, Gold) else spec
    if column not in row:
        raise SourceError(f"{where} has no column {column!r} for the gold; it has {', '.join(sorted(row))}.")
    text = _text(row, column)
    if text is None or isinstance(spec, str):
        return text
    if spec.entry_point is not None:
        name = _text(row, spec.entry_point)
        if name is None or not name.isidentifier():
            raise SourceError(
                f"{where}: column {spec.entry_point!r} holds {name!r}, no name of a function, so the tests in "
                f"{column!r} would check nothing. Correct `entry_point`, or leave it out."
            )
        return f"{text}\n\ncheck({name})\n"
    if spec.pattern is None:
        return text
    found = re.search(spec.pattern, text, re.MULTILINE)
    if found is None:
        raise SourceError(
            f"{where}: pattern {spec.pattern!r} is not in column {column!r} ({text[-60:]!r}), so it has no gold. "
            "Correct the pattern, or leave `gold` out."
        )
    return str(found[1]).strip()


def _text(row: dict[str, Any], column: str) -> str | None:
    value = row.get(column)
    if isinstance(value, (list, dict)):  # str() would be Python's spelling, which no verifier reads
        return json.dumps(value, ensure_ascii=False, default=str)
    return None if value is None or value == "" else str(value)


def _merge(merged: dict[str, dict[str, Any]], golds: dict[str, set[str]], row: dict[str, Any]) -> None:
    """Add a prompt; one that is there already gains the source, and a gold where it had none.

    `golds` holds all golds of the prompts whose sources disagree.
    """
    key = row["prompt_id"]
    known = merged.setdefault(key, row)
    if known is row:
        return
    if row["gold"] is not None and known["gold"] is not None and row["gold"] != known["gold"]:
        golds.setdefault(key, {known["gold"]}).add(row["gold"])
    if row["sources"][0] not in known["sources"]:
        known["sources"].append(row["sources"][0])
    for column in ("gold", "gold_type", "verifier", "domain", "language"):
        known[column] = known[column] if known[column] is not None else row[column]
