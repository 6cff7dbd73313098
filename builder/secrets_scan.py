"""Keys in text that is about to be published: shapes of well-known ones, and the very keys that this process uses.

One pattern without look-around runs over every string column (Polars' regex, gigabytes a second); only where it hits,
Python looks closer and leaves out what merely looks like a key: placeholders, hyphenated words, local addresses.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from builder.errors import SecretError

# Prefixes as their makers document them. Written for Rust's and Python's regular expressions alike.
_SHAPES: Final = {
    "Hugging Face token": r"hf_[A-Za-z0-9]{30,}",
    "API key": r"sk-[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic (sk-ant-), OpenRouter (sk-or-), …
    "AWS access key": r"(?:AKIA|ASIA)[0-9A-Z]{16}",
    "GitHub token": r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}",
    "Google API key": r"AIza[0-9A-Za-z_-]{35}",
    "Slack token": r"xox[abeoprs]-[0-9A-Za-z-]{10,}",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:\s|\\n)*[A-Za-z0-9+/=]{40,}",
    "JSON web token": r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}",
    "URL with a password": r"://[^\s/:@'\"<>]+:[^\s/@'\"<>]+@[A-Za-z0-9.-]+",
}
_OWN: Final = "key of this process"
_PLACEHOLDER: Final = re.compile(
    r"[<{$*%\[]|example|password|passwd|secret|your|\b(?:pass|pw|pwd|token|key|x+)\b", re.IGNORECASE
)
_LOCAL_HOST: Final = re.compile(r"@(localhost|127\.|0\.0\.0\.0|host\b|.*example)")
_SHOWN: Final = 10
_IDS_SHOWN: Final = 50
_BATCH_ROWS: Final = 4096
_IDS: Final = ("response_id", "prompt_id")


@dataclass(frozen=True)
class Finding:
    """One key: where it stands, what it looks like. `masked` shows how it begins, never more."""

    file: str
    place: str
    kind: str
    masked: str

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.kind} {self.masked}"


def own_keys(names: Iterable[str]) -> tuple[str, ...]:
    """Values of these variables of the environment that can be told from words: longer ones, or with a digit."""
    values = {os.environ.get(name, "").strip() for name in names}
    return tuple(sorted(v for v in values if len(v) >= 16 or (len(v) >= 8 and any(c.isdigit() for c in v))))


def refuse_secrets(
    texts: Mapping[str, str | Path], own: Sequence[str], progress: Callable[[int], None] = lambda _: None
) -> None:
    """Look through texts and files (Parquet: all string columns) by the name under which they would be published.

    `own` are keys to find literally. `progress` gets the bytes done. Raises SecretError with every place's first lines.
    """
    findings: list[Finding] = []
    done = 0
    for name, content in texts.items():
        if isinstance(content, Path) and content.suffix == ".parquet":
            findings += _in_parquet(name, content, own)
            done += content.stat().st_size
        else:
            text = content.read_text(encoding="utf-8", errors="replace") if isinstance(content, Path) else content
            findings += [
                Finding(name, f"line {text.count(chr(10), 0, at) + 1}", kind, _mask(found))
                for at, kind, found in _secrets(text, own)
            ]
            done += len(text)
        progress(done)
    if findings:
        raise SecretError(_message(findings))


def masked(text: str, own: Sequence[str] = ()) -> str:
    """The text with everything that may be a key cut to how it begins: for messages."""
    for key in own:
        text = text.replace(key, _mask(key))
    for shape in _SHAPES.values():
        text = re.sub(shape, lambda found: _mask(found[0]), text)
    return text


def _message(findings: Sequence[Finding]) -> str:
    ids = sorted({finding.place.split()[-1] for finding in findings if "_id " in finding.place})
    listed = "".join(f"\n  {finding}" for finding in findings[:_SHOWN])
    more = f"\n  … and {len(findings) - _SHOWN:,} more" if len(findings) > _SHOWN else ""
    remedy = (
        f"Name the ids under release.withdrawn in the recipe ({', '.join(ids[:_IDS_SHOWN])}"
        f"{', …' if len(ids) > _IDS_SHOWN else ''}), or generate those replies anew; then run builder release"
        if ids
        else "Take it out of the recipe, the SQL or the card, then run builder release"
    )
    count = f"{len(findings):,} places hold" if len(findings) > 1 else "One place holds"
    return (
        f"{count} what looks like a key, and what is published once is public for good:{listed}{more}\nNothing was "
        f"sent. {remedy} and publish again. A key that is real should be revoked now."
    )


def _in_parquet(name: str, path: Path, own: Sequence[str]) -> Iterator[Finding]:
    pattern = "|".join([*_SHAPES.values(), *map(re.escape, own)])
    with pq.ParquetFile(path) as file:
        wanted = [field.name for field in file.schema_arrow if _holds_text(field.type)]
        start = 0
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
            for column in batch.schema.names:
                if any(pl.Series(leaf).str.contains(pattern).any() for leaf in _leaves(batch[column])):
                    yield from _in_column(name, batch, column, start, own)
            start += batch.num_rows


def _in_column(name: str, batch: pa.RecordBatch, column: str, start: int, own: Sequence[str]) -> Iterator[Finding]:
    key = next((one for one in _IDS if one in batch.schema.names), None)
    for number, value in enumerate(batch[column].to_pylist()):
        row = f"{key} {batch[key][number].as_py()}" if key is not None else f"row {start + number:,}"
        for text in _strings(value):
            for _, kind, found in _secrets(text, own):
                yield Finding(name, f"column {column}, {row}", kind, _mask(found))


def _secrets(text: str, own: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Place, kind and text of every key in a text."""
    for key in own:
        if (at := text.find(key)) >= 0:
            yield at, _OWN, key
    for kind, shape in _SHAPES.items():
        for found in re.finditer(shape, text):
            before = text[found.start() - 1 : found.start()]
            if _is_likely(kind, found[0]) and not (found[0][0].isalnum() and (before.isalnum() or before == "_")):
                yield found.start(), kind, found[0]


def _is_likely(kind: str, found: str) -> bool:
    """Whether chance or habit would not write this: `sk-learn-based-…`, `hf_xxxx…`, `://user:password@localhost`."""
    if kind == "private key":
        return True
    if kind == "URL with a password":
        return _PLACEHOLDER.search(found.split(":", 2)[2].partition("@")[0]) is None and not _LOCAL_HOST.search(found)
    runs = re.findall(r"[A-Za-z0-9]+", found.removeprefix("sk-") if kind == "API key" else found)
    longest = max(runs, key=len)
    is_mixed = any(c.isdigit() for c in found) and len(set(longest)) >= 6
    return (
        is_mixed
        and "EXAMPLE" not in found
        and (kind != "API key" or any(len(run) >= 12 and _is_mixed(run) for run in runs))
    )


def _is_mixed(run: str) -> bool:
    return any(c.isdigit() for c in run) and any(c.isalpha() for c in run)


def _mask(found: str) -> str:
    if found.startswith("://"):
        user, _, host = found.partition("@")
        return f"{user.split(':')[0]}://{user.split(':')[1][2:]}:…@{host}"
    return f"{found[:4]}… ({len(found)} characters)"


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return True
    return any(_holds_text(kind.field(index).type) for index in range(kind.num_fields))


def _leaves(array: Any) -> Iterator[Any]:
    """The arrays of strings in an array of strings, lists and structs."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        yield from _leaves(array.dictionary)
    elif pa.types.is_struct(kind):
        for child in array.flatten():
            yield from _leaves(child)
    elif pa.types.is_map(kind):
        yield from _leaves(array.keys)
        yield from _leaves(array.items)
    elif kind.num_fields:
        yield from _leaves(array.flatten())
    elif _holds_text(kind):
        yield array


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)
