"""People review what would be selected: rows go out into a file, decisions come back into table `reviews`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from builder.config import Recipe
from builder.console import Progress
from builder.decision import decide, plan_selection, prepare
from builder.errors import TableError, UsageError
from builder.identity import order_key
from builder.judge_prompt import question_text
from builder.release_rows import deciding_verdicts
from builder.review_file import Decided, kind_of, read_decisions, refuse, write_rows
from builder.review_rules import without_rules
from builder.stages import is_mixed
from builder.store import Run, columns_table, file_sha256, publish_file

_SLICE: Final = 500
"""Rows whose texts are in memory at once."""


@dataclass(frozen=True)
class Exported:
    """What went into a file: `rows` of `selected` ones; `decided` of these were left out, as people had decided."""

    rows: int
    selected: int
    decided: int


@dataclass(frozen=True)
class Imported:
    """What a file brought: decisions `kept` and `dropped`, `blank` rows without one; `replaced` say otherwise than a
    decision before, `repeated` say the same. `total` decisions are in the table now."""

    kept: int
    dropped: int
    blank: int
    replaced: int
    repeated: int
    total: int


def export_rows(
    run: Run,
    recipe: Recipe,
    path: Path,
    *,
    recipe_dir: Path | None = None,
    sample: int | None = None,
    with_decided: bool = False,
    allow_code: bool = False,
    progress: Progress = lambda *_: None,
) -> Exported:
    """Write the rows that stages of kind sft would take, were it not for rule review_missing, for people to decide.

    In the order of stages and positions; of a `sample` those that `generation.seed` draws. Rows that people decided
    about are left out unless `with_decided`, which writes their decisions too. Stores no selection. Raises UsageError
    for a file that exists, TableError where nothing would be selected, and as `select`.
    """
    kind = kind_of(path)
    if path.exists():
        raise UsageError(f"{path} exists, and people may have decided in it. Import or move it, or name another file.")
    stages = _selected(run, recipe, recipe_dir, progress, allow_code=allow_code)
    if not stages:
        raise TableError("Nothing would be selected by a stage of kind sft, so there is nothing to review.")
    reviews = {row["response_id"]: row for row in run.read("reviews").iter_rows(named=True)}
    wanted = [one for one in stages if with_decided or one not in reviews]
    if sample is not None:
        drawn = set(sorted(wanted, key=lambda one: order_key(one, recipe.generation.seed))[:sample])
        wanted = [one for one in wanted if one in drawn]
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", errors="replace", newline="") as file:
            write_rows(file, kind, _rows(run, wanted, stages, reviews))
        publish_file(temporary, path)
    except OSError as error:
        raise UsageError(f"Writing {path} failed: {error}. Free space or name another place, then rerun.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(len(wanted), len(stages), sum(one in reviews for one in stages))


def import_decisions(run: Run, path: Path) -> Imported:
    """Take the decisions of a file into table `reviews`; one about a reply that has one takes its place.

    Raises UsageError, before the table is touched, for a file that cannot be read, ids that are no reply of this run,
    words that are no decision, two decisions on one reply, and a file without any decision.
    """
    rows = read_decisions(path)
    known = run.ids("responses")
    unknown = [f"{row.place}: {row.response_id!r}" for row in rows if row.response_id not in known]
    refuse(path, unknown, f"no such reply is in {run.root}; a spreadsheet may have changed the id")
    decided = [row for row in rows if row.decision is not None]
    if not decided:
        raise UsageError(f"{path} holds no decision: column `decision` is empty in all {len(rows):,} rows.")
    refuse(path, _torn(decided), "two decisions on one reply")
    before = {row["response_id"]: row for row in run.read("reviews").iter_rows(named=True)}
    sha256 = file_sha256(path)
    new = {row.response_id: _review(row, sha256) for row in decided}
    replaced = sum(one in before and before[one]["decision"] != row["decision"] for one, row in new.items())
    repeated = sum(one in before and before[one]["decision"] == row["decision"] for one, row in new.items())
    table = sorted((before | new).values(), key=lambda row: str(row["response_id"]))
    run.replace("reviews", columns_table("reviews", table))
    counts = Counter(row["decision"] for row in new.values())
    return Imported(counts["keep"], counts["drop"], len(rows) - len(decided), replaced, repeated, len(table))


def _review(row: Decided, sha256: str) -> dict[str, Any]:
    return {
        "response_id": row.response_id,
        "decision": row.decision,
        "reviewer": row.reviewer,
        "note": row.note,
        "file_sha256": sha256,
    }


def _torn(decided: Sequence[Decided]) -> list[str]:
    """Rows that say otherwise than an earlier row on the same reply."""
    first: dict[str, Decided] = {}
    found = []
    for row in decided:
        other = first.setdefault(row.response_id, row)
        if other.decision != row.decision:
            found.append(f"{other.place} says {other.decision} and {row.place} {row.decision} of {row.response_id}")
    return found


def _selected(
    run: Run, recipe: Recipe, recipe_dir: Path | None, progress: Progress, *, allow_code: bool
) -> dict[str, str]:
    """Replies that stages of kind sft would take, in their order, each with its first stage."""
    before = without_rules(recipe, ("review_missing",))
    plan = plan_selection(before, recipe_dir, mixed=is_mixed(run, before))
    prepare(run, before, plan, allow_code=allow_code, progress=progress)
    decided = decide(run, before, plan, allow_code=allow_code, counts=False, progress=progress).tables["selection_rows"]
    found: dict[str, str] = {}
    for row in decided.select(["grain_id", "stage", "kind"]).to_pylist():
        if row["kind"] == "sft":
            found.setdefault(row["grain_id"], row["stage"])
    return found


def _rows(
    run: Run, wanted: Sequence[str], stages: Mapping[str, str], reviews: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, str | None]]:
    """Rows of a file, slice by slice."""
    prompts = run.scan("prompts").select("prompt_id", "messages", "gold").unique("prompt_id", keep="last")
    replies = run.scan("responses").select("response_id", "prompt_id", "reasoning", "answer")
    originals = (
        run.scan("rewrites")
        .select("response_id", "original_id")
        .join(replies, left_on="original_id", right_on="response_id")
        .select("response_id", "original_id", original_reasoning="reasoning", original_answer="answer")
    )
    verdicts = deciding_verdicts(run).select("response_id", "verdict")
    for start in range(0, len(wanted), _SLICE):
        ids = pl.LazyFrame({"response_id": wanted[start : start + _SLICE]})
        found = (
            ids.join(replies.unique("response_id"), on="response_id", maintain_order="left")
            .join(prompts, on="prompt_id", how="left", maintain_order="left")
            .join(originals, on="response_id", how="left", maintain_order="left")
            .join(verdicts, on="response_id", how="left", maintain_order="left")
        )
        for row in found.collect().iter_rows(named=True):
            review = reviews.get(row["response_id"], {})
            said = {name: review.get(name) for name in ("decision", "note", "reviewer")}
            question = question_text(row["messages"] or [])
            yield {**row, **said, "prompt": question, "stage": stages[row["response_id"]]}
