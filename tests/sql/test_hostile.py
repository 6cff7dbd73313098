"""SQL that must be refused while it is only text, with a message that names the file, the line and the reason."""

from pathlib import Path

import pytest

from builder.errors import SqlError
from builder.rules import parse_file
from builder.sqlcheck import check_expression, check_order
from builder.sqlfile import SqlFile


def rule(text: str) -> SqlFile:
    return parse_file("rules", Path("my_rule.sql"), text)


HOSTILE = [
    "copy stg_responses to '/tmp/stolen.csv';",
    "copy (select 1) to '/tmp/stolen.csv';",
    "attach '/tmp/other.db';",
    "install httpfs;",
    "load httpfs;",
    "pragma database_list;",
    "set threads = 1;",
    "set variable x = 1;",
    "reset lock_configuration;",
    "create table x as select 1;",
    "drop table stg_responses;",
    "delete from stg_responses;",
    "update stg_responses set role = 'x';",
    "call pragma_version();",
    "export database '/tmp/x';",
    "checkpoint;",
    "vacuum;",
    "explain analyze select 1;",
    "select 1; select 2;",
    "select 1; drop table stg_responses;",
    "select 1 /* ; */; attach '/tmp/x.db' as y; -- select",
    "",
    "-- nothing but a comment",
    "select * from read_text('/etc/passwd');",
    "select * from read_parquet('*.parquet');",
    "select * from read_csv('/etc/passwd');",
    "select * from 'tables/responses/part-000-00000.parquet';",
    'select * from "/etc/passwd";',
    "select * from glob('/*');",
    "select * from query('select 1');",
    "select * from query_table('stg_responses');",
    "select * from duckdb_settings();",
    "select * from duckdb_secrets();",
    "select * from json_execute_serialized_sql('{}');",
    "select * from (describe stg_responses);",
    "with x as (insert into survivors values ('z', 'p', 1) returning *) select * from x;",
    "with x as (delete from survivors returning *) select * from x;",
    "select random();",
    "select now();",
    "select current_timestamp;",
    "select uuid();",
    "select system.main.random();",
    "select current_localtimestamp();",
    "select age(timestamp '2020-01-01');",
    "select response_id from survivors order by hash(response_id);",
    "select list(response_id) from survivors;",
    "select nextval('s');",
    "select current_setting('threads');",
    "select * from stg_responses using sample 10;",
    "select * from stg_responses tablesample 10%;",
    "select * from stg_responses limit 3;",
    "select distinct on (prompt_id) * from stg_responses;",
    "select any_value(response_id) from stg_responses;",
    "select response_id, row_number() over () as rank from survivors;",
    "select response_id from survivors order by temperature limit 3;",
    "select response_id from survivors order by 1 limit 3;",
    "select response_id from survivors order by temperature offset 3;",
    "select response_id from survivors order by temperature fetch first 3 rows only;",
    "select distinct on (prompt_id) * from survivors order by temperature;",
    "select * from (select response_id from survivors order by temperature limit 1);",
    "select response_id from survivors order by response_id limit 10 offset (random() * 10)::int;",
    "select gen_random_uuid();",
    "select uuidv7();",
    "select today();",
    "select getenv('HOME');",
    "select version();",
    "select setseed(0.5);",
    "select write_log('x');",
    "select approx_quantile(completion_tokens, 0.5) from stg_responses;",
    "select * from stg_responses using sample reservoir(10 rows) repeatable (1);",
    "select * from sniff_csv('/etc/passwd');",
    "select * from read_blob('/etc/passwd');",
    "select * from read_json_auto('/etc/passwd');",
    "select * from parquet_scan('x');",
    "select * from 'https://example.org/x.csv';",
    "select * from information_schema.tables;",
    "select * from pg_catalog.pg_class;",
    "select * from sqlite_master;",
    "select * from other.main.stg_responses;",
    "select * from duckdb_logs();",
    "select * from pragma_table_info('stg_responses');",
    "summarize stg_responses;",
    "use other;",
    "begin;",
    "detach run;",
    "force install httpfs;",
    "alter table stg_responses add column x int;",
    "truncate stg_responses;",
    "create secret (type s3);",
    "create macro f() as 1;",
    "prepare x as select 1;",
    "execute x;",
    "import database '/tmp/x';",
    "merge into survivors using stg_scores using (response_id) when matched then delete;",
    "pivot stg_responses on role using count(*);",
    "select 1 -- */ ;\n; copy survivors to '/tmp/x';",
    "/* select */ copy survivors to '/tmp/x';",
    "select 1 /* -- */; install httpfs; /*",
    "select ';' ; load httpfs",
    "select " + "(select " * 2000 + "1" + ")" * 2000,
    "select * from " + "(select * from " * 3000 + "x" + ")" * 3000,
    "select '" + "x" * 100_001 + "'",
]


@pytest.mark.parametrize("sql", HOSTILE, ids=lambda sql: sql[:40])
def test_hostile_sql_is_refused_before_it_runs(sql: str) -> None:
    with pytest.raises(SqlError, match=r"^Rule my_rule \(my_rule.sql\)"):
        rule(sql)


@pytest.mark.parametrize(
    "text",
    [
        "1 = 1) or (1 = 1",
        "1 = 1; drop table kept",
        "1 = 1;",
        "true from stg_responses",
        "true where 1 = 1",
        "true limit 1",
        "true order by 1",
        "true, false",
        "true as x",
        "*",
        "",
        "distinct true",
        "1 = 1 /*",
        "1 = 1 union select 2",
        "exists (select * from read_text('/etc/passwd'))",
        "response_id in (from glob('/*'))",
        "random() < 0.5",
        "now() > received_at",
        "temperature = getvariable('t')",
        "copy x to 'y'",
        "1 = 1 -- \n; install httpfs",
        "1 = 1 */ ; load httpfs /*",
        "true) -- ",
        "(select getenv('HOME')) = 'x'",
        "response_id in (select response_id from survivors order by temperature limit 5)",
        "response_id in (select response_id from 'x.parquet')",
        "exists (with x as (delete from survivors returning *) select * from x)",
        "exists (pragma database_list)",
        "exists (set threads = 1)",
        "uuid() > 'x'",
    ],
)
def test_a_stage_where_is_one_harmless_expression(text: str) -> None:
    with pytest.raises(SqlError, match=r"^stages\.a\.where"):
        check_expression(text, "stages.a.where")


@pytest.mark.parametrize(
    "text",
    ["temperature = 0.6", "domain = 'a;b' -- note", "response_id in (select response_id from stg_scores)", "true"],
)
def test_honest_expressions_pass(text: str) -> None:
    check_expression(text, "stages.a.where")


@pytest.mark.parametrize(
    "text",
    ["", "a limit 1", "a; b", "random()", "all", "a) from x --", "a from x", "(select max(x) from glob('/*') t(x))"],
)
def test_a_stage_order_is_a_list_of_columns(text: str) -> None:
    with pytest.raises(SqlError, match=r"^stages\.a\.order_by"):
        check_order(text, "stages.a.order_by")


def test_honest_orders_pass() -> None:
    check_order("student_tokens, mean_delta desc nulls last", "stages.a.order_by")


def test_a_syntax_error_shows_line_and_caret() -> None:
    with pytest.raises(SqlError, match=r"(?s)LINE 2:  from, x;\n {13}\^"):
        rule("select 1\n from, x;")


def test_a_refusal_shows_line_and_caret() -> None:
    with pytest.raises(SqlError, match=r"(?s)read_text.*LINE 2: from read_text\('x'\);\n {13}\^"):
        rule("select 1\nfrom read_text('x');")


@pytest.mark.parametrize(
    "sql",
    [
        "select response_id from survivors order by temperature, response_id limit 3;",
        "select response_id from survivors order by all limit 3;",
        "select distinct on (prompt_id) * from survivors order by temperature, response_id;",
        "select response_id from survivors order by md5(response_id || ':1') limit 3;",
        "select response_id from main.survivors;",
    ],
)
def test_a_limit_with_a_total_order_passes(sql: str) -> None:
    rule(sql)


def test_an_order_that_may_tie_is_refused_with_the_reason() -> None:
    with pytest.raises(SqlError, match=r"rows that tie come in any order; end the order in a unique key"):
        rule("select response_id from survivors order by temperature limit 3;")


@pytest.mark.parametrize(("text", "caret"), [("temperature = = 0.6", 14), ("random() < 0.5", 0)])
def test_what_is_wrong_in_a_stage_is_shown_with_a_caret_under_it(text: str, caret: int) -> None:
    with pytest.raises(SqlError) as caught:
        check_expression(text, "stages.a.where")
    shown, mark = str(caught.value).splitlines()[-2:]
    assert shown == f"LINE: {text}"
    assert mark.index("^") == len("LINE: ") + caret
