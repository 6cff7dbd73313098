"""The catalogue of SQL files: where they are, what their headers say, which parameters they declare."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from builder.code_rules import load_code
from builder.errors import SqlError, UsageError
from builder.resources import resource
from builder.sqlcheck import Tree, function_name, parse_select, walk
from builder.sqlfile import KINDS, Parameter, SqlFile, Value

LABELS: Final = ("Purpose", "Inputs", "Output", "Parameters", "Source", "Try it")
_LABEL: Final = re.compile(rf"^-- ({'|'.join(LABELS)})\s+(\S.*)$")
_CONTINUATION: Final = re.compile(r"^--\s{6,}(\S.*)$")
_PARAMETER: Final = re.compile(r"^(?P<name>\w+): (?P<unit>.+), default (?P<default>.+)$")


def catalogue(kind: str) -> dict[str, Path]:
    """Packaged SQL files of a kind (rules, selectors, reports, mix, staging), by name."""
    return {path.stem: path for path in sorted(resource("sql", kind).glob("*.sql"))}


def find_sql(kind: str, name: str, recipe_dir: Path | None = None) -> Path:
    """File of a rule or selector: a .sql or .py path inside the recipe's folder, its own copy, or a packaged name.

    Raises UsageError with the nearest names.
    """
    if name.endswith((".sql", ".py")):
        if recipe_dir is None:
            raise UsageError(
                f"{KINDS[kind].capitalize()} {name!r} is a path, but this recipe is in no folder of its own."
            )
        path = (recipe_dir / name).resolve()
        if not path.is_relative_to(recipe_dir.resolve()):
            raise UsageError(f"{KINDS[kind].capitalize()} {name!r} lies outside the recipe's folder {recipe_dir}.")
        if not path.is_file():
            raise UsageError(f"{KINDS[kind].capitalize()} {name!r}: there is no file {path}.")
        return path
    if recipe_dir is not None and (own := recipe_dir / "sql" / kind / f"{name}.sql").is_file():
        return own
    packaged = catalogue(kind)
    if name not in packaged:
        raise UsageError(
            f"There is no {KINDS[kind]} {name!r}{did_you_mean(name, packaged)}. Packaged: {', '.join(packaged)}. "
            f"For one of your own, give its path ending in .sql or .py, relative to the recipe."
        )
    return packaged[name]


def load_sql(kind: str, path: Path) -> SqlFile:
    """Read and check one file. Raises SqlError where it breaks its contract."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SqlError(f"{KINDS[kind].capitalize()} file {path} cannot be read: {error}") from error
    if path.suffix == ".py":
        return load_code(kind, path, text)
    return parse_file(kind, path, text)


def parse_file(kind: str, path: Path, text: str) -> SqlFile:
    """A SQL file from its text; `path` gives its name."""
    what = f"{KINDS[kind].capitalize()} {path.stem} ({path})"
    tree = parse_select(text, what)
    header = parse_header(text)
    return SqlFile(path.stem, kind, path, text, header, declared_parameters(tree, header, what))


def parse_header(text: str) -> dict[str, list[str]]:
    """Lines of the comment block at the top, by label; a line indented under a label continues it."""
    header: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in text.split("\n"):
        if not line.startswith("--"):
            break
        if match := _LABEL.match(line):
            lines = header.setdefault(match[1], [])
            lines.append(match[2])
        elif lines is not None and (match := _CONTINUATION.match(line)):
            lines.append(match[1])
    return header


def declared_parameters(tree: Tree, header: Mapping[str, list[str]], what: str) -> tuple[Parameter, ...]:
    """Parameters of the `params` CTE, each of which the header names with unit and the same default.

    Raises SqlError where `getvariable` stands anywhere else, or where CTE and header disagree.
    """
    calls = sum(function_name(node) == "getvariable" for node in walk(tree))
    ctes = tree["cte_map"]["map"]
    declared: dict[str, tuple[str, str | None]] = {}
    if ctes and ctes[0]["key"] == "params":
        for item in ctes[0]["value"]["query_node"].get("select_list", []):
            name, kind, default = _declaration(item, what)
            declared[name] = (kind, default)
    if calls != len(declared):
        raise SqlError(
            f"{what} calls getvariable {calls} times but declares {len(declared)} parameters. Outside its first CTE, "
            "`params`, a misspelt variable would be NULL in silence; declare it there as "
            "coalesce(getvariable('p'), default)::type as p."
        )
    described = _described(header.get("Parameters", ["none"]), what)
    for name in [*declared, *described]:
        if name not in declared or name not in described:
            missing = "the params CTE" if name in described else "the header line `-- Parameters`"
            raise SqlError(f"{what}: parameter {name} is missing in {missing}; both must name it.")
        default = declared[name][1]
        if described[name][1] != ("null" if default is None else default):
            raise SqlError(f"{what}: the header gives {name} the default {described[name][1]}, the SQL {default}.")
    return tuple(Parameter(name, kind, default, described[name][0]) for name, (kind, default) in declared.items())


def _declaration(item: Tree, what: str) -> tuple[str, str, str | None]:
    problem = SqlError(
        f"{what}: every column of the CTE `params` must read coalesce(getvariable('p'), default)::type as p, "
        "with a literal default and one name in both places."
    )
    try:
        call, default = item["child"]["children"]
        argument = call["arguments"][0]
        name = argument.get("expression", argument)["literal"]["text"]
        shape = (item["type"], item["child"]["type"], function_name(call), default["class"])
        kind = item["type_expr"]["type_name"].upper()
    except (KeyError, TypeError, ValueError, IndexError):
        raise problem from None
    if shape != ("OPERATOR_CAST", "OPERATOR_COALESCE", "getvariable", "CONSTANT") or item["alias"] != name:
        raise problem
    literal = default["literal"]
    return name, kind, None if literal["kind"] == "NULL_LITERAL" else literal["text"]


def _described(lines: list[str], what: str) -> dict[str, tuple[str, str]]:
    if lines == ["none"]:
        return {}
    found: dict[str, tuple[str, str]] = {}
    for line in lines:
        match = _PARAMETER.match(line)
        if not match:
            raise SqlError(f"{what}: header line {line!r} does not read `name: unit, default value`.")
        found[match["name"]] = (match["unit"], match["default"])
    return found


def check_parameters(files: Iterable[SqlFile], given: Mapping[str, Value]) -> list[str]:
    """Check a recipe's `selection.params` against the files it uses; returns warnings.

    A name that no file declares is a UsageError with the nearest names; one that only unused packaged files declare
    is a warning. Raises SqlError where two files give one name two meanings.
    """
    known: dict[str, tuple[Parameter, SqlFile]] = {}
    for file in files:
        for parameter in file.parameters:
            other, owner = known.setdefault(parameter.name, (parameter, file))
            if (other.type, other.default) != (parameter.type, parameter.default):
                raise SqlError(
                    f"{file.label} declares {parameter.name} as {parameter.type} default {parameter.default}, "
                    f"{owner.label} as {other.type} default {other.default}. One name means one thing: rename one."
                )
    warnings = []
    elsewhere: dict[str, Parameter] | None = None
    for name, value in given.items():
        if name in known:
            known[name][0].check(value, f"selection.params.{name}")
            continue
        elsewhere = elsewhere if elsewhere is not None else packaged_parameters()
        if name not in elsewhere:
            raise UsageError(
                f"selection.params.{name} is declared by no rule or selector of this recipe"
                f"{did_you_mean(name, [*known, *elsewhere])}. A misspelt parameter would change nothing in silence."
            )
        warnings.append(f"selection.params.{name} has no effect: no rule or selector of this recipe reads it.")
    return warnings


def packaged_parameters() -> dict[str, Parameter]:
    """Every parameter of the packaged rules and selectors, by name."""
    return {
        parameter.name: parameter
        for kind in ("rules", "selectors")
        for path in catalogue(kind).values()
        for parameter in load_sql(kind, path).parameters
    }


def did_you_mean(name: str, known: Iterable[Any]) -> str:
    """`; did you mean 'x'?` or nothing."""
    near = difflib.get_close_matches(name, [str(item) for item in known], n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
