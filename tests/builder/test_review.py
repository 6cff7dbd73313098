"""Human review: rows out to a file that a spreadsheet opens, decisions back in, and rules that heed them."""

import csv
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from endpoint import endpoint
from hypothesis import given
from hypothesis import strategies as st
from judge_toys import shorten
from rewrite_toys import RULES, SUMS, faithful, muddle, recipe_of, rewriting, rows, run_of, steps
from typer.testing import CliRunner

from builder import review
from builder.card import render_card
from builder.cli import app
from builder.config import Recipe, Stage
from builder.errors import TableError, UsageError
from builder.resources import resource
from builder.review import Imported, export_rows, import_decisions
from builder.review_file import COLUMNS, guarded, unguarded
from builder.store import Run, columns_table

KINDS = ("csv", "jsonl")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


def plain(*more: str, keep: int = 1) -> Recipe:
    return recipe_of(None, rules=[*RULES, *more], keep=keep).model_copy(update={"rewrite": None})


def read(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, said: list[dict[str, str]], delimiter: str = ",") -> Path:
    """The file as a person saves it."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in said), encoding="utf-8")
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(said[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(said)
    return path


def decisions(run: Run) -> dict[str, str]:
    return dict(run.read("reviews").select("response_id", "decision").iter_rows())


def selected(run: Run) -> set[str]:
    return set(run.read("selection")["grain_id"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_people_drop_leaves_and_the_next_best_reply_comes_up_for_review(tmp_path: Path, kind: str) -> None:
    run, recipe = run_of(tmp_path), plain("review_dropped", "review_missing")
    found = export_rows(run, recipe, tmp_path / f"one.{kind}")
    assert (found.rows, found.selected, found.decided) == (4, 4, 0)
    said = read(tmp_path / f"one.{kind}")
    assert all(row["decision"] == row["note"] == row["reviewer"] == row["original_id"] == "" for row in said)
    assert [row["verdict"] for row in said] == ["correct"] * 4
    assert {row["gold"] for row in said} == {row["gold"] for row in SUMS}
    for row, decision in zip(said, ("keep", " KEEP ", "drop", ""), strict=True):
        row |= {"decision": decision, "reviewer": "Ada", "note": "why,\n=so"}
    assert import_decisions(run, write(tmp_path / f"back.{kind}", said)) == Imported(2, 1, 1, 0, 0, 3)
    assert set(run.read("reviews")["note"]) == {"why,\n=so"}
    steps(run, recipe).select()
    assert selected(run) == {said[0]["response_id"], said[1]["response_id"]}
    again = export_rows(run, recipe, tmp_path / f"two.{kind}")
    assert (again.rows, again.selected, again.decided) == (2, 4, 2)
    new = {row["response_id"] for row in read(tmp_path / f"two.{kind}")}
    assert said[3]["response_id"] in new
    assert said[2]["response_id"] not in new  # dropped: the other right reply to its prompt is there in its place


def test_decided_rows_come_with_their_decisions_when_asked(tmp_path: Path) -> None:
    run, recipe = run_of(tmp_path), plain()
    export_rows(run, recipe, tmp_path / "one.csv")
    said = [row | {"decision": "keep", "note": "+1", "reviewer": "Ada"} for row in read(tmp_path / "one.csv")[:3]]
    import_decisions(run, write(tmp_path / "back.csv", said))
    assert export_rows(run, recipe, tmp_path / "all.csv", with_decided=True).rows == 4
    back = {row["response_id"]: (row["decision"], row["note"]) for row in read(tmp_path / "all.csv")}
    assert sorted(back.values()) == [("", ""), *[("keep", "'+1")] * 3]
    assert import_decisions(run, tmp_path / "all.csv") == Imported(3, 0, 1, 0, 3, 3)
    assert set(run.read("reviews")["note"]) == {"+1"}


def test_a_later_decision_takes_the_place_of_an_earlier_one_and_is_counted(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    one = {"response_id": "right-1", "decision": "keep"}
    import_decisions(run, write(tmp_path / "one.csv", [one, {"response_id": "right-2", "decision": "drop"}]))
    found = import_decisions(run, write(tmp_path / "two.csv", [one | {"decision": "drop"}]))
    assert found == Imported(0, 1, 0, 1, 0, 2)
    assert decisions(run) == {"right-1": "drop", "right-2": "drop"}


def test_a_sample_is_drawn_by_seed_and_is_the_same_again(tmp_path: Path) -> None:
    run, recipe = run_of(tmp_path), plain(keep=2)
    recipe = recipe.model_copy(update={"stages": {"train": Stage(order_by="response_id")}})
    export_rows(run, recipe, tmp_path / "all.csv")
    drawn = []
    for place in (1, 2):
        assert export_rows(run, recipe, tmp_path / f"{place}.csv", sample=3).rows == 3
        drawn.append([row["response_id"] for row in read(tmp_path / f"{place}.csv")])
    everything = [row["response_id"] for row in read(tmp_path / "all.csv")]
    assert drawn[0] == drawn[1] == [one for one in everything if one in drawn[0]] != everything[:3]


def test_rewrites_are_reviewed_beside_their_originals_and_reviews_never_stop_rewriting(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with endpoint(script=rewriting(faithful)) as server:
        recipe = recipe_of(server, rules=[*RULES, "review_dropped", "review_missing"])
        assert steps(run, recipe).rewrite().sent == 4
        assert steps(run, recipe).select().kept == 0
        assert export_rows(run, recipe, tmp_path / "rows.csv").rows == 4
        said = read(tmp_path / "rows.csv")
        import_decisions(run, write(tmp_path / "back.csv", [row | {"decision": "keep"} for row in said]))
        assert steps(run, recipe).rewrite().sent == 0
        assert steps(run, recipe).select().kept == 4
    assert {row["response_id"]: row["original_id"] for row in said} == {
        row["response_id"]: original for original, row in rows(run).items()
    }
    assert all(row["reasoning"] == f"First: {row['original_reasoning'].replace('那么', 'then')}" for row in said)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_file_that_a_spreadsheet_saved_in_its_own_way_is_read(tmp_path: Path, delimiter: str) -> None:
    run = run_of(tmp_path)
    said = [{"note": "a,b;c\td", "Decision": "Drop", "response_id": "right-1"}]
    path = write(tmp_path / "saved.csv", said, delimiter)
    path.write_text("\ufeff" + path.read_text(encoding="utf-8") + f"{delimiter}{delimiter}\r\n", encoding="utf-8")
    assert import_decisions(run, path).dropped == 1
    assert run.read("reviews")["note"].to_list() == ["a,b;c\td"]


def test_a_long_thought_with_line_breaks_goes_out_and_back(tmp_path: Path) -> None:
    thought = "=SUM(A1)\r\n" + 'He said "7", so\n' * 20_000
    run = run_of(tmp_path)
    run.append("responses", columns_table("responses", [muddle("long", SUMS[0], "It is 17.") | {"reasoning": thought}]))
    export_rows(
        run,
        plain(keep=9).model_copy(update={"selection": plain(keep=9).selection.model_copy(update={"rules": []})}),
        tmp_path / "rows.csv",
    )
    (row,) = [row for row in read(tmp_path / "rows.csv") if row["response_id"] == "long"]
    assert row["reasoning"] == f"'{thought}"
    assert import_decisions(run, write(tmp_path / "back.csv", [row | {"decision": "keep"}])).kept == 1


BAD = {
    "id,answer\na,b\n": "no column response_id and no column decision",
    "response_id,decision\nright-1,maybe\nright-2,keep\n": r"row 2: decision 'maybe'.*keep or drop",
    "response_id,decision\nright-1,keep\nnobody,drop\n": r"row 3: 'nobody'.*no such reply",
    "response_id,decision\nright-1,keep\nright-2,keep\nright-1,drop\n": "row 2 says keep and row 4 drop of right-1",
    "response_id,decision\nright-1,\n": "holds no decision",
    "response_id,decision\n,keep\n": "row 2: no response_id",
    "response_id,decision\n": "holds no row",
    "": "no column response_id",
    'response_id,decision\n"right-1,keep\n': "line 2",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_file_is_refused_whole_and_names_its_rows(tmp_path: Path, text: str) -> None:
    run = run_of(tmp_path)
    import_decisions(run, write(tmp_path / "good.csv", [{"response_id": "right-3", "decision": "keep"}]))
    (tmp_path / "bad.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=BAD[text]):
        import_decisions(run, tmp_path / "bad.csv")
    assert decisions(run) == {"right-3": "keep"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no json", "line 1 is not JSON"),
        ("[1]", "line 1 has no column response_id"),
        ('{"response_id": "right-1", "decision": true}', "line 1: decision must be text"),
        ('{"response_id": "right-1", "decision": null}', "holds no decision"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "bad.jsonl").write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        import_decisions(run_of(tmp_path), tmp_path / "bad.jsonl")


def test_other_bytes_endings_and_files_in_the_way_are_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    (tmp_path / "old.csv").write_bytes("response_id,decision\nright-1,keep,é\n".encode("cp1252"))
    with pytest.raises(UsageError, match="CSV UTF-8"):
        import_decisions(run, tmp_path / "old.csv")
    with pytest.raises(UsageError, match="cannot be read"):
        import_decisions(run, tmp_path / "none.csv")
    with pytest.raises(UsageError, match=r"neither \.csv"):
        export_rows(run, plain(), tmp_path / "rows.xlsx")
    with pytest.raises(UsageError, match="people may have decided"):
        export_rows(run, plain(), tmp_path / "old.csv")
    with pytest.raises(TableError, match="nothing to review"):
        export_rows(run, plain("too_short"), tmp_path / "rows.csv")
    assert not (tmp_path / "rows.csv").exists()


def test_a_disk_that_refuses_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    run = run_of(tmp_path)
    monkeypatch.setattr(review, "write_rows", full)
    with pytest.raises(UsageError, match="No space left"):
        export_rows(run, plain(), tmp_path / "out" / "rows.csv")
    assert list((tmp_path / "out").iterdir()) == []


@given(st.text(alphabet="'=+-@\t\r\n0123e4 a", max_size=8), st.booleans())
def test_a_guarded_cell_is_no_formula_and_comes_back_as_it_was(cell: str, is_id: bool) -> None:
    out = guarded(cell, is_id=is_id)
    assert not out.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert unguarded(out, is_id=is_id) == cell


@pytest.mark.parametrize("identity", ["12345678901234567890123456789012", "123e45678", "=cmd|' /C calc'!A0", "0042"])
def test_ids_that_a_spreadsheet_would_change_are_text_there_and_come_back(identity: str) -> None:
    assert guarded(identity, is_id=True) == f"'{identity}"
    assert unguarded(f"'{identity}", is_id=True) == identity


def test_the_manifest_and_the_card_say_how_many_were_reviewed(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    recipe = plain("review_dropped")
    recipe = recipe.model_copy(update={"release": recipe.release.model_copy(update={"license": "mit"})})
    said = [("right-1", "keep", "Ada"), ("also-1", "keep", "Ada"), ("right-2", "drop", "Bo"), ("wrong-1", "drop", "")]
    given = [{"response_id": one, "decision": decision, "reviewer": who} for one, decision, who in said]
    import_decisions(run, write(tmp_path / "back.jsonl", given))
    release = steps(run, recipe).release(steps(run, recipe).select())
    manifest = json.loads((release.path / ".builder" / "manifest.json").read_text(encoding="utf-8"))
    jsonschema.validate(manifest, json.loads(resource("data_cards", "manifest.schema.json").read_text("utf-8")))
    expected = {"released": 4, "released_reviewed": 1, "kept": 2, "dropped": 2, "reviewers": 2}
    assert manifest["reviews"] == expected
    assert "People reviewed 1 of the 4 released replies" in render_card(manifest)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["review", *arguments])


def test_the_command_says_what_it_wrote_and_read(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(
        "name: toy\nteacher: {model: m}\nselection: {rules: [answer_wrong], selector: random}\n", encoding="utf-8"
    )
    at = (str(recipe), "--run", str(run.root))
    out = call(*at, "--export", str(tmp_path / "rows.csv"), "--sample", "2")
    assert out.exit_code == 0, out.output
    assert "2 of 4 rows" in out.stdout
    assert set(read(tmp_path / "rows.csv")[0]) == set(COLUMNS)
    said = [row | {"decision": "drop"} for row in read(tmp_path / "rows.csv")]
    out = call(*at, "--import", str(write(tmp_path / "back.csv", said)))
    assert out.exit_code == 0, out.output
    assert "2 drop" in out.stdout
    assert "no rule review_dropped" in out.stderr
    for wrong in ((), ("--export", "a.csv", "--import", "b.csv"), ("--import", "b.csv", "--sample", "2")):
        assert call(*at, *wrong).exit_code == 2
