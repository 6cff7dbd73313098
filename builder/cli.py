"""The command line: one verb a step. Parses, calls, prints; everything else lives in the step's module."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from builder.errors import BuilderError, UsageError

if TYPE_CHECKING:
    from builder.config import Recipe
    from builder.console import Reporter
    from builder.pipeline import Steps
    from builder.store import Run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pay the teacher once, choose the data with SQL for ever, train the student on schedule.",
    epilog="A RECIPE is a YAML file or the name of a packaged recipe; key=value after it overrides any key of it.",
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="Path or packaged name of a recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as generation.samples=8.")
]
RunOption = Annotated[Path | None, typer.Option("--run", help="Run directory; default runs/<recipe name>.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no tables.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N prompts.")]
ShardOption = Annotated[str, typer.Option("--shard", metavar="I/N", help="Work on shard I of N (I from 0).")]
MaxCostOption = Annotated[
    float | None, typer.Option("--max-cost", min=0, help="Hard stop: USD that this run's replies may cost in all.")
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens-total", min=0, help="Hard stop: tokens that they may take in all.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@dataclass(frozen=True)
class _Context:
    """What every command on a recipe needs."""

    steps: "Steps"

    @property
    def run(self) -> "Run":
        return self.steps.run

    @property
    def recipe(self) -> "Recipe":
        return self.steps.recipe

    @property
    def reporter(self) -> "Reporter":
        return self.steps.reporter


@contextmanager
def _command(
    recipe: str,
    overrides: list[str] | None,
    *,
    run: Path | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
    limit: int | None = None,
    shard: str = "0/1",
    writes: bool = True,
    max_cost: float | None = None,
    max_tokens: int | None = None,
) -> Iterator[_Context]:
    """Load the recipe, open the run, print the result; errors end in one message and an exit code."""
    with _messages(debug):
        from builder.console import Reporter
        from builder.pipeline import Limits, Steps
        from builder.recipe import find_recipe, load_recipe
        from builder.store import Run

        path = find_recipe(recipe)
        loaded = load_recipe(path, overrides)
        opened = Run(run or Path("runs") / loaded.name)
        if writes:
            opened.remember(path.read_text(encoding="utf-8"), loaded.resolved())
        reporter = Reporter(as_json=as_json, quiet=quiet)
        limits = Limits(max_cost, max_tokens)
        yield _Context(Steps(opened, loaded, path.parent, reporter, _shard(shard), limit, limits))
        reporter.finish()


@contextmanager
def _messages(debug: bool) -> Iterator[None]:
    """Errors as one message on stderr; their exit code; a traceback only with --debug."""
    try:
        yield
    except BuilderError as error:
        if debug:
            raise
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted. What was stored is kept; rerun the same command to go on.", err=True)
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if debug:
            raise
        typer.echo(
            f"Unexpected {type(error).__name__}: {error}. Stored replies are safe. This is a defect of tempered: "
            "run again with --debug and report what it prints.",
            err=True,
        )
        raise typer.Exit(1) from None


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]) <= 1000:
        raise UsageError(f"--shard {text!r} is not I/N with 0 ≤ I < N ≤ 1000, such as 0/4.")
    return int(match[1]), int(match[2])


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to leave everything.")] = Path("demo"),
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """The whole path on this machine: a toy teacher, a student, a release, two training stages, a table."""
    with _messages(debug):
        from builder.demo import run_demo

        run_demo(folder, quiet=quiet)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the recipe and its SQL.")],
    recipe: Annotated[str, typer.Option("--recipe", help="Packaged recipe to copy.")] = "gsm8k",
    debug: DebugOption = False,
) -> None:
    """Copy a recipe with the SQL that it runs, to edit."""
    with _messages(debug):
        from builder.init import copy_recipe

        for path in copy_recipe(folder, recipe):
            typer.echo(path)


@app.command()
def probe(
    url: Annotated[str, typer.Argument(metavar="URL", help="OpenAI-compatible base, such as http://host:8000/v1.")],
    model: Annotated[str | None, typer.Option("--model", help="Model name; default: the only one served.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Variable that holds the key.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """What an endpoint really gives, and which steps that allows. Costs about a dozen short replies."""
    with _messages(debug):
        from builder.console import Reporter
        from builder.probe import probe as look
        from builder.show import show_probe

        reporter = Reporter(as_json=as_json)
        show_probe(reporter, look(url, model, api_key_env=api_key_env))
        reporter.finish()


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: RunOption = None,
    pilot: Annotated[int | None, typer.Option("--pilot", min=1, help="First ask K prompts, for estimates.")] = None,
    tokens_per_reply: Annotated[float | None, typer.Option(min=1, help="Assume this many, measure none.")] = None,
    tokens_per_second: Annotated[float | None, typer.Option(min=1, help="Rate of all endpoints, for hours.")] = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Requests, tokens, money, disk, and what is paid for already. Sends nothing unless --pilot."""
    with _command(
        recipe, overrides, run=run, as_json=as_json, quiet=quiet, debug=debug, limit=pilot, writes=pilot is not None
    ) as context:
        from builder.plan import make_plan
        from builder.show import show_plan

        if pilot is not None:
            context.steps.generate()
        made = make_plan(
            context.run,
            context.recipe,
            limit=limit,
            tokens_per_reply=tokens_per_reply,
            tokens_per_second=tokens_per_second,
        )
        show_plan(context.reporter, context.recipe, made)


@app.command()
def generate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: RunOption = None,
    limit: LimitOption = None,
    shard: ShardOption = "0/1",
    forget_missing: Annotated[
        bool, typer.Option("--forget-missing", help="Pay again for replies whose sealed part is lost.")
    ] = False,
    max_cost: MaxCostOption = None,
    max_tokens_total: MaxTokensOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """prompts → responses: ask the teacher what is missing, keep every reply."""
    with _command(
        recipe,
        overrides,
        run=run,
        as_json=as_json,
        quiet=quiet,
        debug=debug,
        limit=limit,
        shard=shard,
        max_cost=max_cost,
        max_tokens=max_tokens_total,
    ) as context:
        context.steps.generate(forget_missing=forget_missing)


def _step(name: str, described: str) -> None:
    """Add the command of a step that takes a recipe and no option of its own."""

    def command(
        recipe: RecipeArgument,
        overrides: Overrides = None,
        run: RunOption = None,
        as_json: JsonOption = False,
        quiet: QuietOption = False,
        debug: DebugOption = False,
    ) -> None:
        with _command(recipe, overrides, run=run, as_json=as_json, quiet=quiet, debug=debug) as context:
            getattr(context.steps, name)()

    app.command(name, help=described)(command)


@app.command()
def mix(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    student: Annotated[Path | None, typer.Option("--student", help="Folder of the checkpoint that rolls out.")] = None,
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="Server that holds it; default: one here.")] = None,
    run: RunOption = None,
    max_cost: MaxCostOption = None,
    max_tokens_total: MaxTokensOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Mixed-policy rows: the checkpoint begins, the teacher finishes; then score, verify, select. Next: release."""
    with _command(
        recipe,
        overrides,
        run=run,
        as_json=as_json,
        quiet=quiet,
        debug=debug,
        max_cost=max_cost,
        max_tokens=max_tokens_total,
    ) as context:
        if student is None:
            raise UsageError("builder mix needs --student: the folder of the checkpoint that rolls out.")
        context.steps.mix(student, endpoint)


@app.command()
def score(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Ask again about replies that a server gave no logprobs for.")
    ] = False,
    run: RunOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """responses → scores: what the student does not know yet, sentence by sentence."""
    with _command(recipe, overrides, run=run, as_json=as_json, quiet=quiet, debug=debug) as context:
        context.steps.score(retry=retry)


_step("verify", "responses → verdicts: correct, wrong, unscorable, timeout, error.")
_step("select", "scores → selection: your rules, your selector, your stages; prints the funnel. Sends nothing.")
_step("release", "selection → releases/vN: Parquet, card, manifest. Unchanged rows release nothing.")


@app.command("run")
def run_all(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: RunOption = None,
    limit: LimitOption = None,
    max_cost: MaxCostOption = None,
    max_tokens_total: MaxTokensOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Every step from prompts to release, each doing only what is missing."""
    with _command(
        recipe,
        overrides,
        run=run,
        as_json=as_json,
        quiet=quiet,
        debug=debug,
        limit=limit,
        max_cost=max_cost,
        max_tokens=max_tokens_total,
    ) as context:
        context.steps.everything()


@app.command()
def status(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: RunOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Progress, cost and errors of a run, also while it goes on elsewhere."""
    with _command(recipe, overrides, run=run, as_json=as_json, quiet=False, debug=debug, writes=False) as context:
        from builder.status import show_status

        show_status(context.reporter, context.run)


@app.command()
def sql(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    query: Annotated[str | None, typer.Option("-c", "--command", help="One SELECT.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="File with one SELECT.")] = None,
    rules: Annotated[bool, typer.Option("--rules", help="List rules and selectors with their parameters.")] = False,
    run: RunOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Query the tables of a run; without a query, print the duckdb line that opens it."""
    with _command(recipe, overrides, run=run, as_json=as_json, quiet=False, debug=debug, writes=False) as context:
        from builder.sqlshell import show_query, show_rules

        if rules:
            show_rules(context.reporter)
        else:
            show_query(context.reporter, context.run, context.recipe, query, file)


@app.command("eval")
def evaluate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    model: Annotated[str, typer.Option("--model", help="Folder of a model, or its name at --endpoint.")] = "",
    questions: Annotated[str | None, typer.Option("--questions", help="Benchmark file; default: prompts.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="Name in eval/; default: the folder's.")] = None,
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="Server that holds the model.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0)] = 1.0,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Replies a question.")] = 1,
    run: RunOption = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """pass@1 of a model on questions with golds, with its 95% interval."""
    with _command(recipe, overrides, run=run, as_json=as_json, quiet=quiet, debug=debug) as context:
        from builder.config import PromptSource
        from builder.evaluate import evaluate as measure
        from builder.show import note, show_evaluation

        if not model:
            raise UsageError("builder eval needs --model: a folder with a model, or a name that --endpoint serves.")
        began = time.monotonic()
        with context.reporter.progress("eval") as meter:
            found = measure(
                context.run,
                context.recipe,
                model,
                label=label,
                questions=PromptSource(source=questions) if questions else None,
                temperature=temperature,
                samples=samples,
                endpoint=endpoint,
                limit=limit,
                progress=lambda tally: meter.update(tally.done, None, note(tally, time.monotonic() - began)),
            )
        show_evaluation(context.reporter, found)


@app.command()
def report(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default report.html in the run.")] = None,
    run: RunOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """One self-contained HTML page of a run: accuracy, funnel, releases, distributions, sampled replies."""
    with _command(recipe, overrides, run=run, as_json=as_json, quiet=quiet, debug=debug, writes=False) as context:
        from builder.report import write_report

        path = write_report(context.run, context.recipe, out)
        context.reporter.line(f"report: {path}")
        context.reporter.result({"report": str(path)})


@app.command()
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a model; with vllm also a Hub name.")],
    passed_on: Annotated[
        list[str] | None, typer.Argument(metavar="-- FLAG", help="vllm: flags of its own; they win over ours.")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="local (transformers, for toy models) or vllm.")] = "local",
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    model_name: Annotated[str | None, typer.Option("--model-name", help="Default: folder's or Hub name.")] = None,
    max_model_len: Annotated[int | None, typer.Option("--max-model-len", min=1, help="Tokens in a row.")] = None,
    max_batch: Annotated[int | None, typer.Option("--max-batch", min=1, help="local: rows at once; 64.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="local: CPU threads.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="vllm: commit of a Hub model.")] = None,
    reasoning_parser: Annotated[
        str | None, typer.Option("--reasoning-parser", help="vllm: auto (default), none, or a name of vLLM's.")
    ] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option("--tensor-parallel", min=1, help="vllm: GPUs for the model; default all.")
    ] = None,
    print_only: Annotated[bool, typer.Option("--print", help="vllm: print the command and exit.")] = False,
    debug: DebugOption = False,
) -> None:
    """Serve a model behind an OpenAI-compatible API, with logprobs and token ids."""
    with _messages(debug):
        for_local: dict[str, Any] = {"--max-batch": max_batch, "--threads": threads}
        for_vllm: dict[str, Any] = {"--revision": revision, "--tensor-parallel": tensor_parallel}
        for_vllm |= {"--reasoning-parser": reasoning_parser, "--print": print_only or None}
        for_vllm["flags after --"] = passed_on or None
        _refuse(engine, {"local": for_vllm, "vllm": for_local})
        if engine == "local":
            from builder.local_server import serve as serve_model

            serve_model(
                Path(model),
                host=host,
                port=port,
                model_name=model_name,
                max_batch=max_batch or 64,
                threads=threads,
                max_model_len=max_model_len,
                ready=lambda url: typer.echo(f"serving {model_name or Path(model).resolve().name} at {url}"),
            )
            return
        from builder.vllm_command import vllm_command
        from builder.vllm_server import free_port, printable, serve_vllm

        command = vllm_command(
            model,
            host=host,
            port=port or free_port(host),
            model_name=model_name,
            revision=revision,
            reasoning_parser=reasoning_parser or "auto",
            tensor_parallel=tensor_parallel,
            max_model_len=max_model_len,
            extra=passed_on or (),
        )
        if print_only:
            typer.echo(printable(command))
            return
        code = serve_vllm(command, ready=lambda url: typer.echo(f"serving {command.name} at {url}"))
        if code:
            raise typer.Exit(code)


def _refuse(engine: str, foreign: dict[str, dict[str, Any]]) -> None:
    """An option that the engine would ignore is a mistake of whoever gave it."""
    if engine not in foreign:
        raise UsageError(f"--engine {engine!r} is not known; choose local (toy models, transformers) or vllm.")
    if given := [name for name, value in foreign[engine].items() if value is not None]:
        other = "vllm" if engine == "local" else "local"
        raise UsageError(f"{', '.join(given)} means nothing to --engine {engine}; it is for --engine {other}.")


def main(arguments: list[str] | None = None) -> Any:
    """Entry point."""
    return app(args=arguments if arguments is not None else sys.argv[1:], prog_name="builder")


if __name__ == "__main__":
    main()
