"""`trainer plan` and `trainer run`: parse, call, print. Nothing heavy is imported before a command runs."""

import contextlib
import json
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from jinja2 import StrictUndefined, Template
from rich.console import Console
from rich.text import Text
from typer import Option

from trainer.errors import RecipeError, TrainerError

ABOUT = "Train a student on a release of `builder`, stage by stage, in the order that its manifest gives."
app = typer.Typer(help=ABOUT, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
PLAN = Path(__file__).parent / "plan.txt.jinja"
HEAD, TAIL = 160, 40  # tokens shown of each end of a long part
OVERRIDES = typer.Argument(metavar="KEY=VALUE", help="`defaults.KEY=VALUE`, `stages.STAGE.KEY=VALUE` …")


@app.command("plan", help="Print the schedule: rows, tokens, steps, what is done, what to know. Trains nothing.")
@app.command("run", help="Train every stage in order; a rerun goes on where the last one stopped.")
def command(
    context: typer.Context,
    dataset: Annotated[str, Option(help="A release, a folder of plain rows, or `org/name@vN` on the Hub.")],
    model: Annotated[str, Option(help="The student: a directory or a Hub model.")],
    output: Annotated[Path, Option(help="Where stages go: DIR/<n>-<stage>/, DIR/final.")],
    recipe: Annotated[str, Option(help="A YAML file or a packaged recipe.")] = "sft",
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    first: Annotated[str | None, Option("--from", metavar="STAGE", help="First; --output has the others.")] = None,
    until: Annotated[str | None, Option(metavar="STAGE", help="Last stage.")] = None,
    model_revision: Annotated[str | None, Option(help="Of a Hub model; recorded as commit.")] = None,
    drop_too_long: Annotated[bool, Option("--drop-too-long", help="Leave out rows longer than max_length.")] = False,
    rows: Annotated[int, Option("--show", min=0, metavar="K", help="plan: print K rendered rows of each stage.")] = 0,
    push: Annotated[str | None, Option("--push-to-hub", metavar="ORG/NAME", help="run: upload the last.")] = None,
    as_json: Annotated[bool, Option("--json", help="Machine-readable result on stdout.")] = False,
    quiet: Annotated[bool, Option("--quiet", help="No progress.")] = False,
    debug: Annotated[bool, Option("--debug", help="Add the traceback to an error.")] = False,
) -> None:
    trains = context.info_name == "run"
    if rows if trains else push:
        raise RecipeError("--show is an option of `trainer plan`, --push-to-hub one of `trainer run`.")
    if quiet or not sys.stderr.isatty():  # the libraries read this when they are imported
        os.environ |= {"TQDM_DISABLE": "1"} | ({"TRANSFORMERS_VERBOSITY": "error"} if quiet else {})
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # TRL's own affair
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result alone
        from trainer import lineage, plan, train

        where: dict[str, Any] = {"first": first, "until": until, "model_revision": model_revision, "weights": trains}
        where |= {"drop_too_long": drop_too_long, "quiet": quiet}
        job = plan.Job(dataset, model, output, recipe, overrides or (), **where)
        finished = train.run(job) if trains else []
        if trains and os.environ.get("RANK", "0") != "0":  # of the processes of a distributed run the first reports
            return
        pushed = lineage.push(push, finished[-1].directory) if push else None
    if not trains:
        show(job, rows, as_json)
    elif as_json:
        stages = [stage._asdict() | {"directory": str(stage.directory)} for stage in finished]
        print(json.dumps({"stages": stages, "final": str(output / "final"), "pushed": pushed}, indent=2))
    elif not quiet:
        for stage in finished:
            print(f"{stage.directory}  {'trained' if stage.trained else 'was there'}, {stage.reached}")
        print(f"{output / 'final'} -> {finished[-1].directory.name}" + (f"  {pushed}" if pushed else ""))


def show(job: Any, number: int, as_json: bool) -> None:
    """Print the plan, and the first rows of each stage as they are trained."""
    from trainer import plan

    with tempfile.TemporaryDirectory() as folder:
        rows = {stage.name: plan.rendered(job, stage, Path(folder))[0] for stage in job.asked}
        content = plan.report(job, {name: counts for name, (_, counts) in rows.items()})
        if as_json:
            return print(json.dumps(content, indent=2, ensure_ascii=False))
        print(Template(PLAN.read_text(encoding="utf-8"), undefined=StrictUndefined).render(content))
        console = Console(highlight=False)
        for name, (tokens, _) in rows.items() if number else ():
            show_rows(console, job.renderer, name, tokens, number)


def show_rows(console: Console, renderer: Any, stage: str, dataset: Any, number: int) -> None:
    """Rows as their trainer takes them: what is read dim and what is trained green, in brackets without colour."""
    for place, row in enumerate(dataset.select(range(min(number, len(dataset)))), start=1):
        parts = _parts(renderer, row)
        told = ", ".join(f"{len(tokens):,} tokens {name}" for name, _, tokens in parts)
        text = Text().append(f"\n{stage}, row {place} of {len(dataset):,}: {told}\n", "bold")  # not the whole's style
        for name, style, tokens in parts:
            hidden = len(tokens) - HEAD - TAIL
            ends = [tokens] if hidden <= 0 else [tokens[:HEAD], tokens[-TAIL:]]
            shown = f" … {hidden:,} tokens … ".join(renderer.tokenizer.decode(part) for part in ends)
            bare = console.color_system is None or console.no_color  # no terminal, one without colour, or NO_COLOR
            text.append(f"[{name}]{shown}[/{name}]" if bare else shown, style)
            text.append("\n" * (name in ("chosen", "prompt")))
        given = ", ".join(f"{name} {value}" for name, value in row.items() if isinstance(value, str))
        console.print(text.append(given), soft_wrap=True)


def _parts(renderer: Any, row: Any) -> list[tuple[str, str, list[int]]]:
    """Name, style and tokens of what is shown of a row."""
    if "chosen_ids" in row:
        return [("chosen", "green", row["chosen_ids"]), ("rejected", "dim", row["rejected_ids"])]
    if "prompt" in row:
        prompt = renderer.prompted(row["prompt"], "A prompt")
        return [("prompt", "dim", renderer.tokenizer(prompt, add_special_tokens=False)["input_ids"])]
    cut = sum(label < 0 for label in row["labels"])  # masked: -100
    return [("masked", "dim", row["input_ids"][:cut]), ("trained", "green", row["input_ids"][cut:])]


def main() -> None:
    """Entry point: 0 ok, 1 failed, 2 usage. One message on stderr, a traceback only with --debug."""
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        said, known = f"{type(error).__name__}: {' '.join(str(error).split())}", isinstance(error, TrainerError)
        advice = "Finished stages are kept; --debug shows where it happened."
        if isinstance(error, ModuleNotFoundError):
            advice = "Training needs it: pip install 'tempered[train]'."
        print(said if known else f"Unexpected {said}. {advice}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    main()
