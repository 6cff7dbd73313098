"""Rules and selectors as code: a `.py` file with one function on Polars LazyFrames, in the same funnel as SQL files.

    import polars as pl

    def rule(candidates: pl.LazyFrame, max_tokens: int = 4096) -> pl.LazyFrame:
        '''Drop long replies.

        max_tokens: completion tokens
        '''
        long = candidates.filter(pl.col("completion_tokens") > max_tokens)
        return long.select("response_id", observed="completion_tokens", threshold=pl.lit(max_tokens))

Rows are those of `stg_candidates`. A selector's function is `selector(survivors, …)` and returns response_id, rank.
Reading a file never runs it: name, parameters and docstring come from its syntax tree. Running it is running a program.
"""

import ast
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb
import pyarrow as pa

from builder.config import Recipe
from builder.errors import SqlError, UsageError
from builder.models import student_id
from builder.sqlfile import KINDS, Parameter, SqlFile, Value
from builder.store import Run

if TYPE_CHECKING:  # imported where a Python file runs: a selection in SQL alone does without
    import polars as pl

_FUNCTIONS: Final = {"rules": "rule", "selectors": "selector"}
_COLUMNS: Final = {
    "rules": {"response_id": "String", "observed": "Float64", "threshold": "Float64"},
    "selectors": {"response_id": "String", "rank": "Int32"},
}
"""Columns and their Polars types, by kind."""
_TYPES: Final = {bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE", str: "VARCHAR"}


class CodeFile(SqlFile):
    """A rule or selector in Python. `text` is its source; `header` and `parameters` as of a SQL file."""


def load_code(kind: str, path: Path, text: str) -> CodeFile:
    """Read the file's one function from its syntax tree. Raises SqlError where it breaks its contract; runs nothing."""
    what = f"{KINDS[kind].capitalize()} {path.stem} ({path})"
    if kind not in _FUNCTIONS:
        raise SqlError(f"{what} is Python; only rules and selectors may be.")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        line, column = error.lineno or 1, error.offset or 1
        said = (text.splitlines() or [""])[line - 1]
        start = f"LINE {line}: "
        raise SqlError(
            f"{what} cannot be parsed: {error.msg}\n{start}{said}\n{' ' * (len(start) + column - 1)}^"
        ) from None
    name = _FUNCTIONS[kind]
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if len(found) != 1 or not found[0].args.args:
        raise SqlError(
            f"{what} must define one function {name}(frame: pl.LazyFrame, parameter=default, …) -> pl.LazyFrame; "
            f"it has {len(found)} of that name."
        )
    purpose = ast.get_docstring(found[0])
    if not purpose:
        raise SqlError(f"{what}: function {name} has no docstring. Its first line says what is wrong with the rows.")
    parameters = _parameters(found[0], purpose, what)
    return CodeFile(path.stem, kind, path, text, {"Purpose": [purpose.split("\n")[0]]}, parameters)


def _parameters(function: ast.FunctionDef, docstring: str, what: str) -> tuple[Parameter, ...]:
    """Parameters after the frame, each with a literal default and a docstring line `name: unit`."""
    given = function.args
    names = [*given.posonlyargs, *given.args][1:]
    ordinary = list(zip(names, given.defaults[-len(names) :] if names else [], strict=False))
    if given.vararg or given.kwarg or len(ordinary) != len(names):
        raise SqlError(f"{what}: every parameter after the frame needs a name and a default, as in max_tokens=4096.")
    units = dict(line.strip().split(": ", 1) for line in docstring.splitlines() if ": " in line)
    found = []
    for argument, default in [*ordinary, *zip(given.kwonlyargs, given.kw_defaults, strict=True)]:
        try:
            value = ast.literal_eval(default or ast.Name("nothing"))
            kind = _TYPES[type(value)]
        except (ValueError, KeyError):
            raise SqlError(
                f"{what}: parameter {argument.arg} needs a number, a word, True or False as its default."
            ) from None
        if argument.arg not in units:
            raise SqlError(f"{what}: the docstring gives no unit of {argument.arg}; add a line `{argument.arg}: unit`.")
        found.append(Parameter(argument.arg, kind, str(value), units[argument.arg]))
    return tuple(found)


def refuse_code(files: tuple[SqlFile, ...]) -> None:
    """Raise UsageError where a file is Python."""
    code = [file.label for file in files if isinstance(file, CodeFile)]
    if code:
        raise UsageError(
            f"This recipe runs Python: {', '.join(code)}. Code can do whatever you can, unlike SQL, which runs where "
            "it reaches no file and no network. Read it, then add --allow-code."
        )


def as_sql(file: SqlFile, table: str) -> SqlFile:
    """A SQL file in place of a Python one: it reads the rows that `run_code` returned, from a table of this name."""
    return SqlFile(file.name, file.kind, file.path, f"select * from {table}", {}, ())


def candidates(run: Run, recipe: Recipe) -> "pl.LazyFrame":
    """What `stg_candidates` holds, lazily from the run's tables; a run whose run.duckdb is up to date."""
    import polars as pl

    responses, scores = run.scan("responses"), run.scan("scores")
    student = student_id(recipe.student) if recipe.student else None
    with duckdb.connect(str(run.database), read_only=True) as connection:
        verdicts = connection.sql("select response_id, verdict, extracted from stg_verdicts where decides").pl()
    prompts = run.scan("prompts").select("prompt_id", "gold", "gold_type", "domain", "language", prompt="messages")
    mine = scores.filter(pl.col("student_id") == pl.lit(student)).drop("status_detail", "sentence_count")
    return (
        responses.drop("latency_s", "cost_usd", "received_at")
        .filter(pl.col("role").is_in(["teacher", "mixed", "rewrite"]))
        .join(prompts, on="prompt_id", how="left")
        .join(mine.rename({"status": "score_status"}), on="response_id", how="left")
        .join(verdicts.lazy(), on="response_id", how="left")
        .join(run.scan("features"), on="response_id", how="left")
    )


def run_code(file: CodeFile, rows: "pl.LazyFrame", params: Mapping[str, Value]) -> pa.Table:
    """Rows that the file's function returns for `rows`, in the columns of its kind.

    Raises SqlError naming the file, and the line where its own code fails.
    """
    import polars as pl

    name, columns = _FUNCTIONS[file.kind], _COLUMNS[file.kind]
    mine = {parameter.name: params[parameter.name] for parameter in file.parameters if parameter.name in params}
    space: dict[str, Any] = {"__name__": file.name, "__file__": str(file.path)}
    try:
        exec(compile(file.text, str(file.path), "exec"), space)
        answer = space[name](rows, **mine)
        frame = answer.lazy().collect() if isinstance(answer, pl.LazyFrame | pl.DataFrame) else None
        if frame is not None and frame.columns == list(columns):
            return frame.cast({column: getattr(pl, kind) for column, kind in columns.items()}, strict=True).to_arrow()
    except Exception as error:
        lines = [one.lineno for one in traceback.extract_tb(sys.exc_info()[2]) if one.filename == str(file.path)]
        where = f" in line {lines[-1]}" if lines else ""
        raise SqlError(f"{file.label} fails{where}: {type(error).__name__}: {error}") from error
    returned = type(answer).__name__ if frame is None else f"columns {', '.join(frame.columns)}"
    wanted = ", ".join(columns)
    raise SqlError(f"{file.label} returns {returned}; it must return {wanted}, in this order, as a LazyFrame.")


def run_rules(files: tuple[SqlFile, ...], run: Run, recipe: Recipe) -> tuple[tuple[SqlFile, ...], dict[str, pa.Table]]:
    """The rules with each Python one run and replaced by SQL that reads its rows, and those rows by table."""
    given: dict[str, pa.Table] = {}
    ready: list[SqlFile] = []
    for place, file in enumerate(files):
        if isinstance(file, CodeFile):
            given[f"code_{place}"] = run_code(file, candidates(run, recipe), recipe.selection.params)
            ready.append(as_sql(file, f"code_{place}"))
        else:
            ready.append(file)
    return tuple(ready), given
