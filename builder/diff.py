"""`builder diff`: two releases, here or on the Hub, compared by manifest, texts and rows.

Files of equal hashes are never opened, and from the Hub only those are fetched that the other side lacks.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from builder.diff_manifest import Facts, Row, fields, read_facts, rules, side_by_side, sources, stages
from builder.diff_rows import RowDiff, compare_rows, only_rows
from builder.errors import ReleaseError, UsageError
from builder.published import Published, open_published, read_text
from builder.release_held_out import HELD_OUT

_TEXT: Final = re.compile(r"\.builder/.+\.(yaml|sql|py|txt|json)")
_TEXT_BYTES: Final = 200_000
"""A longer text is only named: difflib takes minutes for what no person reads."""


@dataclass(frozen=True)
class ConfigDiff:
    """One config, or what is held out of it (`CONFIG/validation`): rows on each side by the manifests (None: the side
    lacks it); `rows` compares them where the files differ and both have it; `samples` are quotes where only one has it.
    """

    config: str
    rows_a: int | None
    rows_b: int | None
    rows: RowDiff | None
    samples: tuple[Mapping[str, Any], ...] = ()

    @property
    def is_same(self) -> bool:
        both = self.rows_a is not None and self.rows_b is not None
        return both and (self.rows is None or self.rows.is_same)


@dataclass(frozen=True)
class Diff:
    """How release b differs from release a.

    `a`, `b`: name as given, source, commit, version, build_id, created. `fields`: values of the manifest that
    differ: field, a, b; of a list what was removed and added. `sources`: prompt sources that gave other numbers.
    `schedule`: every stage with what each side says of it, its place included; `funnel`: every rule with breaks,
    breaks_alone, tokens of each side; None where the side lacks it. `texts`: recipe, SQL and package versions that
    differ: path and unified diff. `files`: other files that differ. `download`: of b what a lacks, and all, in bytes
    and files. `is_same`: no difference but in version, times, costs, and how the same rows lie in files.
    """

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    is_same: bool
    fields: tuple[Mapping[str, Any], ...]
    sources: tuple[Mapping[str, Any], ...]
    schedule: tuple[Mapping[str, Any], ...]
    funnel: tuple[Mapping[str, Any], ...]
    texts: tuple[Mapping[str, Any], ...]
    files: tuple[Mapping[str, Any], ...]
    configs: tuple[ConfigDiff, ...]
    download: Mapping[str, int]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Side:
    name: str
    published: Published
    facts: Facts
    manifest: Mapping[str, Any]

    @property
    def files(self) -> dict[str, Any]:
        return {file.path: file for file in self.published.manifest.files}

    @property
    def hashes(self) -> set[str]:
        return {file.sha256 for file in self.published.manifest.files}

    def summary(self) -> Row:
        manifest = self.published.manifest
        return {
            "name": self.name,
            "source": self.published.source,
            "commit": self.published.revision if self.published.repo else None,
            "version": manifest.version,
            "build_id": manifest.build_id,
            "created": self.facts.created,
        }


def diff(a: str, b: str, sample: int = 0, progress: Callable[[int, int, str], None] = lambda *_: None) -> Diff:
    """Compare two releases, each the folder of one, `RUN@vN` or `org/name@revision`; quote `sample` rows of a kind.

    `progress` is called with configs done, their number and the next one. Raises UsageError for a name that is neither,
    ReleaseError for a release that cannot be got, was altered, or cannot be read.
    """
    one, two = _open(a), _open(b)
    paths = _fetch(one, two, sample)
    listed = {**one.published.configs, **two.published.configs}
    trained = [stage.config for side in (one, two) for stage in side.facts.schedule]
    with_splits = [name for config in trained for name in (config, f"{config}/{HELD_OUT}") if name in listed]
    names = list(dict.fromkeys([*with_splits, *listed]))
    configs = []
    for done, name in enumerate(names):
        progress(done, len(names), name)
        configs.append(_config(name, one, two, paths, sample))
    found: dict[str, Any] = {
        "fields": tuple(fields(one.manifest, two.manifest)),
        "sources": sources(one.facts, two.facts),
        "schedule": side_by_side("stage", stages(one.facts), stages(two.facts)),
        "funnel": side_by_side("rule", rules(one.facts), rules(two.facts)),
        "texts": tuple(_texts(one, two, paths)),
        "files": tuple(_other_files(one, two)),
    }
    same_tables = all(row["a"] == row["b"] for row in (*found["schedule"], *found["funnel"]))
    differs = any(found[part] for part in ("fields", "sources", "texts", "files"))
    same_rows = all(config.is_same for config in configs)
    return Diff(
        one.summary(),
        two.summary(),
        is_same=same_tables and same_rows and not differs,
        **found,
        configs=tuple(configs),
        download=_download(one, two),
        warnings=_defects(one, two),
    )


def _open(name: str) -> _Side:
    published = open_published(str(_folder(name) or name))
    return _Side(name, published, *read_facts(published))


def _folder(name: str) -> Path | None:
    """The release that `RUN@vN` names: RUN is a run directory, or one below `runs/`. None where it names no run."""
    run, version = name.rsplit("@", 1) if "@" in name else (name, "")
    if Path(name).exists() and not (Path(name) / "releases").is_dir():
        return None
    for root in (Path(run), Path("runs") / run):
        releases = root / "releases"
        if run and releases.is_dir():
            if version and (releases / version).is_dir():
                return releases / version
            known = sorted(path.name for path in releases.glob("v*"))
            raise UsageError(
                f"{name} does not name a release of {root}: give its version, RUN@vN. "
                f"There: {', '.join(f'{run}@{one}' for one in known) or 'none yet; run builder release'}."
            )
    return None


def _fetch(a: _Side, b: _Side, sample: int) -> dict[str, Path]:
    """Verified files by sha256: all of a local release, since nothing else proves that it is what its manifest says;
    of a published one what differs. Local ones first, so that what is here is not fetched."""
    paths: dict[str, Path] = {}
    for side, other in sorted(((a, b), (b, a)), key=lambda pair: pair[0].published.repo is not None):
        needed = list(side.files.values()) if side.published.repo is None else _differing(side, other, sample)
        wanted = [file for file in needed if side.published.repo is None or file.sha256 not in paths]
        paths |= dict(zip([file.sha256 for file in wanted], side.published.get(wanted), strict=True))
    return paths


def _differing(side: _Side, other: _Side, sample: int) -> list[Any]:
    texts = [file for _, file, _ in _changed_files(side, other) if file is not None and _is_shown(file)]
    theirs = other.published.configs
    rows = [
        file
        for config, files in side.published.configs.items()
        if (config in theirs and not _same_files(files, theirs[config])) or (config not in theirs and sample)
        for file in files
    ]
    return texts + rows


def _same_files(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return sorted(file.sha256 for file in a) == sorted(file.sha256 for file in b)


def _is_shown(file: Any) -> bool:
    return _TEXT.fullmatch(file.path) is not None and file.bytes <= _TEXT_BYTES


def _config(name: str, a: _Side, b: _Side, paths: Mapping[str, Path], sample: int) -> ConfigDiff:
    files = [side.published.configs.get(name) for side in (a, b)]
    rows_a, rows_b = map(_rows, files)
    local = [[paths[file.sha256] for file in one or () if file.sha256 in paths] for one in files]
    if files[0] and files[1]:
        compared = None if _same_files(files[0], files[1]) else compare_rows(local[0], local[1], sample)
        return ConfigDiff(name, rows_a, rows_b, compared)
    side = 0 if files[0] else 1
    quotes = only_rows("ab"[side], local[side], sample) if sample else ()
    return ConfigDiff(name, rows_a, rows_b, None, quotes)


def _rows(files: Sequence[Any] | None) -> int | None:
    if files is None:
        return None
    unknown = [file.path for file in files if file.rows is None]
    if unknown:
        raise ReleaseError(f"The manifest does not say how many rows {unknown[0]} holds. Get the release again.")
    return sum(int(file.rows) for file in files)


def _changed_files(a: _Side, b: _Side) -> Iterable[tuple[str, Any, Any]]:
    """Files outside of configs that differ: path, and the entry of each side or None."""
    data = {file.path for side in (a, b) for files in side.published.configs.values() for file in files}
    for path in sorted({*a.files, *b.files} - data):
        one, two = a.files.get(path), b.files.get(path)
        if one is None or two is None or one.sha256 != two.sha256:
            yield path, one, two


def _texts(a: _Side, b: _Side, paths: Mapping[str, Path]) -> Iterable[Row]:
    for path, one, two in _changed_files(a, b):
        sides = [side for side in (one, two) if side is not None]
        if all(map(_is_shown, sides)):
            texts = ["" if side is None else read_text(paths[side.sha256]) for side in (one, two)]
            before, after = (text.removesuffix("\n").split("\n") if text else [] for text in texts)
            lines = difflib.unified_diff(
                before,
                after,
                f"a/{path}" if one else "/dev/null",
                f"b/{path}" if two else "/dev/null",
                lineterm="",
            )
            yield {"path": path, "diff": "\n".join(lines)}


def _other_files(a: _Side, b: _Side) -> Iterable[Row]:
    for path, one, two in _changed_files(a, b):
        if not all(_is_shown(side) for side in (one, two) if side is not None):
            yield {"path": path, "bytes_a": one and one.bytes, "bytes_b": two and two.bytes}


def _download(a: _Side, b: _Side) -> dict[str, int]:
    """Files of b, each content once; Xet may send less of a file that only changed in part."""
    sizes = {file.sha256: file.bytes for file in b.files.values()}
    new = [size for sha256, size in sizes.items() if sha256 not in a.hashes]
    return {"bytes": sum(new), "files": len(new), "all_bytes": sum(sizes.values()), "all_files": len(sizes)}


def _defects(a: _Side, b: _Side) -> tuple[str, ...]:
    if a.published.manifest.build_id != b.published.manifest.build_id:
        return ()
    hashes = [{stage.stage: stage.rowset_hash for stage in side.facts.schedule} for side in (a, b)]
    unlike = [name for name in hashes[0] if name in hashes[1] and hashes[0][name] != hashes[1][name]]
    if not unlike:
        return ()
    return (
        f"both have build_id {a.published.manifest.build_id}, yet other rows in {', '.join(unlike)}: the same inputs "
        "must give the same rows, so one of them was not built as its manifest says",
    )
