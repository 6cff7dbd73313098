"""What quotas leave of a selection: a case worked by hand, on a plain DuckDB connection; the file runs unchanged."""

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import yaml

from builder.rules import LABELS, catalogue, load_sql
from builder.staging import build_staging
from builder.store import Run

FILE = catalogue("mix")["quotas"]
CASE = yaml.safe_load((Path(__file__).parent / "cases" / "mix" / "quotas.yaml").read_text(encoding="utf-8"))
TABLES = ("stg_prompts", "stg_responses", "stg_selection")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(tmp_path_factory.mktemp("run"))
    build_staging(run, {})
    return run.database


def picked(empty: Path, tables: dict[str, list[dict[str, Any]]], params: dict[str, Any]) -> list[dict[str, Any]]:
    """What the file says of these rows, in tables of the types that staging gives them."""
    with duckdb.connect() as connection:
        connection.execute("set threads = 1")
        connection.execute(f"attach '{empty}' as run (read_only)")
        for name in TABLES:
            connection.execute(f"create table {name} as from run.{name}")
            connection.register("rows", pa.Table.from_pylist(tables[name]))
            connection.execute(f"insert into {name} by name from rows")
        for name, value in params.items():
            connection.execute(f"set variable {name} = ?", [value])
        return connection.sql(FILE.read_text(encoding="utf-8")).to_arrow_table().to_pylist()


@pytest.mark.parametrize("case", [CASE, *CASE["with_params"]], ids=lambda case: str(case.get("params", "defaults")))
def test_quotas_pick_exactly_the_rows_of_their_case(case: dict[str, Any], empty: Path) -> None:
    assert picked(empty, CASE["given"], case.get("params", {})) == case["expect"]


def test_the_case_file_has_a_null_a_clean_row_and_tries_every_parameter() -> None:
    tried = {name for case in CASE["with_params"] for name in case["params"]}
    assert tried == {parameter.name for parameter in load_sql("mix", FILE).parameters}
    assert None in [row["domain"] for row in CASE["given"]["stg_prompts"]]


def test_the_header_is_complete_and_names_its_file() -> None:
    file = load_sql("mix", FILE)
    assert file.text.startswith("-- quotas\n") and file.text.endswith(";\n")
    assert list(file.header) == list(LABELS)
    assert file.header["Try it"] == ["duckdb runs/demo/run.duckdb -readonly -f sql/mix/quotas.sql"]
    assert max(map(len, file.text.split("\n"))) <= 120


@pytest.mark.parametrize("quotas", ['{"mix": 5}', '{"mix": {"code": "many"}}', "many"])
def test_a_variable_that_holds_no_quotas_is_an_error(quotas: str, empty: Path) -> None:
    with pytest.raises(duckdb.ConversionException):
        picked(empty, CASE["given"], {"quotas": quotas})
