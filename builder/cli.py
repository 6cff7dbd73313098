"""The command line: one verb a step. Parses, calls, prints; everything else lives in the step's module."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from builder.diff_command import diff
from builder.errors import UsageError
from builder.eval_command import evaluate
from builder.options import (
    BUDGET,
    SPREAD,
    AllowCodeOption,
    Context,
    DebugOption,
    JsonOption,
    QuietOption,
    RunOption,
    messages,
    opened,
    recipe_command,
)
from builder.pairs_command import pairs
from builder.publish_command import publish
from builder.release_command import release
from builder.report_command import report
from builder.review_command import review
from builder.rewrite_command import rewrite
from builder.verify_command import verify

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pay the teacher once, choose the data with SQL for ever, train the student on schedule.",
    epilog="A RECIPE is a YAML file or the name of a packaged recipe; key=value after it overrides any key of it.",
)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to leave everything.")] = Path("demo"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """The whole path on this machine: a toy teacher, a student, a release, two training stages, a table."""
    with messages(debug):
        from builder.demo import run_demo

        results = run_demo(folder, quiet=quiet, as_json=as_json)
        if as_json:
            typer.echo(json.dumps({"demo": results}))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the recipe and its SQL.")],
    recipe: Annotated[str, typer.Option("--recipe", help="Packaged recipe to copy.")] = "gsm8k",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Copy a recipe with the SQL that it runs, to edit."""
    with messages(debug):
        from builder.init import copy_recipe

        paths = [str(path) for path in copy_recipe(folder, recipe)]
        typer.echo(json.dumps({"init": {"paths": paths}}, ensure_ascii=False) if as_json else "\n".join(paths))


@app.command()
def probe(
    url: Annotated[str, typer.Argument(metavar="URL", help="OpenAI-compatible base, such as http://host:8000/v1.")],
    model: Annotated[str | None, typer.Option("--model", help="Model name; default: the only one served.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Variable that holds the key.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """What an endpoint really gives, and which steps that allows. Costs about a dozen short replies."""
    with messages(debug):
        from builder.console import Reporter
        from builder.probe import probe as look
        from builder.show import show_probe

        reporter = Reporter(as_json=as_json)
        show_probe(reporter, look(url, model, api_key_env=api_key_env))
        reporter.finish()


@recipe_command(app, options=("limit",), writes=False)
def plan(
    context: Context,
    pilot: Annotated[int | None, typer.Option("--pilot", min=1, help="First ask K prompts, for estimates.")] = None,
    tokens_per_reply: Annotated[float | None, typer.Option(min=1, help="Assume this many, measure none.")] = None,
    tokens_per_second: Annotated[float | None, typer.Option(min=1, help="Rate of all endpoints, for hours.")] = None,
) -> None:
    """Requests, tokens, money, disk, and what is paid for already. Sends nothing unless --pilot."""
    from builder.plan import make_plan
    from builder.show_plan import show_plan

    if pilot is not None:
        context.remember()
        replace(context.steps, limit=pilot).generate()
    made = make_plan(
        context.run,
        context.recipe,
        limit=context.steps.limit,
        tokens_per_reply=tokens_per_reply,
        tokens_per_second=tokens_per_second,
    )
    show_plan(context.reporter, context.recipe, made)


@recipe_command(app, options=("limit", *SPREAD, *BUDGET))
def generate(
    context: Context,
    forget_missing: Annotated[
        bool, typer.Option("--forget-missing", help="Pay again for replies whose sealed part is lost.")
    ] = False,
) -> None:
    """prompts → responses: ask the teacher what is missing, keep every reply."""
    context.steps.generate(forget_missing=forget_missing)


@app.command("import")
def import_replies(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Path or packaged name of a recipe.")],
    given: Annotated[
        list[str] | None, typer.Argument(metavar="FILES… [KEY=VALUE…]", help="JSONL or Parquet files; or one DATASET.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--format", help="dasd, openthoughts, openr1, messages, vllm; release for a DATASET.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0, max=100, help="Of the replies whose rows do not say.")
    ] = None,
    finish_reason: Annotated[
        str | None, typer.Option("--finish-reason", help="The same; stop where none was cut.")
    ] = None,
    license: Annotated[str | None, typer.Option("--license", help="Of the prompts whose rows do not say.")] = None,
    requests: Annotated[
        Path | None, typer.Option("--requests", help="With --format vllm: the file that was sent to the batch.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out and name rows that do not fit.")] = False,
    run: RunOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Replies that exist already → responses: to score, select and release without a request for them."""
    from builder.import_command import import_given, split_arguments
    from builder.import_result import Declared

    files, overrides = split_arguments(given or [])
    with opened(recipe, overrides, run=run, as_json=as_json, quiet=quiet, debug=debug, writes=True) as context:
        declared = Declared(temperature, finish_reason, license, requests)
        import_given(context.run, context.recipe, context.reporter, files, name, declared, skip_bad=skip_bad)


@recipe_command(app, options=(*BUDGET, "allow_code"))
def mix(
    context: Context,
    student: Annotated[Path | None, typer.Option("--student", help="Folder of the checkpoint that rolls out.")] = None,
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="Server that holds it; default: one here.")] = None,
) -> None:
    """Mixed-policy rows: the checkpoint begins, the teacher finishes; then score, verify, select. Next: release."""
    if student is None:
        raise UsageError("builder mix needs --student: the folder of the checkpoint that rolls out.")
    context.steps.mix(student, endpoint)


@recipe_command(app, options=SPREAD)
def score(
    context: Context,
    retry: Annotated[
        bool, typer.Option("--retry", help="Ask again about replies that a server gave no logprobs for.")
    ] = False,
) -> None:
    """responses → scores: what the student does not know yet, sentence by sentence."""
    context.steps.score(retry=retry)


recipe_command(app, options=(*SPREAD, *BUDGET))(verify)
recipe_command(app, options=("limit", *BUDGET, "allow_code"))(pairs)
recipe_command(app, options=("limit", *BUDGET, "allow_code"))(rewrite)
recipe_command(app, options=("allow_code",))(review)


@app.command()
def select(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="With --from: default theirs.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as generation.samples=8.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--from", metavar="DATASET", help="Select from the candidates of a release.")
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option("--by", help="Funnel also by domain, by temperature, or both: give it twice.")
    ] = None,
    run: RunOption = None,
    allow_code: AllowCodeOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """scores → selection: your rules, your selector, your stages; prints the funnel. Sends nothing."""
    from builder.funnel import check_grouping, funnel_by, show_funnel_by
    from builder.import_command import import_dataset, recipe_of

    with messages(debug):
        check_grouping(by or [])
        path, changes, root = recipe_of(recipe, overrides, run, dataset)
    with opened(
        path, changes, run=root, as_json=as_json, quiet=quiet, debug=debug, writes=True, allow_code=allow_code
    ) as context:
        if dataset is not None:
            import_dataset(context.run, context.recipe, context.reporter, dataset)
        context.steps.select()
        if by:
            ranked = "rewrite" if context.recipe.rewrite else "teacher"
            show_funnel_by(context.reporter, by, funnel_by(context.run, by, ranked_role=ranked))


app.command()(release)
recipe_command(app, writes=False)(publish)


@recipe_command(app, "run", options=("limit", *SPREAD, *BUDGET, "allow_code"))
def run_all(context: Context) -> None:
    """Every step from prompts to release, each doing only what is missing; one of N shards: up to what needs all."""
    context.steps.everything()


@recipe_command(app, writes=False, quiet=False)
def status(context: Context) -> None:
    """Progress, cost and errors of a run, also while it goes on elsewhere."""
    from builder.status import show_status

    show_status(context.reporter, context.run)


@app.command()
def sql(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE_OR_DATASET", help="A recipe, a release, or org/name@vN.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as generation.samples=8.")
    ] = None,
    query: Annotated[str | None, typer.Option("-c", "--command", help="One SELECT.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="File with one SELECT.")] = None,
    rules: Annotated[bool, typer.Option("--rules", help="List rules and selectors with their parameters.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every row as CSV (RFC 4180), lists as JSON.")] = False,
    run: RunOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Query the tables of a run or of a published dataset; without a query, print the duckdb line that opens it."""
    from builder.console import Reporter
    from builder.import_command import queried
    from builder.published import is_dataset
    from builder.sqlshell import show_query, show_rules

    with messages(debug):
        if rules and (as_csv or query is not None or file is not None):
            raise UsageError("--rules lists rules and selectors; it goes without a query and without --csv.")
    if is_dataset(recipe) and not rules:
        with messages(debug):
            reporter = Reporter(as_json=as_json)
            show_query(reporter, *queried(recipe), query, file, as_csv=as_csv)
            reporter.finish()
        return
    with opened(recipe, overrides, run=run, as_json=as_json, debug=debug, writes=False) as context:
        if rules:
            show_rules(context.reporter, context.recipe, context.steps.recipe_dir)
        else:
            params = context.recipe.selection.params
            show_query(context.reporter, context.run.database, params, query, file, as_csv=as_csv)


@recipe_command(app, options=("allow_code",), writes=False, quiet=False)
def explain(
    context: Context,
    response_id: Annotated[str, typer.Argument(metavar="RESPONSE_ID", help="Id of a reply, or how it begins.")],
    text: Annotated[bool, typer.Option("--text", help="Print the question and the whole reply, too.")] = False,
) -> None:
    """Why a reply is kept or dropped: rule by rule, rank by rank. Sends nothing, stores no selection."""
    from builder.explain import explain as look
    from builder.show_explained import show_explanation

    folder = context.steps.recipe_dir
    with context.reporter.progress("explain") as meter:
        found = look(
            context.run,
            context.recipe,
            response_id,
            recipe_dir=folder,
            allow_code=context.steps.allow_code,
            progress=meter.step,
        )
    show_explanation(context.reporter, found, with_text=text)


@recipe_command(app, options=("allow_code",), writes=False, quiet=False)
def compare(
    context: Context,
    against: Annotated[str | None, typer.Option("--against", help="Another recipe: path or packaged name.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--with", metavar="KEY=VALUE", help="What the other does otherwise; repeatable.")
    ] = None,
    sample: Annotated[int, typer.Option("--sample", min=0, help="Replies to show of those only in one.")] = 3,
) -> None:
    """Two selections side by side, storing neither: RECIPE against itself --with …, or --against another recipe; with
    neither, the latest builder select against RECIPE as it is now."""
    from builder.compare import compare_recipes, other_recipe
    from builder.show_compared import show_compared

    other = other_recipe(context.path, context.overrides, against, changes or [])
    with context.reporter.progress("compare") as meter:
        found = compare_recipes(
            context.run,
            context.recipe,
            context.steps.recipe_dir,
            other,
            sample,
            allow_code=context.steps.allow_code,
            progress=meter.step,
        )
    show_compared(context.reporter, found)


app.command()(diff)


recipe_command(app, "eval", options=("limit", *BUDGET))(evaluate)


app.command()(report)


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
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Serve a model behind an OpenAI-compatible API, with logprobs and token ids."""
    with messages(debug):
        from builder.serve_command import Serving, serve_with

        serve_with(
            engine,
            Serving(
                model=model,
                host=host,
                port=port,
                model_name=model_name,
                max_model_len=max_model_len,
                max_batch=max_batch,
                threads=threads,
                revision=revision,
                reasoning_parser=reasoning_parser,
                tensor_parallel=tensor_parallel,
                print_only=print_only,
                as_json=as_json,
                passed_on=tuple(passed_on or ()),
            ),
        )


def main(arguments: list[str] | None = None) -> Any:
    """Entry point."""
    return app(args=arguments if arguments is not None else sys.argv[1:], prog_name="builder")


if __name__ == "__main__":
    main()
