"""What untrusted SQL may say, decided on DuckDB's own parse tree before anything runs.

The sandbox of `builder.sqlrun` is what keeps SQL from harm; this module refuses early, with the line, what would be
refused there later, what would write (data-modifying CTEs are SELECTs to DuckDB), and what gives other rows every time.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import duckdb

from builder.errors import SqlError

MAX_SQL_BYTES: Final = 100_000
_QUERY_NODES: Final = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
_TABLE_FUNCTIONS: Final = frozenset({"unnest", "range", "generate_series", "repeat", "json_each", "json_tree"})
_INTROSPECTION: Final = frozenset({"duckdb_columns", "duckdb_tables", "duckdb_views", "duckdb_functions"})
_CLOCK_COLUMNS: Final = frozenset(
    {"current_timestamp", "current_date", "current_time", "localtime", "localtimestamp", "today", "now"}
)
_FIRST_COMES: Final = frozenset({"first", "last", "any_value", "arbitrary", "array_agg", "list", "string_agg"})
_RANKING: Final = ("ROW_NUMBER", "RANK", "NTILE", "LEAD", "LAG", "FIRST_VALUE", "LAST_VALUE", "NTH_VALUE")
# These tell rows that tie apart, each time as they come; rank() and dense_rank() do not.
_NUMBERING: Final = ("ROW_NUMBER", "NTILE")
_TIES: Final = "rows that tie come in any order; end the order in a unique key, such as response_id"
# Volatile to DuckDB, deterministic in our use: both depend on their arguments and the run's variables only.
_HARMLESS: Final = frozenset({"error", "getvariable"})
# Consistent to DuckDB, yet clocks, chance, or (hash) another value in another version of DuckDB.
_UNSTABLE: Final = frozenset(
    {
        "current_localtime",
        "current_localtimestamp",
        "reservoir_quantile",
        "approx_quantile",
        "hash",
        "getenv",
        "version",
    }
)
_SYSTEM_TABLES: Final = ("sqlite_", "pg_", "duckdb_")

_LINE: Final = re.compile(r"^LINE (\d+): .*\n( *\^)", re.MULTILINE)

Tree = dict[str, Any]


@cache
def _parser() -> duckdb.DuckDBPyConnection:
    """A connection that only ever parses; nothing untrusted is executed on it."""
    return duckdb.connect(config={"enable_external_access": "false", "python_enable_replacements": "false"})


@cache
def _volatile() -> frozenset[str]:
    """Functions whose value changes between two equal queries, or that have an effect."""
    rows = (
        _parser()
        .cursor()
        .execute("select distinct function_name from duckdb_functions() where stability <> 'CONSISTENT'")
    )
    return frozenset(name for (name,) in rows.fetchall()) - _HARMLESS | _UNSTABLE


def parse_select(sql: str, what: str, *, explore: bool = False) -> Tree:
    """Tree of the one SELECT in `sql`; `what` names it in messages.

    Raises SqlError on a syntax error (line and caret), several statements, anything but a SELECT, files, writes, and,
    unless `explore`, on what gives other rows every time: clocks, chance, LIMIT without ORDER BY and the like.
    """
    tree = _parse_one(sql, what)
    for node in walk(tree):
        _check_node(node, sql, what, explore)
    return tree


def check_expression(text: str, what: str) -> None:
    """Raise SqlError unless `text` is exactly one SQL expression: nothing may close the bracket around it."""
    tree = _parse_fragment(f"select\n{text}\n", text, what)
    items = tree["select_list"]
    if len(items) != 1 or items[0]["class"] == "STAR" or items[0]["alias"] or tree["modifiers"]:
        raise SqlError(
            f"{what} is {text!r}: not one boolean expression, such as \"temperature = 0.6 and domain = 'math'\"."
        )


def check_order(text: str, what: str) -> None:
    """Raise SqlError unless `text` is what may follow ORDER BY: expressions with asc, desc, nulls first or last."""
    tree = _parse_fragment(f"select 1 order by\n{text}\n", text, what)
    modifiers = tree["modifiers"]
    stars = any(order["expression"]["class"] == "STAR" for order in modifiers[0].get("orders", []))
    if len(modifiers) != 1 or modifiers[0]["type"] != "ORDER_MODIFIER" or stars:
        raise SqlError(
            f'{what} is {text!r}: not a list of columns to sort by, such as "student_tokens, mean_delta desc".'
        )


def _parse_fragment(sql: str, text: str, what: str) -> Tree:
    try:
        tree = parse_select(sql, what)
    except SqlError as error:
        raise SqlError(without_line_number(str(error))) from None
    alone = (
        tree["type"] == "SELECT_NODE"
        and tree["from_table"]["type"] == "EMPTY"
        and not tree["cte_map"]["map"]
        and not any(tree[part] for part in ("where_clause", "group_expressions", "having", "qualify", "sample"))
    )
    if not alone or ";" in _without_strings(text):
        raise SqlError(f"{what} is {text!r}: more than one expression. Leave out from, where, limit and semicolons.")
    if any(function_name(node) == "getvariable" for node in walk(tree)):
        raise SqlError(f"{what} reads a variable; only rules and selectors have parameters. Write the value itself.")
    return tree


def _without_strings(text: str) -> str:
    """The text less string literals and quoted names, so that a semicolon inside one is no end of statement."""
    return "".join("".join(piece.split("'")[::2]) for piece in text.split('"')[::2])


def _parse_one(sql: str, what: str) -> Tree:
    if len(sql.encode()) > MAX_SQL_BYTES:
        raise SqlError(f"{what} has {len(sql.encode())} bytes of SQL; the limit is {MAX_SQL_BYTES}.")
    cursor = _parser().cursor()
    try:
        statements = cursor.extract_statements(sql)
        if len(statements) != 1:
            raise SqlError(
                f"{what} holds {len(statements)} statements; it must be exactly one SELECT. "
                "Use CTEs (with … as) for steps."
            )
        kind = statements[0].type
        if kind != duckdb.StatementType.SELECT:
            raise SqlError(
                f"{what} is {_kind_name(kind)}, not a SELECT. SQL of a recipe reads rows and changes nothing."
            )
        (text,) = cursor.execute("select json_serialize_sql(?::varchar)", [sql]).fetchone() or ("{}",)
        parsed = json.loads(text)
    except duckdb.Error as error:
        raise SqlError(f"{what} cannot be parsed: {error}") from None
    except RecursionError:
        raise SqlError(f"{what} is nested too deeply to be checked. Name the steps in CTEs instead.") from None
    if parsed.get("error"):
        raise SqlError(f"{what} is not a plain SELECT: {parsed.get('error_message')}")
    tree: Tree = parsed["statements"][0]["node"]
    return tree


def _kind_name(kind: object) -> str:
    name = str(kind).rpartition(".")[2]
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name} statement"


def quoted(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def walk(tree: Any) -> Iterator[Tree]:
    """Every object of the tree; a stack, because SQL may be nested deeper than Python's."""
    stack = [tree]
    while stack:
        here = stack.pop()
        if isinstance(here, dict):
            yield here
            stack.extend(here.values())
        elif isinstance(here, list):
            stack.extend(here)


def function_name(node: Tree) -> str:
    """Lower-case name of a function call; empty for any other node."""
    return str(node.get("function_name") or "").lower()


def _check_node(node: Tree, sql: str, what: str, explore: bool) -> None:
    kind = str(node.get("type", ""))
    if kind.endswith("_NODE") and kind not in _QUERY_NODES:
        raise _refusal(node, sql, what, "a SELECT that changes rows on the way", "SQL of a recipe changes nothing")
    if kind == "SHOW_REF" and not explore:
        raise _refusal(node, sql, what, "describe, show or summarize", "it gives no response ids")
    if kind == "BASE_TABLE" and not str(node["table_name"]).replace("_", "a").isalnum():
        raise _refusal(
            node, sql, what, f"the file {node['table_name']!r}", "SQL of a recipe reads the stg_ tables only"
        )
    if kind == "BASE_TABLE" and not explore:
        name, places = str(node["table_name"]).lower(), {node.get("catalog_name"), node.get("schema_name")}
        if places - {"", None, "main"} or name.startswith(_SYSTEM_TABLES):
            raise _refusal(node, sql, what, f"the table {name}", "SQL of a recipe reads the stg_ tables only")
    if kind == "TABLE_FUNCTION":
        name = function_name(node["function"])
        if name not in _TABLE_FUNCTIONS and not (explore and name in _INTROSPECTION):
            raise _refusal(node, sql, what, f"{name}(…)", "files, settings and the system cannot be read from here")
    if not explore:
        _check_determinism(node, kind, sql, what)


def _check_determinism(node: Tree, kind: str, sql: str, what: str) -> None:
    name = function_name(node)
    why = "the same inputs must give the same rows"
    if name in _volatile() or (name == "age" and len(node["arguments"]) == 1):
        raise _refusal(node, sql, what, f"{name}()", f"{why}; to sample, order by md5(response_id || ':' || seed)")
    if node.get("class") == "COLUMN_REF" and str(node["column_names"][0]).lower() in _CLOCK_COLUMNS:
        raise _refusal(node, sql, what, node["column_names"][0], why)
    if node.get("sample"):
        raise _refusal(node, sql, what, "a sample clause", f"{why}; order by md5(response_id || ':' || seed) and limit")
    if name in _FIRST_COMES and node.get("class") == "FUNCTION" and not node["order_bys"]["orders"]:
        raise _refusal(node, sql, what, f"{name}() without order by inside", f"{why}, and rows come in any order")
    if (
        node.get("class") == "WINDOW"
        and kind.removeprefix("WINDOW_").startswith(_RANKING)
        and not (node["orders"] or node.get("arg_orders"))
    ):
        raise _refusal(
            node, sql, what, f"{name}() over a window without order by", f"{why}, and rows come in any order"
        )
    if node.get("class") == "WINDOW" and kind.removeprefix("WINDOW_").startswith(_NUMBERING):
        # within one reply, as of its sentences, an order is its author's to know
        is_one_reply = any((part.get("column_names") or [""])[-1] == "response_id" for part in node["partitions"])
        if not (is_one_reply or _names_id([node["orders"], node.get("arg_orders")])):
            raise _refusal(node, sql, what, f"{name}() over an order that may tie", _TIES)
    modifiers = node.get("modifiers")
    if isinstance(modifiers, list):
        kinds = {modifier["type"] for modifier in modifiers}
        picks = kinds & {"LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER"} or any(
            modifier.get("distinct_on_targets") for modifier in modifiers
        )
        if picks and "ORDER_MODIFIER" not in kinds:
            raise _refusal(node, sql, what, "limit or distinct on without order by", why)
        if picks and not any(_is_total(modifier) for modifier in modifiers):
            raise _refusal(node, sql, what, "limit or distinct on with an order that may tie", _TIES)


def _is_total(modifier: Tree) -> bool:
    """Whether an ORDER BY may decide every tie."""
    return modifier["type"] == "ORDER_MODIFIER" and _names_id(modifier["orders"])


def _names_id(orders: Any) -> bool:
    """Whether an order names an id, which may decide every tie, or all columns."""
    return any(
        node.get("class") == "STAR" or str((node.get("column_names") or [""])[-1]).lower().endswith("_id")
        for node in walk(orders)
    )


def without_line_number(message: str) -> str:
    """DuckDB's message on a text that stands inside a larger statement, whose lines its reader never sees."""
    match = _LINE.search(message)
    if match is None:
        return message
    before, middle = message[: match.start(1) - 1], message[match.end(1) : match.start(2)]
    return f"{before}{middle}{match[2][len(match[1]) + 1 :]}{message[match.end(2) :]}"


def _refusal(node: Tree, sql: str, what: str, found: str, why: str) -> SqlError:
    offset = node.get("query_location")
    encoded = sql.encode()
    if not isinstance(offset, int) or offset >= len(encoded):
        return SqlError(f"{what} uses {found}, which is refused: {why}.")
    before = encoded[:offset].decode(errors="replace")
    line = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1)
    return SqlError(
        f"{what} uses {found}, which is refused: {why}.\nLINE {line}: {sql.splitlines()[line - 1]}\n"
        f"{' ' * (len(f'LINE {line}: ') + column)}^"
    )
