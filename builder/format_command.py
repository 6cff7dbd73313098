"""What `builder release --format` does, apart from the command line."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from builder.config import Student
from builder.console import Reporter
from builder.errors import UsageError
from builder.formats import KINDS, export
from builder.published import open_published


def check_format(name: str | None, out: Path | None, stages: Sequence[str]) -> None:
    """Raise UsageError for a format that is not, or options that mean nothing without one: before a release is made."""
    if name is None and (out is not None or stages):
        raise UsageError(f"--out and --stage belong to --format, which is one of {', '.join(KINDS)}.")
    if name is not None and name not in KINDS:
        raise UsageError(f"--format {name!r} is not known; it is one of {', '.join(KINDS)}.")


def export_given(
    reporter: Reporter,
    dataset: str | Path,
    name: str,
    out: Path | None,
    stages: Sequence[str] = (),
    student: Student | None = None,
) -> None:
    """Export the folder of a release, or `org/name@vN`, and say what came. Raises as `export`."""
    where = out or _beside(dataset, name)
    with reporter.progress("export") as meter:
        found = export(dataset, name, where, stages=stages, student=student, progress=meter.update)
    rows = ", ".join(f"{file} {count:,}" for file, count in found.rows.items())
    reporter.line(f"export: {found.version} as {name} written to {found.path} ({rows} rows)")
    for note in found.notes:
        reporter.warn(note)
    reporter.result({"export": asdict(found)})


def _beside(dataset: str | Path, name: str) -> Path:
    """Beside a folder, `vN-<format>`; from the Hub here, with the name and version of the dataset."""
    if Path(dataset).is_dir():
        folder = Path(dataset).absolute()
        return folder.with_name(f"{folder.name}-{name}")
    published = open_published(str(dataset))
    return Path(f"{(published.repo or published.source).rpartition('/')[2]}-{published.manifest.version}-{name}")
