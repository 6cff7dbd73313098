"""What `builder sql` prints fits a terminal of 80 columns; --json and --csv hold every row and every value."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from release_toys import Selected, recipe

from builder.config import Selection
from builder.console import Reporter
from builder.errors import SqlError, UsageError
from builder.rules import catalogue
from builder.sqlshell import show_query, show_rules

TYPES = (
    "select [1, null, 3] as list, {'a': 1.5, 'b': [true]} as struct, date '2026-11-22' as day, "
    "timestamp '2026-11-22 01:02:03' as time, 'nan'::double as nothing, 1.5::decimal(6, 2) as money, "
    "sum(i) as total, null as empty, '' as blank, 'say \"a, b\"' || chr(10) || 'c' as text from range(4) as r(i)"
)


@pytest.fixture(autouse=True)
def _eighty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize(("columns", "stacked"), [(3, False), (12, True)])
def test_a_row_of_many_columns_is_shown_one_name_a_line(
    made: Selected, capsys: pytest.CaptureFixture[str], columns: int, stacked: bool
) -> None:
    names = [f"quite_a_name_{place}" for place in range(columns)]
    query = f"select {', '.join(f'{place} as {name}' for place, name in enumerate(names))}"
    show_query(Reporter(), made[0].database, {}, query, None)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split() == [names[1], "1"] for line in lines) == stacked
    assert any(line.split() == names for line in lines) != stacked
    assert lines[-1].strip() == "1 row"


def test_many_wide_rows_hold_80_columns_and_say_how_to_see_all(
    made: Selected, capsys: pytest.CaptureFixture[str]
) -> None:
    query = "select c.* from stg_candidates as c, range(50) order by response_id"
    show_query(Reporter(), made[0].database, {}, query, None)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    said = " ".join(lines[lines.index(next(line for line in lines if line.startswith("200 of"))) :])
    assert said.startswith("200 of 600 rows; long texts are cut; ")
    assert "columns left out" in said
    assert said.endswith("--json or --csv prints all")


def test_json_holds_every_row_and_any_type(made: Selected, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(as_json=True)
    show_query(reporter, made[0].database, {}, TYPES, None)
    reporter.finish()
    (row,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["rows"]
    assert row == {
        "list": [1, None, 3], "struct": {"a": 1.5, "b": [True]}, "day": "2026-11-22", "time": "2026-11-22T01:02:03",
        "nothing": "NaN", "money": 1.5, "total": 6, "empty": None, "blank": "", "text": 'say "a, b"\nc',
    }  # fmt: skip


def test_csv_reads_back_with_nulls_apart_from_empty_texts(
    made: Selected, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    show_query(Reporter(), made[0].database, {}, TYPES, None, as_csv=True)
    out = capsysbinary.readouterr().out.decode()
    names, row = csv.reader(io.StringIO(out, newline=""))
    found = dict(zip(names, row, strict=True))
    assert json.loads(found["list"]) == [1, None, 3]
    assert json.loads(found["struct"]) == {"a": 1.5, "b": [True]}
    assert found["text"] == 'say "a, b"\nc'
    assert (found["nothing"], found["money"], found["total"]) == ("NaN", "1.5", "6")
    assert out.startswith("list,struct,day,")
    assert ',6,,"","say ""a, b""\nc"\r\n' in out


def test_csv_holds_more_rows_than_a_table_shows(made: Selected, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    show_query(Reporter(), made[0].database, {}, "select i from range(12345) as r(i) order by i", None, as_csv=True)
    assert capsysbinary.readouterr().out.split() == [b"i", *(str(i).encode() for i in range(12345))]


@pytest.mark.parametrize(
    ("query", "as_json", "words"),
    [(None, False, "-c or -f"), ("select 1", True, "leave out --json")],
)
def test_csv_without_a_query_or_with_json_is_refused(
    made: Selected, query: str | None, as_json: bool, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        show_query(Reporter(as_json=as_json), made[0].database, {}, query, None, as_csv=True)


def test_a_syntax_error_points_at_its_place(made: Selected) -> None:
    with pytest.raises(SqlError, match=r"LINE 2: fro stg_scores\n +\^"):
        show_query(Reporter(), made[0].database, {}, "select 1\nfro stg_scores", None)


@pytest.mark.parametrize(
    ("last", "shown", "caret"),
    [
        ("where mean_dela > 0", "LINE 4: where mean_dela > 0", "mean_dela"),
        ("where (mean_delta > 0", "LINE 4: where (mean_delta > 0", "0"),
        ("where status::integer = 1", "LINE 4: where status::integer = 1", "::integer"),
    ],
)
def test_an_error_names_the_file_and_points_at_its_place(
    made: Selected, tmp_path: Path, last: str, shown: str, caret: str
) -> None:
    file = tmp_path / "mine.sql"
    file.write_text(f"-- mine: what I look at\n\nselect response_id from stg_scores\n{last}", encoding="utf-8")
    with pytest.raises(SqlError, match=r"^The query in .*mine\.sql (fails|cannot be parsed)") as caught:
        show_query(Reporter(), made[0].database, {}, None, file)
    lines = str(caught.value).splitlines()
    assert lines[lines.index(shown) + 1].index("^") == shown.index(caret)


def test_a_long_list_of_candidate_functions_is_cut(made: Selected) -> None:
    with pytest.raises(SqlError, match="Candidate functions") as caught:
        show_query(Reporter(), made[0].database, {}, "select status + 1 from stg_scores", None)
    lines = str(caught.value).splitlines()
    assert sum(line.startswith("\t") for line in lines) == 7
    assert lines[-1].index("^") == lines[-2].index("+")


def test_a_file_that_is_no_text_is_a_usage_error(made: Selected, tmp_path: Path) -> None:
    (tmp_path / "q.sql").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"q\.sql cannot be read"):
        show_query(Reporter(), made[0].database, {}, None, tmp_path / "q.sql")


def test_rules_are_listed_with_what_the_recipe_uses_and_sets(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = catalogue("rules")["ngram_repeated"].read_text("utf-8")
    (tmp_path / "mine.sql").write_text(own.replace("-- ngram_repeated", "-- mine"), encoding="utf-8")
    used = Selection(rules=["mine.sql", "answer_wrong"], params={"max_ngram_repeats": 4})
    show_rules(Reporter(), recipe(selection=used), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    marked = [line[2:] for line in lines if line.startswith("* ")]
    assert marked == ["answer_wrong", "mine", "teacher_sentence_count"]
    assert any(re.search(r"max_ngram_repeats = \d+, here 4:", line) for line in lines)
    assert {line.strip() for line in lines if line.startswith("  ") and line[2:3].strip()} >= {"tail_loop", "random"}
