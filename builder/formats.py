"""A release → the files of another tool, row for row in the order of training, with a README of what they lack.

Works on any release with a manifest: of this run, downloaded, or `org/name@vN`. A row that the format cannot express
stops the export, because a training set that lacks rows looks like one that does not. The folder appears by rename.
"""

import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from builder import format_rows
from builder.config import Student
from builder.errors import ReleaseError, UsageError
from builder.format_files import Lines, Parquet, ordered_rows, write_companion
from builder.format_readme import About, StageFile, dataset_info, readme
from builder.format_rows import SCHEMAS, Convert, Row, Told, Unfit
from builder.published import Published, open_published, read_text
from builder.release_files import put_text, sync_folders
from builder.release_held_out import HELD_OUT
from builder.store import sync_directory

KINDS: Final[dict[str, tuple[str, ...]]] = {
    "dasd": ("sft",),
    "messages": ("sft", "grpo", "reward"),
    "alpaca": ("sft", "reward"),
    "sharegpt": ("sft", "reward"),
    "axolotl-kd": ("sft",),
}
"""Formats by name, with the kinds of stages that they have rows for."""
_CONVERT: Final[dict[str, Convert]] = {
    "dasd": format_rows.dasd,
    "messages": format_rows.messages,
    "alpaca": format_rows.alpaca,
    "sharegpt": format_rows.sharegpt,
}
_COMPANION: Final = "logprob.parquet"
_HELD_OUT: Final = f"rows of split `{HELD_OUT}` are not in these files: the release holds their prompts out of training"
_SHOWN: Final = 5
"""Rows named for each reason why some do not fit."""


class _Stage(BaseModel):
    stage: str
    config: str
    kind: str
    rows: int


class _Schedule(BaseModel):
    """The part of a manifest that is read here; `published` reads the rest."""

    schedule: list[_Stage]


@dataclass(frozen=True)
class Exported:
    """An export on disk: rows by file, and what a reader of them must know."""

    path: Path
    format: str
    version: str
    rows: dict[str, int]
    notes: list[str]


def export(
    dataset: str | Path,
    name: str,
    out: Path,
    *,
    stages: Sequence[str] = (),
    student: Student | None = None,
    progress: Callable[[int], None] | None = None,
) -> Exported:
    """Write a release (its folder, or `org/name@vN`) to the new folder `out` in format `name`, one of KINDS.

    `stages` picks some, in training order all the same. `student` renders `axolotl-kd`; default: the release's.
    Raises UsageError for what does not exist, or `out` that does; ReleaseError for a release that is damaged, rows
    that the format cannot express (named), and a disk that refuses; ScoreError for a student that cannot be loaded.
    """
    if name not in KINDS:
        raise UsageError(f"--format {name!r} is not known; it is one of {', '.join(KINDS)}.")
    if out.exists():
        raise UsageError(
            f"{out} exists already, and an export is not mixed with what is there. Delete it, or name another folder "
            "with --out."
        )
    published = open_published(str(dataset))
    chosen = _chosen(published, name, stages)
    work = out.parent / f".{out.name}-{uuid.uuid4().hex}"
    try:
        work.mkdir(parents=True)
        exported = _Export(published, name, work, student, progress).write(chosen, out)
        sync_folders(work)
        work.rename(out)
        sync_directory(out.parent)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise ReleaseError(
            f"Writing {out} failed: {error}. Nothing half-written is left, and the release is untouched. Free space, "
            "of which sorting takes as much again as the rows, or name another place with --out; then rerun."
        ) from error
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return exported


def _chosen(published: Published, name: str, stages: Sequence[str]) -> list[tuple[int, _Stage]]:
    """The stages to write with their place in the schedule, from 1. Raises where the format has no rows for one."""
    text = read_text(published.root / ".builder" / "manifest.json")
    try:
        schedule = _Schedule.model_validate_json(text).schedule
    except ValidationError as error:
        raise ReleaseError(f"The manifest of {published.source} has no schedule that can be read: {error}.") from error
    known = [one.stage for one in schedule]
    if unknown := [one for one in stages if one not in known]:
        raise UsageError(f"{published.source} has no stage {', '.join(unknown)}; it has {', '.join(known)}.")
    chosen = [(place, one) for place, one in enumerate(schedule, start=1) if one.stage in (stages or known)]
    if odd := [one for _, one in chosen if one.kind not in KINDS[name]]:
        fit = [one.stage for one in schedule if one.kind in KINDS[name]]
        raise UsageError(
            f"Format {name} has rows for stages of kind {', '.join(KINDS[name])}, but "
            f"{', '.join(f'{one.stage} is {one.kind}' for one in odd)}. "
            + (f"Choose with --stage: {', '.join(fit)}." if fit else "Take --format messages.")
        )
    return chosen


@dataclass
class _Export:
    """One export, gathered in `work` until all of it is there."""

    published: Published
    name: str
    work: Path
    student: Student | None
    progress: Callable[[int], None] | None
    done: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    unfit: Counter[tuple[str, str]] = field(default_factory=Counter)
    named: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)

    def write(self, stages: Sequence[tuple[int, _Stage]], out: Path) -> Exported:
        """All files; what is at `out` afterwards. Raises ReleaseError for rows that do not fit."""
        manifest = self.published.manifest
        system = (manifest.student or {}).get("system_prompt")
        files = [self._write_stage(place, stage, system) for place, stage in stages]
        self._refuse_unfit()
        companion = self._write_companion() if self.name == "dasd" and self.published.configs.get("logprobs") else None
        notes = [f"{count:,} {text}" for text, count in sorted(self.notes.items())]
        about = About(
            format=self.name,
            source=self.published.source,
            revision=self.published.revision,
            recipe_name=manifest.recipe_name,
            version=manifest.version,
            build_id=manifest.build_id,
            license=manifest.license,
            system_prompt=system,
            stages=files,
            companion=companion,
            notes=notes,
        )
        put_text(self.work / "README.md", readme(about))
        if self.name in ("alpaca", "sharegpt"):
            put_text(self.work / "dataset_info.json", dataset_info(about))
        rows = {file.file: file.rows for file in files} | ({} if companion is None else {_COMPANION: companion})
        return Exported(out, self.name, manifest.version, rows, notes)

    @cached_property
    def _kd(self) -> Any:
        """Rows of `axolotl-kd` by the student. Raises ReleaseError where there are no logprobs, or no student."""
        from builder.format_kd import KdRows  # transformers take seconds

        if not self.published.configs.get("logprobs"):
            raise ReleaseError(
                f"{self.published.source} has no config logprobs, and without the teacher's logprobs there is nothing "
                "to distil. Set release.logprobs: true in the recipe and run builder release again."
            )
        told = self.published.manifest.student
        if self.student is None and told is None:
            raise ReleaseError(
                f"{self.published.source} names no student, in whose tokens the rows must be. Give a recipe with one."
            )
        named = {name: (told or {}).get(name) for name in ("model", "revision")}
        return KdRows(self.student or Student.model_validate(named))

    def _write_stage(self, place: int, stage: _Stage, system: str | None) -> StageFile:
        """One stage as one file. Once a row does not fit nothing more is written, but all are looked at."""
        is_kd = self.name == "axolotl-kd"
        convert: Convert = self._kd.convert if is_kd else _CONVERT[self.name]
        logprobs = self.published.files("logprobs") if is_kd else []
        config = f"stage{place}" if self.name == "dasd" else stage.config
        sink = self._sink(config, stage.kind)
        told = Told(stage.kind, system, self.notes)
        seen = 0
        with sink:
            files = self.published.files(stage.config)
            held = self.published.configs.get(f"{stage.config}/{HELD_OUT}", [])
            for batch in ordered_rows(files, stage.kind, logprobs, self.work / ".sorting"):
                kept = list(self._converted(batch, convert, told, stage))
                if not self.unfit:
                    sink.put(kept)
                seen += len(batch)
                if self.progress is not None:
                    self.progress(self.done + seen)
        self.done += seen
        if held:
            self.notes[_HELD_OUT] += sum(file.rows or 0 for file in held)
        if seen != stage.rows:
            raise ReleaseError(
                f"Stage {stage.stage} holds {seen:,} rows, its manifest says {stage.rows:,}. Get the release again."
            )
        return StageFile(config, stage.stage, stage.kind, sink.path.name, seen)

    def _sink(self, config: str, kind: str) -> Lines | Parquet:
        if self.name == "dasd":
            return Lines(self.work / f"{config}-train-data.jsonl")
        if self.name == "axolotl-kd":
            from builder.format_kd import SCHEMA, table

            return Parquet(self.work / f"{config}.parquet", SCHEMA, table)
        if self.name in SCHEMAS:
            return Parquet(self.work / f"{config}.parquet", SCHEMAS[self.name][kind])
        return Lines(self.work / f"{config}.jsonl")

    def _converted(self, batch: list[Row], convert: Convert, told: Told, stage: _Stage) -> Iterator[Row]:
        for row in batch:
            identity = row.get("response_id") or row.get("prompt_id") or f"position {row['position']}"
            try:
                found = convert(row, told)
            except Unfit as error:
                key = (stage.stage, error.why)
                self.unfit[key] += 1
                if self.unfit[key] <= _SHOWN:
                    self.named.setdefault(key, []).append(identity + (f" ({error.detail})" if error.detail else ""))
                continue
            self.ids.add(identity)
            yield found

    def _refuse_unfit(self) -> None:
        """Raise ReleaseError with count and ids where rows did not fit."""
        if not self.unfit:
            return
        said = []
        for (stage, why), count in self.unfit.items():
            more = f"; and {count - _SHOWN:,} more" if count > _SHOWN else ""
            said.append(f"{count:,} rows of stage {stage} {why}: {'; '.join(self.named[stage, why])}{more}.")
        others = ", ".join(other for other in KINDS if other != self.name)
        raise ReleaseError(
            f"{self.published.source} cannot be written as {self.name}. {' '.join(said)} No row is left out in "
            f"silence, so nothing was written. Choose stages with --stage, or another format ({others}); messages "
            "can express every conversation."
        )

    def _write_companion(self) -> int:
        held = write_companion(self.published.files("logprobs"), self.ids, self.work / _COMPANION)
        if lacking := len(self.ids) - held:
            self.notes[
                f"replies have no tokens in {_COMPANION}: the release keeps no token id beside each logprob"
            ] += lacking
        return held
