"""Untrusted SQL: refused early with a clear message, and harmless even where the early check is bypassed."""

import time
from pathlib import Path

import pytest

from builder.errors import SqlError, TableError, UsageError
from builder.rules import check_parameters, find_sql, load_sql, parse_file
from builder.sqlcheck import parse_select
from builder.sqlfile import SqlFile
from builder.sqlrun import Limits, Step, query, run_files, run_steps
from builder.staging import build_staging
from builder.store import Run, columns_table

SMALL = Limits(memory_mb=256, threads=1, seconds=20, temp_mb=64)
EMPTY_RULE = "select null::varchar as response_id, null::double as observed, null::double as threshold limit 0"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with replies a, b (prompt p, 0.6) and c (prompt q, 1.0)."""
    run = Run(tmp_path_factory.mktemp("run"))
    reply = {
        **{"role": "teacher", "model": "m", "sample_index": 0, "completion_tokens": 10, "reasoning_format": "none"},
        **{"tool_calls": 0, "replaced_characters": 0, "prefix_chars": 0},
    }
    rows = [("a", "p", 0.6), ("b", "p", 0.6), ("c", "q", 1.0)]
    replies = [{"response_id": a, "prompt_id": b, "temperature": c, **reply} for a, b, c in rows]
    run.append("responses", columns_table("responses", replies))
    build_staging(run, {})
    return run.database


def rule(text: str, kind: str = "rules") -> SqlFile:
    return parse_file(kind, Path("my_rule.sql"), text)


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_text('/etc/passwd')",
        "select * from read_parquet('/tmp/*.parquet')",
        "select * from '/tmp/x.csv'",
        "select * from glob('/*')",
        "select * from duckdb_secrets()",
        "select * from query('from read_text(''/etc/passwd'')')",
    ],
)
def test_the_sandbox_holds_without_the_early_check(database: Path, sql: str) -> None:
    with pytest.raises(SqlError, match=r"disabled by configuration|Permission|not supported"):
        run_steps(database, [Step("hostile", sql, "x", fetch=True)], {}, limits=SMALL)


def test_endless_recursion_is_stopped_by_the_time_limit(database: Path) -> None:
    endless = rule(
        "with recursive r as (select 1 as n union all select n + 0 from r) "
        "select 'a' as response_id, max(n) as observed, 1 as threshold from r;"
    )
    started = time.monotonic()
    with pytest.raises(SqlError, match="longer than 1 s"):
        run_files(database, [endless], {}, limits=Limits(memory_mb=256, threads=1, seconds=1, temp_mb=64))
    assert time.monotonic() - started < 10


def test_a_cartesian_bomb_is_stopped_by_the_limits(database: Path) -> None:
    bomb = "select a.range::varchar as response_id, b.range as observed, c.range as threshold"
    bomb += " from range(100000) a, range(100000) b, range(100000) c;"
    with pytest.raises(SqlError, match=r"longer than 2 s|memory"):
        run_files(database, [rule(bomb)], {}, limits=Limits(memory_mb=128, threads=1, seconds=2, temp_mb=16))


def test_too_much_memory_says_so(database: Path) -> None:
    greedy = "select string_agg(md5(range::varchar), '' order by range) as response_id, 1 as observed, 1 as threshold"
    with pytest.raises(SqlError, match=r"more than its 64 MiB of memory|limit of 64 MiB"):
        run_files(
            database,
            [rule(f"{greedy} from range(10000000);")],
            {},
            limits=Limits(memory_mb=64, threads=1, seconds=30, temp_mb=16),
        )


def test_a_missing_column_comes_with_candidates(database: Path) -> None:
    wrong = rule("select response_id, completion_token as observed, 1 as threshold from stg_responses;")
    with pytest.raises(SqlError, match=r'(?s)rule my_rule.*Candidate bindings: "completion_tokens"'):
        run_files(database, [wrong], {})


def values(rows: str, columns: str = "response_id, observed, threshold") -> str:
    return f"select * from (values {rows}) as t({columns});"


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("select response_id from stg_responses;", "must return response_id, observed, threshold"),
        (values("('a', 1, 1, 1)", "response_id, observed, threshold, x"), "must return response_id"),
        (values("(null, 1, 1)"), "returns 1 rows whose response_id is NULL"),
        (values("('a', 1, 1), ('a', 2, 1)"), "response_id a 2 times"),
        (values("('z', 1, 1)"), "response_id z, which is not a reply of this run"),
        (values("('a', 'many', 1)"), "Could not convert string 'many'"),
    ],
)
def test_a_rule_that_breaks_its_contract_is_named(database: Path, sql: str, message: str) -> None:
    with pytest.raises(SqlError, match=f"(?s)rule my_rule.*{message}"):
        run_files(database, [rule(sql)], {})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("('a', 1), ('b', 3), ('c', 1)", "1..n without gaps"),
        ("('a', 1), ('b', 1), ('c', 1)", "1..n without gaps"),
        ("('a', 0), ('b', 1), ('c', 1)", "1..n without gaps"),
        ("('a', null), ('b', 1), ('c', 1)", "1..n without gaps"),
        ("('a', 1), ('b', 2), ('c', 1), ('z', 1)", "not a survivor"),
    ],
)
def test_a_selector_that_breaks_its_contract_is_named(database: Path, rows: str, message: str) -> None:
    with pytest.raises(SqlError, match=f"(?s)selector my_rule.*{message}"):
        run_files(database, [rule(values(rows, "response_id, rank"), "selectors")], {})


def test_rows_come_back_by_file(database: Path) -> None:
    tables = run_files(
        database, [rule(values("('b', 2, 1), ('a', null, null)")), load_sql_named("random")], {"seed": 3}
    )
    assert tables["my_rule"].to_pydict() == {
        "response_id": ["b", "a"],
        "observed": [2.0, None],
        "threshold": [1.0, None],
    }
    assert sorted(tables["random"]["rank"].to_pylist()) == [1, 1, 2]


def load_sql_named(name: str) -> SqlFile:
    return load_sql("selectors", find_sql("selectors", name))


PARAMS = """-- my_rule
-- Purpose     Try parameters.
-- Parameters  max_tokens: tokens of a reply, default 5
--             label: a word, default x
with
params as (
    select
        coalesce(getvariable('max_tokens'), 5)::bigint as max_tokens,
        coalesce(getvariable('label'), 'x')::varchar as label
)
select response_id, completion_tokens as observed, params.max_tokens as threshold
from stg_responses cross join params where completion_tokens > params.max_tokens;
"""


def test_parameters_are_read_from_cte_and_header(database: Path) -> None:
    file = rule(PARAMS)
    found = [(parameter.name, parameter.type, parameter.default, parameter.unit) for parameter in file.parameters]
    assert found == [("max_tokens", "BIGINT", "5", "tokens of a reply"), ("label", "VARCHAR", "x", "a word")]
    assert run_files(database, [file], {})["my_rule"].num_rows == 3
    assert run_files(database, [file], {"max_tokens": 10})["my_rule"].num_rows == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("default 5", "default 6", "header gives max_tokens the default 6, the SQL 5"),
        ("--             label: a word, default x\n", "", "label is missing in the header"),
        ("label: a word", "lable: a word", "missing in"),
        ("max_tokens: tokens of a reply, default 5", "max_tokens is 5", "does not read"),
        ("where completion_tokens > params.max_tokens", "where completion_tokens > getvariable('x')", "getvariable 3"),
        ("::varchar as label", "::varchar as other", "one name in both places"),
        ("'x')::varchar", "lower('X'))::varchar", "literal default"),
    ],
)
def test_a_parameter_that_is_not_declared_properly_is_an_error(old: str, new: str, message: str) -> None:
    assert old in PARAMS
    with pytest.raises(SqlError, match=message):
        rule(PARAMS.replace(old, new))


def test_misspelt_and_mistyped_recipe_parameters_are_errors() -> None:
    with pytest.raises(UsageError, match="did you mean 'max_tokens'"):
        check_parameters([rule(PARAMS)], {"max_token": 3})
    for value in ("many", True, 2.5):
        with pytest.raises(UsageError, match="max_tokens is bigint"):
            check_parameters([rule(PARAMS)], {"max_tokens": value})
    assert check_parameters([rule(PARAMS)], {"max_tokens": 3.0, "label": "y"}) == []


def test_a_parameter_of_an_unused_packaged_rule_is_a_warning() -> None:
    (warning,) = check_parameters([rule(PARAMS)], {"teacher_margin": 0.2})
    assert "no effect" in warning


def test_one_name_with_two_defaults_is_an_error() -> None:
    with pytest.raises(SqlError, match="One name means one thing"):
        check_parameters([rule(PARAMS), rule(PARAMS.replace("default 5", "default 6").replace(", 5)", ", 6)"))], {})


def test_files_are_found_by_name_beside_the_recipe_and_never_outside(tmp_path: Path) -> None:
    own = tmp_path / "sql" / "rules" / "tail_loop.sql"
    own.parent.mkdir(parents=True)
    own.write_text(EMPTY_RULE + ";")
    (tmp_path / "mine.sql").write_text(EMPTY_RULE + ";")
    assert find_sql("rules", "tail_loop", tmp_path) == own
    assert find_sql("rules", "mine.sql", tmp_path) == (tmp_path / "mine.sql").resolve()
    for name, message in (
        ("tail_lop", "did you mean 'tail_loop'"),
        ("absent.sql", "no file"),
        ("../../etc/passwd.sql", "outside"),
        ("absent.py", "no file"),
    ):
        with pytest.raises(UsageError, match=message):
            find_sql("rules", name, tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        find_sql("rules", "mine.sql")


def test_query_explores_and_sees_its_parameters(database: Path) -> None:
    assert query(database, "select count(*) as n from stg_responses").to_pylist() == [{"n": 3}]
    assert query(database, "from stg_responses limit 1;").num_rows == 1
    assert query(database, "select getvariable('x') as x", {"x": "it's"}).to_pylist() == [{"x": "it's"}]
    assert query(database, "describe stg_scores").num_rows == 11
    with pytest.raises(SqlError, match="not a SELECT"):
        query(database, "drop table stg_responses")
    with pytest.raises(TableError, match="nothing was generated"):
        query(database.with_name("absent.duckdb"), "select 1")


def test_a_comment_in_the_last_line_and_a_missing_semicolon_do_no_harm(database: Path) -> None:
    assert query(database, "select 1 as n -- the end").to_pylist() == [{"n": 1}]


def test_the_child_sees_no_secrets(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(SqlError, match="getenv"):
        query(database, "select getenv('HF_TOKEN')")


def test_parse_select_lets_a_query_sample(database: Path) -> None:
    parse_select("select * from stg_responses using sample 1", "query", explore=True)


RANKS = "select response_id, {} as rank from survivors join stg_responses using (response_id, prompt_id, temperature)"


@pytest.mark.parametrize(
    ("window", "refused"),
    [
        ("row_number() over (partition by prompt_id, temperature order by completion_tokens)", True),
        ("ntile(4) over (order by completion_tokens)", True),
        ("row_number() over (order by completion_tokens, response_id)", False),
        ("row_number() over (order by md5(response_id || ':0'))", False),
        ("row_number() over (partition by response_id order by sample_index)", False),
        ("rank() over (order by completion_tokens)", False),
    ],
)
def test_rows_are_numbered_in_a_total_order_only(window: str, refused: bool) -> None:
    sql = RANKS.format(window)
    parse_select(sql, "query", explore=True)
    if not refused:
        parse_select(sql, "Selector mine")
        return
    with pytest.raises(SqlError, match=r"(?s)Selector mine uses .*order that may tie.*response_id.*LINE 1: .*\n +\^"):
        parse_select(sql, "Selector mine")


def test_a_query_keeps_its_order_and_names_every_column(database: Path) -> None:
    rows = query(database, "select range as n, -range as m, 1 as n from range(50000) order by m")
    assert rows.column_names == ["n", "m", "n_1"]
    assert rows["m"].to_pylist() == sorted(rows["m"].to_pylist())


@pytest.mark.parametrize(
    ("sql", "shown", "caret"),
    [
        ("-- my_rule\nselect response_id,\n  completion_token as observed,\n1 as threshold from stg_responses",
         "LINE 3:   completion_token as observed,", "completion_token"),
        ("select response_id, 1 as observed, 1 as threshold\nfrom stg_response", "LINE 2: from stg_response",
         "stg_response"),
        ("\n" * 8 + "select response_id, role::integer as observed,\n1 as threshold from stg_responses",
         "LINE 9: select response_id, role::integer as observed,", "role::integer"),
    ],
)  # fmt: skip
def test_an_error_points_at_its_place_in_the_file(database: Path, sql: str, shown: str, caret: str) -> None:
    with pytest.raises(SqlError) as caught:
        run_files(database, [rule(sql)], {})
    lines = str(caught.value).splitlines()
    assert shown in lines
    place = lines[lines.index(shown) + 1].index("^")
    assert shown.index(caret) <= place < shown.index(caret) + len(caret)


def test_a_syntax_error_points_at_its_place_in_the_file_under_its_header() -> None:
    with pytest.raises(SqlError, match=r"(?s)Rule my_rule.*cannot be parsed.*LINE 11: select response_id") as caught:
        rule(PARAMS.replace("as observed,", "as observed,,"))
    shown, caret = str(caught.value).splitlines()[-2:]
    assert caret.index("^") == shown.index(",,") + 1


def test_an_error_in_no_place_of_the_file_shows_none(database: Path) -> None:
    with pytest.raises(SqlError, match="Could not convert string 'many'") as caught:
        run_files(database, [rule(values("('a', 'many', 1)"))], {})
    assert "create or replace" not in str(caught.value) and "LINE" not in str(caught.value)


def test_every_step_is_told_once_in_order_without_the_path_of_its_file(database: Path) -> None:
    said: list[tuple[str, int, int | None]] = []
    names = [f"rule r{place}" for place in range(40)]
    steps = [Step(f"{name} (/a folder/{name}.sql)", "select 1 as x", f"t{place}") for place, name in enumerate(names)]
    run_steps(database, steps, {}, limits=SMALL, progress=lambda *now: said.append(now))
    assert said == [(name, place, 40) for place, name in enumerate(names)]


def test_what_fails_was_the_last_step_that_was_told(database: Path) -> None:
    said: list[str] = []
    steps = [Step("one", "select 1 as x", "a"), Step("two", "select y", "b"), Step("three", "select 1 as x", "c")]
    with pytest.raises(SqlError, match="two fails"):
        run_steps(database, steps, {}, limits=SMALL, progress=lambda what, *_: said.append(what))
    assert said == ["one", "two"]
