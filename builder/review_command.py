"""`builder review`: rows out to people, their decisions back in."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from builder.errors import UsageError
from builder.options import Context


def review(
    context: Context,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write rows to decide on: .csv or .jsonl.")
    ] = None,
    taken_from: Annotated[
        Path | None, typer.Option("--import", metavar="FILE", help="Read the decisions that people wrote into it.")
    ] = None,
    sample: Annotated[int | None, typer.Option("--sample", min=1, help="Export only so many, drawn by seed.")] = None,
    decided: Annotated[bool, typer.Option("--decided", help="Export rows with a decision as well.")] = False,
) -> None:
    """selection → people → reviews: export the rows that would be selected, import keep or drop for each; rules
    review_dropped and review_missing heed what people say. Next: select."""
    if (export is None) == (taken_from is None):
        raise UsageError("builder review needs one of --export FILE, which writes rows, and --import FILE.")
    if export is None and (sample is not None or decided):
        raise UsageError("--sample and --decided say what is exported; they go with --export FILE.")
    if export is not None:
        _export(context, export, sample, decided=decided)
    if taken_from is not None:
        _import(context, taken_from)


def _export(context: Context, path: Path, sample: int | None, *, decided: bool) -> None:
    from builder.review import export_rows

    steps = context.steps
    with context.reporter.progress("review") as meter:
        found = export_rows(
            context.run,
            context.recipe,
            path,
            recipe_dir=steps.recipe_dir,
            sample=sample,
            with_decided=decided,
            allow_code=steps.allow_code,
            progress=meter.step,
        )
    context.reporter.line(f"review: {found.rows:,} of {found.selected:,} rows that would be selected → {path}")
    if found.decided:
        context.reporter.line(f"  {found.decided:,} have a decision" + ("" if decided else " and were left out"))
    context.reporter.line("  fill in `decision` (keep or drop), then builder review --import")
    context.reporter.result({"review": asdict(found) | {"path": str(path)}})


def _import(context: Context, path: Path) -> None:
    from builder.review import import_decisions

    found = import_decisions(context.run, path)
    context.reporter.line(
        f"review: {found.kept:,} keep, {found.dropped:,} drop, {found.blank:,} not decided; {found.total:,} decisions "
        "in all"
    )
    if found.replaced or found.repeated:
        context.reporter.line(f"  {found.replaced:,} changed an earlier decision, {found.repeated:,} repeated one")
    if "review_dropped" not in context.recipe.selection.rules and found.dropped:
        context.reporter.warn("the recipe has no rule review_dropped, so what people drop is selected all the same")
    context.run.event("review", asdict(found))
    context.reporter.result({"review": asdict(found)})
