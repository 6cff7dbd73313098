"""What `builder import`, `builder select --from` and `builder sql` on a dataset do, apart from the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from builder.config import Recipe
from builder.console import Reporter
from builder.errors import UsageError
from builder.import_formats import FORMATS
from builder.import_release import derive, import_release
from builder.import_result import Declared, show_imported
from builder.importing import import_files
from builder.published import database, open_published
from builder.sqlfile import Value
from builder.store import Run

RELEASE: Final = "release"
"""Format of a release directory or `org/name@vN`."""


def split_arguments(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """FILES and KEY=VALUE overrides, which stand one behind the other: what exists as a path is no override."""
    files = [one for one in given if "=" not in one or Path(one).exists()]
    return files, [one for one in given if one not in files]


def import_given(
    run: Run,
    recipe: Recipe,
    reporter: Reporter,
    given: Sequence[str],
    name: str | None,
    declared: Declared,
    *,
    skip_bad: bool = False,
) -> None:
    """Import files, or with format `release` the candidates of one dataset; say what came. Raises BuilderError."""
    if not given or name not in (*FORMATS, RELEASE):
        raise UsageError(
            f"builder import needs files and their --format (given: {', '.join(given) or 'no file'}, "
            f"{name or 'no format'}): {', '.join(FORMATS)}, or {RELEASE} for a release directory or org/name@vN."
        )
    if name == RELEASE:
        if len(given) > 1 or declared != Declared() or skip_bad:
            raise UsageError("--format release takes one dataset and no further option: its columns say everything.")
        import_dataset(run, recipe, reporter, given[0])
        return
    with reporter.progress("import") as meter:
        files = [Path(one) for one in given]
        result = import_files(run, recipe, files, name, declared, skip_bad=skip_bad, progress=meter.update)
    show_imported(reporter, result)


def import_dataset(run: Run, recipe: Recipe, reporter: Reporter, dataset: str) -> None:
    """Import the candidates of a release directory or `org/name@vN`; say what came. Raises as `import_release`."""
    show_imported(reporter, import_release(run, recipe, open_published(dataset)))


def recipe_of(
    recipe: str | None, overrides: Sequence[str] | None, run: Path | None, dataset: str | None
) -> tuple[str, list[str], Path | None]:
    """Recipe, overrides and run directory of `select [RECIPE] [KEY=VALUE…] [--from DATASET]`.

    From a dataset without a recipe it is theirs, in a run directory of its own. Raises UsageError, ReleaseError.
    """
    names, changes = split_arguments([*([recipe] if recipe is not None else []), *(overrides or ())])
    if len(names) == 1:
        return names[0], changes, run
    if names or dataset is None:
        raise UsageError("builder select needs one RECIPE, or --from with the DATASET to select from.")
    path, root = derive(open_published(dataset), run)
    return str(path), changes, root


def queried(dataset: str) -> tuple[Path, dict[str, Value]]:
    """Database of a release directory or `org/name@vN`, and the parameters of the selection that made it."""
    published = open_published(dataset)
    params = published.manifest.selection.get("params") or {}
    return database(published), {name: value for name, value in params.items() if isinstance(value, Value)}
