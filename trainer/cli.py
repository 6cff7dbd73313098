"""`trainer plan` and `trainer run`: parse, call, print. Nothing heavy is imported before a command runs."""

import contextlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.errors import TrainerError

about = "Train a student on a release of `builder`, stage by stage, in the order that its manifest gives."
app = typer.Typer(help=about, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Dataset = Annotated[str, typer.Option(help="A release, a folder of plain rows, or `org/name@vN` on the Hub.")]
Model = Annotated[str, typer.Option(help="The student: a directory or a Hub model.")]
Output = Annotated[Path, typer.Option(help="Where stages go: DIR/<n>-<stage>/, DIR/final.")]
Recipe = Annotated[str, typer.Option(help="A YAML file or a packaged recipe.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="`defaults.KEY=VALUE`, `stages.STAGE.KEY=VALUE` …")]
Until = Annotated[str | None, typer.Option(metavar="STAGE", help="Last stage to train.")]
From = Annotated[str | None, typer.Option("--from", metavar="STAGE", help="First stage; earlier ones are in --output.")]
Revision = Annotated[str | None, typer.Option(help="Tag, branch or commit of a Hub model; recorded as commit.")]
Drop = Annotated[bool, typer.Option("--drop-too-long", help="Leave out rows longer than max_length.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Add the traceback to an error.")]
Show = Annotated[int, typer.Option(min=0, metavar="K", help="Print K rendered rows of each stage.")]
Push = Annotated[str | None, typer.Option("--push-to-hub", metavar="ORG/NAME", help="Upload the last stage.")]


@app.command()
def plan(
    dataset: Dataset, model: Model, output: Output, recipe: Recipe = "sft", overrides: Overrides = None,
    *, first: From = None, until: Until = None, model_revision: Revision = None, drop_too_long: Drop = False,
    show: Show = 0, as_json: Json = False, quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Print the schedule: rows, tokens, steps, what is done already, what to know. Trains nothing."""
    _hush(quiet)
    from rich.console import Console

    from trainer import plan as planning
    from trainer import show as printing

    options: dict[str, Any] = {"first": first, "until": until, "drop_too_long": drop_too_long, "weights": False}
    job = planning.prepare(dataset, model, output, recipe, overrides or (), model_revision=model_revision, **options)
    with tempfile.TemporaryDirectory() as folder:
        trained = [stage for stage in job.asked if stage.kind == planning.TRAINED]
        rows = {stage.name: planning.rendered(job, stage, Path(folder)) for stage in trained}
        content = planning.report(job, rows)
        if as_json:
            print(json.dumps(content, indent=2, ensure_ascii=False))
            return
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
        printing.plan(console, content)
        for name, rendered in rows.items():
            shown = rendered.dataset().select(range(min(show, len(rendered.order))))
            for number, row in enumerate(shown, start=1):
                title = f"{name}, row {number} of {len(rendered.order):,}"
                printing.row(console, job.renderer.tokenizer, title, row["input_ids"], row["labels"])


@app.command()
def run(
    dataset: Dataset, model: Model, output: Output, recipe: Recipe = "sft", overrides: Overrides = None,
    *, first: From = None, until: Until = None, model_revision: Revision = None, drop_too_long: Drop = False,
    push_to_hub: Push = None, as_json: Json = False, quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Train every stage in order; a rerun goes on where the last one stopped."""
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result alone
        _hush(quiet)
        from trainer import lineage, train
        from trainer import plan as planning

        options: dict[str, Any] = {"first": first, "until": until, "drop_too_long": drop_too_long}
        job = planning.prepare(
            dataset, model, output, recipe, overrides or (), model_revision=model_revision, **options
        )
        finished = train.run(job, quiet=quiet)
        if os.environ.get("RANK", "0") != "0":  # of the processes of a distributed run the first reports
            return
        pushed = lineage.push(push_to_hub, finished[-1].directory) if push_to_hub else None
    if as_json:
        stages = [stage._asdict() | {"directory": str(stage.directory)} for stage in finished]
        result = {"stages": stages, "final": str(output / "final"), "pushed": pushed}
        print(json.dumps(result, indent=2, ensure_ascii=False))
    elif not quiet:
        for stage in finished:
            print(f"{stage.directory}  {'trained' if stage.trained else 'was there'}, loss {stage.train_loss:.4f}")
        print(f"{output / 'final'} -> {finished[-1].directory.name}" + (f"  {pushed}" if pushed else ""))


def main() -> None:
    """Entry point: 0 ok, 1 failed, 2 usage. One message on stderr, a traceback only with --debug."""
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        message, code = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}", 1
        if isinstance(error, TrainerError):
            code = error.exit_code
        elif isinstance(error, ModuleNotFoundError):
            message = f"Unexpected {message}. Training needs it: pip install 'tempered[train]'."
        else:
            message = f"Unexpected {message}. Finished stages are kept; --debug shows where it happened."
        print(message, file=sys.stderr)
        sys.exit(code)


def _hush(quiet: bool) -> None:
    """Keep the libraries' progress bars and warnings off a quiet run."""
    import datasets
    import transformers

    if quiet or not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if quiet:
        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
