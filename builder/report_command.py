"""`builder report`: the page of a run, or of a release that is here or on the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from builder.errors import UsageError
from builder.options import AllowCodeOption, DebugOption, JsonOption, QuietOption, RunOption, messages, opened


def report(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE_OR_DATASET", help="A recipe, a release, or org/name@vN.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as generation.samples=8.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default report.html in the run, or here for a DATASET.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Show before and after: compare with this recipe.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--with", metavar="KEY=VALUE", help="Compare with these changes; repeatable.")
    ] = None,
    run: RunOption = None,
    allow_code: AllowCodeOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """One self-contained HTML page: accuracy, funnel, selectors, distributions, cost, and replies to look into."""
    from builder.published import is_dataset

    if is_dataset(recipe):
        with messages(debug):
            if overrides or run is not None or against is not None or changes:
                raise UsageError(
                    f"{recipe} is a dataset: it has no recipe to change, no run and nothing to decide anew. Leave out "
                    "KEY=VALUE, --run, --against and --with, or name the recipe."
                )
            _write_release(recipe, out, as_json=as_json, quiet=quiet)
        return
    with opened(
        recipe, overrides, run=run, as_json=as_json, debug=debug, writes=False, quiet=quiet, allow_code=allow_code
    ) as context:
        from builder.report import collect
        from builder.report_page import write_report

        compared = None
        if against is not None or changes:
            from builder.compare import compare_recipes, other_recipe

            other = other_recipe(context.path, context.overrides, against, changes or [])
            folder = context.steps.recipe_dir
            with context.reporter.progress("compare") as meter:
                compared = compare_recipes(
                    context.run, context.recipe, folder, other, allow_code=allow_code, progress=meter.step
                )
        with context.reporter.progress("report") as meter:
            found = collect(context.run, context.recipe, compared, progress=meter.step)
            meter.step("write the page", 0)
            path = write_report(found, out or context.run.report)
        context.reporter.line(f"report: {path}")
        context.reporter.result({"report": str(path)})


def _write_release(dataset: str, out: Path | None, *, as_json: bool, quiet: bool) -> None:
    from builder.console import Reporter
    from builder.report import collect_release
    from builder.report_page import write_report

    reporter = Reporter(as_json=as_json, quiet=quiet)
    with reporter.progress("report") as meter:
        found = collect_release(dataset, progress=meter.step)
        meter.step("write the page", 0)
        path = write_report(found, out or Path("report.html"))
    reporter.line(f"report: {path}")
    reporter.result({"report": str(path)})
    reporter.finish()
