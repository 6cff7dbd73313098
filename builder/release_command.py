"""What `builder release` takes on the command line: a recipe to release, or a release to give another tool."""

from pathlib import Path
from typing import Annotated

import typer

from builder.options import (
    AllowCodeOption,
    DebugOption,
    JsonOption,
    QuietOption,
    RunOption,
    messages,
    opened,
)


def release(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE_OR_DATASET", help="A recipe; with --format also a release, or org/name@vN."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as generation.samples=8.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--format", help="Also as: dasd, messages, alpaca, sharegpt, axolotl-kd.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --format: new folder; default vN-FORMAT beside it.")
    ] = None,
    stages: Annotated[
        list[str] | None, typer.Option("--stage", help="With --format: only this stage; repeatable.")
    ] = None,
    run: RunOption = None,
    allow_code: AllowCodeOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """selection → releases/vN: Parquet, card, manifest. Unchanged rows release nothing."""
    from builder.format_command import check_format, export_given
    from builder.published import is_dataset

    with messages(debug):
        check_format(name, out, stages or [])
        if name is not None and is_dataset(recipe):
            from builder.console import Reporter

            reporter = Reporter(as_json=as_json, quiet=quiet)
            export_given(reporter, recipe, name, out, stages or [])
            reporter.finish()
            return
    with opened(
        recipe, overrides, run=run, as_json=as_json, quiet=quiet, debug=debug, writes=True, allow_code=allow_code
    ) as context:
        written = context.steps.release()
        if name is not None:
            export_given(context.reporter, written.path, name, out, stages or [], context.recipe.student)
