"""What rules about copies read is computed here, before they run, and only where a rule reads it."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Final

from builder.config import Recipe
from builder.sqlcheck import parse_select, walk
from builder.sqlfile import SqlFile
from builder.store import Run

EVIDENCE: Final = frozenset({"stg_duplicates", "stg_contaminations"})


def tables_of(file: SqlFile) -> frozenset[str]:
    """Names of the tables that a file reads."""
    return _tables(file.text, file.label)


@cache
def _tables(text: str, label: str) -> frozenset[str]:
    tree = parse_select(text, label)
    return frozenset(str(node["table_name"]).lower() for node in walk(tree) if node.get("type") == "BASE_TABLE")


def reads_evidence(file: SqlFile) -> bool:
    """Whether a rule reads what is computed here: it refuses to run on a run where nothing was compared."""
    return not EVIDENCE.isdisjoint(tables_of(file))


def check_evidence(recipe: Recipe, files: Iterable[SqlFile]) -> None:
    """Raise UsageError where a rule reads what the recipe gives no means to compute. Computes nothing."""
    if any("stg_contaminations" in tables_of(file) for file in files):
        recipe.require_benchmarks()


def update_evidence(
    run: Run, recipe: Recipe, files: Iterable[SqlFile], progress: Callable[[str, int, int], None] = lambda *_: None
) -> None:
    """Bring up to date what these rules and this selector read of near-duplicates and of benchmarks.

    `progress` gets a name, what is done and how much there is. Raises UsageError where the recipe names no benchmark,
    SourceError for one that cannot be read.
    """
    read = {table for file in files for table in tables_of(file)}
    if "stg_contaminations" in read:
        from builder.decontaminate import update_contaminations

        update_contaminations(run, recipe.require_benchmarks(), progress)
    if "stg_duplicates" in read:
        from builder.dedup import update_duplicates

        update_duplicates(run, progress=progress)
