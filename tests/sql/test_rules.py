"""Every SQL rule against its case file, on a plain DuckDB connection: the file runs unchanged."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from builder.rules import LABELS, catalogue, load_sql
from builder.schema import MARGINS
from builder.staging import STAGED, build_staging
from builder.store import Run

CASES = Path(__file__).parent / "cases"
RULES = catalogue("rules")
FILES = [(kind, name) for kind in ("rules", "selectors", "reports", "staging") for name in catalogue(kind)]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run.duckdb of a run without a single row: every stg_ table in its type."""
    run = Run(tmp_path_factory.mktemp("run"))
    build_staging(run, {})
    return run.database


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_database, tmp_path / "run.duckdb"))


def fill(database: Path, given: dict[str, list[dict[str, Any]]]) -> None:
    with duckdb.connect(str(database)) as connection:
        for table, rows in given.items():
            for row in rows:
                marks = ", ".join("?" for _ in row)
                connection.execute(f"insert into {table} ({', '.join(row)}) values ({marks})", list(row.values()))


def run_plain(database: Path, text: str, params: dict[str, Any]) -> list[dict[str, Any]]:
    with duckdb.connect(str(database), read_only=True) as connection:
        for name, value in params.items():
            connection.execute(f"set variable {name} = ?", [value])
        return connection.sql(text).to_arrow_table().to_pylist()


def case_variants(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]]:
    case = yaml.safe_load((CASES / f"{name}.yaml").read_text(encoding="utf-8"))
    yield case["given"], {}, case["expect"]
    if "with_params" in case:
        yield case["given"], case["with_params"]["params"], case["with_params"]["expect"]


def test_every_rule_and_selector_has_a_case_file_and_every_case_file_one_of_them() -> None:
    assert sorted(path.stem for path in CASES.glob("*.yaml")) == sorted([*RULES, *catalogue("selectors")])


def test_every_staged_table_has_its_file() -> None:
    assert sorted(catalogue("staging")) == sorted(staged.name for staged in STAGED)


@pytest.mark.parametrize("name", RULES)
def test_case_file_has_a_null_a_clean_row_and_tries_every_parameter(name: str) -> None:
    case = yaml.safe_load((CASES / f"{name}.yaml").read_text(encoding="utf-8"))
    rows = [row for rows in case["given"].values() for row in rows]
    broken = {row["response_id"] for row in case["expect"]}
    assert any(value is None for row in rows for value in row.values())
    assert "clean" in {row.get("response_id") for row in rows} - broken
    assert broken
    tried = set(case.get("with_params", {}).get("params", {}))
    parameters = {parameter.name for parameter in load_sql("rules", RULES[name]).parameters}
    assert tried == parameters
    assert not parameters or "exact" in {row.get("response_id") for row in rows}


@pytest.mark.parametrize("name", RULES)
def test_rule_finds_exactly_the_violations_of_its_case(name: str, database: Path) -> None:
    text = RULES[name].read_text(encoding="utf-8")
    for index, (given, params, expect) in enumerate(case_variants(name)):
        if index == 0:
            fill(database, given)
        found = sorted(run_plain(database, text, params), key=lambda row: row["response_id"])
        assert found == sorted(expect, key=lambda row: row["response_id"])


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_header_is_complete_and_names_its_file(kind: str, name: str) -> None:
    file = load_sql(kind, catalogue(kind)[name])
    lines = file.text.split("\n")
    assert lines[0] == f"-- {name}"
    assert list(file.header) == list(LABELS)
    assert file.text.endswith(";\n")
    assert max(map(len, lines)) <= 120
    if kind != "staging":
        assert file.header["Try it"] == [f"duckdb runs/demo/run.duckdb -readonly -f sql/{kind}/{name}.sql"]


@pytest.mark.parametrize(("kind", "name"), FILES[: len(RULES)] + [f for f in FILES if f[0] == "selectors"])
def test_describe_shows_the_promised_columns_on_an_empty_run(kind: str, name: str, database: Path) -> None:
    text = catalogue(kind)[name].read_text(encoding="utf-8")
    with duckdb.connect(str(database), read_only=True) as connection:
        described = [(row[0], row[1]) for row in connection.execute(f"describe {text}").fetchall()]
        assert connection.execute(text).fetchall() == []
    if kind == "rules":
        assert described == [("response_id", "VARCHAR"), ("observed", "DOUBLE"), ("threshold", "DOUBLE")]
    else:
        assert described == [("response_id", "VARCHAR"), ("rank", "BIGINT")]


def test_one_parameter_name_means_one_thing_in_all_files() -> None:
    meanings: dict[str, tuple[str, str | None, str]] = {}
    for kind in ("rules", "selectors", "reports"):
        for path in catalogue(kind).values():
            for parameter in load_sql(kind, path).parameters:
                meaning = (parameter.type, parameter.default, parameter.unit)
                assert meanings.setdefault(parameter.name, meaning) == meaning


def test_docs_have_a_row_for_every_rule_with_its_defaults() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
    rows = {
        cells[1].strip(" `"): cells for line in page.split("\n") if (cells := line.split("|"))[1:2] and "`" in cells[1]
    }
    assert sorted(rows) == sorted(RULES)
    for name, path in RULES.items():
        defaults = [str(parameter.default) for parameter in load_sql("rules", path).parameters]
        said = re.findall(r"[\d.]+|false|true|none", rows[name][3].replace("4-grams", ""))
        assert said == (defaults or ["none"]), name


def test_margins_of_the_scores_are_those_that_the_selectors_accept() -> None:
    assert [round(margin * 20) for margin in MARGINS] == list(range(1, 11))


def test_each_reply_breaks_one_of_the_rules_about_verdicts_or_is_correct(database: Path) -> None:
    given = yaml.safe_load((CASES / "verdict_missing.yaml").read_text(encoding="utf-8"))["given"]
    fill(database, given)
    broken = [
        row["response_id"]
        for name in ("answer_wrong", "answer_unscorable", "verdict_missing")
        for row in run_plain(database, RULES[name].read_text("utf-8"), {})
    ]
    correct = [row["response_id"] for row in given["stg_verdicts"] if row["verdict"] == "correct"]
    assert sorted(broken + correct) == sorted(row["response_id"] for row in given["stg_responses"])
