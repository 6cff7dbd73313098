"""What commands share: arguments and options written once, the run that they open, and errors as one message."""

import errno
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from builder.errors import BuilderError, UsageError

if TYPE_CHECKING:
    from builder.config import Recipe
    from builder.console import Reporter
    from builder.pipeline import Steps
    from builder.store import Run

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no tables.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

RunOption = Annotated[Path | None, typer.Option("--run", help="Run directory; default runs/<recipe name>.")]
AllowCodeOption = Annotated[bool, typer.Option("--allow-code", help="Run the recipe's rules and selectors in Python.")]

RECIPE: Final = ("recipe", Annotated[str, typer.Argument(metavar="RECIPE", help="Path or packaged name of a recipe.")])
OVERRIDES: Final = (
    "overrides",
    Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as generation.samples=8.")],
    None,
)
SHARED: Final[dict[str, tuple[Any, Any]]] = {
    "run": (RunOption, None),
    "limit": (Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N prompts.")], None),
    "shard": (
        Annotated[str, typer.Option("--shard", metavar="I/N", help="Work on shard I of N (I from 0).")],
        "0/1",
    ),
    "engine": (
        Annotated[
            Literal["local", "ray"], typer.Option("--engine", help="Work here, or on the Ray cluster of RAY_ADDRESS.")
        ],
        "local",
    ),
    "shards": (
        Annotated[
            int | None,
            typer.Option(
                "--shards", min=1, max=1000, help="With ray: cut the work into N; default: one a node or GPU."
            ),
        ],
        None,
    ),
    "max_cost": (
        Annotated[
            float | None,
            typer.Option("--max-cost", min=0, help="Hard stop: USD that this run's replies may cost in all."),
        ],
        None,
    ),
    "max_tokens_total": (
        Annotated[
            int | None, typer.Option("--max-tokens-total", min=0, help="Hard stop: tokens that they may take in all.")
        ],
        None,
    ),
    "allow_code": (AllowCodeOption, False),
    "as_json": (JsonOption, False),
    "quiet": (QuietOption, False),
    "debug": (DebugOption, False),
}
"""Options by parameter: type with help, default; in the order of `--help`."""
BUDGET: Final = ("max_cost", "max_tokens_total")
SPREAD: Final = ("shard", "engine", "shards")


@dataclass(frozen=True)
class Context:
    """What every command on a recipe needs; `path` is the recipe's file, `overrides` what was put over it."""

    steps: "Steps"
    path: Path
    overrides: tuple[str, ...]

    @property
    def run(self) -> "Run":
        return self.steps.run

    @property
    def recipe(self) -> "Recipe":
        return self.steps.recipe

    @property
    def reporter(self) -> "Reporter":
        return self.steps.reporter

    def remember(self) -> None:
        """Keep the recipe in the run directory, as commands do that add to it."""
        self.run.remember(self.path.read_text(encoding="utf-8"), self.recipe.resolved())


Command = Callable[..., None]


def recipe_command(
    app: typer.Typer, name: str | None = None, *, options: tuple[str, ...] = (), writes: bool = True, quiet: bool = True
) -> Callable[[Command], Command]:
    """Add `function(context, …own options)` to `app` as a command on a recipe.

    It gets RECIPE, its own arguments and options, overrides, then `--run`, the shared `options`, `--json`, `--quiet`
    unless `quiet` is false, and `--debug`. With `writes` the run remembers the recipe.
    """

    def add(function: Command) -> Command:
        own = [one.replace(kind=one.KEYWORD_ONLY) for one in list(inspect.signature(function).parameters.values())[1:]]
        shown = [one for one in SHARED if one in ("run", "as_json", "debug", *options) or (one == "quiet" and quiet)]

        def command(**given: Any) -> None:
            mine = {one.name: given.pop(one.name) for one in own}
            with opened(**given, writes=writes) as context:
                function(context, **mine)

        command.__doc__ = function.__doc__
        # Typer reads arguments and options from the signature.
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [_parameter(*RECIPE), *own, _parameter(*OVERRIDES), *(_parameter(one, *SHARED[one]) for one in shown)]
        )
        app.command(name or function.__name__)(command)
        return function

    return add


def _parameter(name: str, kind: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)


@contextmanager
def opened(
    recipe: str,
    overrides: list[str] | None,
    *,
    run: Path | None,
    as_json: bool,
    debug: bool,
    writes: bool,
    quiet: bool = False,
    limit: int | None = None,
    shard: str = "0/1",
    engine: str = "local",
    shards: int | None = None,
    max_cost: float | None = None,
    max_tokens_total: int | None = None,
    allow_code: bool = False,
) -> Iterator[Context]:
    """Load the recipe, open the run, print the result; errors end in one message and an exit code."""
    with messages(debug):
        from builder.console import Reporter
        from builder.pipeline import Limits, Steps
        from builder.recipe import find_recipe, load_recipe
        from builder.store import Run

        _check_engine(engine, shard, shards)
        path = find_recipe(recipe)
        loaded = load_recipe(path, overrides)
        reporter = Reporter(as_json=as_json, quiet=quiet)
        limits = Limits(max_cost, max_tokens_total)
        where = Run(run or Path("runs") / loaded.name)
        steps = Steps(where, loaded, path.parent, reporter, _shard(shard), limit, limits, allow_code)
        with ExitStack() as cluster:
            if engine == "ray":
                from builder.cluster import on_ray

                steps = cluster.enter_context(on_ray(steps, shards))
            context = Context(steps, path, tuple(overrides or ()))
            if writes:
                context.remember()
            yield context
        reporter.finish()


@contextmanager
def messages(debug: bool) -> Iterator[None]:
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
        # `| head` has read enough and closed the pipe: Typer ends quietly
        if debug or (isinstance(error, OSError) and error.errno == errno.EPIPE):
            raise
        typer.echo(
            f"Unexpected {type(error).__name__}: {error}. Stored replies are safe. This is a defect of tempered: "
            "run again with --debug and report what it prints.",
            err=True,
        )
        raise typer.Exit(1) from None


def _check_engine(engine: str, shard: str, shards: int | None) -> None:
    if engine == "local" and shards is not None:
        raise UsageError(
            f"--shards {shards} cuts work for a cluster and goes with --engine ray; here, start each with --shard I/N."
        )
    if engine == "ray" and shard != "0/1":
        raise UsageError(f"--shard {shard} is one machine's part, and --engine ray makes the parts itself: --shards N.")


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]) <= 1000:
        raise UsageError(f"--shard {text!r} is not I/N with 0 ≤ I < N ≤ 1000, such as 0/4.")
    return int(match[1]), int(match[2])
