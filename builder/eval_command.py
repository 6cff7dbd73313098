"""`builder eval`: its options, and what they mean together."""

import math
from collections.abc import Sequence
from typing import Annotated

import typer

from builder.errors import UsageError
from builder.options import Context


def evaluate(
    context: Context,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Folder of a model, or its name at --endpoint; repeatable.")
    ] = None,
    teacher: Annotated[
        bool,
        typer.Option("--teacher", help="Its ceiling, from stored replies; asked and paid on named benchmarks."),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="MODEL", help="Compare with this one: a folder, a name, or a label in eval/."
        ),
    ] = None,
    questions: Annotated[
        list[str] | None, typer.Option("--questions", metavar="FILE", help="Benchmark file; repeatable.")
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option("--benchmark", metavar="NAME", help="One of the recipe's evaluation.benchmarks; repeatable."),
    ] = None,
    label: Annotated[str | None, typer.Option("--label", help="Name of the one model; default: the folder's.")] = None,
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="Server that holds the models.")] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0, max=100, help="Default: the recipe's evaluation, else 1.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Replies a question; default: the recipe's, else 1.")
    ] = None,
) -> None:
    """pass@1, pass@k and maj@k of models on benchmarks, with 95% intervals; --against: is one worse, and where?

    Benchmarks are the files and names given, else all of the recipe's evaluation.benchmarks, else its prompts.
    """
    names, named = model or [], bool(questions or benchmark)
    _check(names, teacher, against, label, temperature)

    from builder.eval_plan import Asked, benchmarks_of, sampling_of
    from builder.eval_tables import show_ceilings, show_evaluations, show_paired
    from builder.eval_teacher import ceilings
    from builder.pipeline import Limits

    if context.steps.limits != Limits() and not (teacher and named):
        raise UsageError("--max-cost and --max-tokens-total limit what --teacher pays on benchmarks; name both.")
    if endpoint is not None:
        _check_endpoint(endpoint)
    if names or named:
        chosen = benchmarks_of(context.recipe, questions or [], benchmark or [])
        asked = Asked(context, chosen, endpoint, sampling_of(context.recipe, temperature, samples))
        found, rows = asked.all(names, label, against, teacher=teacher and named)
        show_evaluations(context.reporter, found)
        show_paired(context.reporter, rows)
    if teacher and not named:
        show_ceilings(context.reporter, ceilings(context.run))


def _check(
    names: Sequence[str], teacher: bool, against: str | None, label: str | None, temperature: float | None
) -> None:
    """Raise UsageError for options that mean nothing together."""
    if not names and not teacher:
        raise UsageError(
            "builder eval needs --model, a folder with a model or a name that --endpoint serves, or --teacher for the "
            "teacher's own ceiling."
        )
    if against is not None and not names:
        raise UsageError("--against compares models: name at least one with --model.")
    if label is not None and len(names) != 1:
        raise UsageError(f"--label names one model, and {len(names)} are given; evaluate it in a command of its own.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"--model names {', '.join(twice)} twice.")
    if temperature is not None and not math.isfinite(temperature):
        raise UsageError(f"--temperature {temperature} is no temperature; give a number from 0 to 100.")


def _check_endpoint(url: str) -> None:
    """Raise UsageError for what is no address of a server."""
    from pydantic import ValidationError

    from builder.section import Endpoint

    try:
        Endpoint(url=url)
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"--endpoint is no address such as http://host:8000/v1: {said}.") from None
