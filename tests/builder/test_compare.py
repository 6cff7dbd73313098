"""`builder compare`: what two selections keep and drop, worked by hand on the toy run; neither is stored."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from release_toys import STUDENT, Selected, fill, recipe, score_of, verdict_of
from score_toys import prompt, reply

from builder.compare import Comparison, compare_recipes, other_recipe
from builder.config import Recipe, Selection, Stage, Student
from builder.console import Reporter
from builder.errors import SqlError, TableError, UsageError
from builder.models import student_id
from builder.schema import TABLES
from builder.selection import select
from builder.show_compared import show_compared
from builder.store import Run, columns_table

NO_ANSWERS = recipe(selection=Selection(rules=["response_truncated"], params={"teacher_margin": 0.2}))
"""The toy recipe without answer_wrong: the second reply at 1.0 is wrong and has more teacher sentences."""


def against(run: Run, other: Recipe, one: Recipe | None = None, **options: Any) -> Comparison:
    return compare_recipes(run, one or recipe(), Path(), (other, Path(), "other"), **options)


@pytest.fixture(scope="module")
def found(_selected: Selected) -> Comparison:
    """The toy recipe against itself without answer_wrong."""
    return against(_selected[0], NO_ANSWERS)


def files(run: Run) -> dict[Path, bytes]:
    return {path: path.read_bytes() for name in TABLES for path in run.parts(name)}


def test_rows_rules_and_stages_stand_side_by_side(found: Comparison) -> None:
    assert found.rows == {"both": 3, "only_a": 3, "only_b": 3}
    assert found.prompts == {"same": 0, "changed": 3, "only_a": 0, "only_b": 0}
    truncated, wrong = found.rules
    assert truncated == {
        "rule_name": "response_truncated", "breaks_a": 0, "breaks_alone_a": 0, "tokens_a": 0, "breaks_b": 0,
        "breaks_alone_b": 0, "tokens_b": 0,
    }  # fmt: skip
    assert wrong == {
        "rule_name": "answer_wrong", "breaks_a": 3, "breaks_alone_a": 3, "tokens_a": 63, "breaks_b": None,
        "breaks_alone_b": None, "tokens_b": None,
    }  # fmt: skip
    assert [tuple(stage.values()) for stage in found.stages] == [
        ("high-temperature", "sft", 3, 3, 0), ("low-temperature", "sft", 3, 3, 3)
    ]  # fmt: skip
    assert found.domains == ({"domain": "math", "rows_a": 6, "rows_b": 6},)


def test_rows_of_one_side_say_why_the_other_drops_them(found: Comparison, made: Selected) -> None:
    assert [tuple(row.values()) for row in found.reasons] == [
        ("a", "outranked", 3), ("b", "breaks answer_wrong", 3)
    ]  # fmt: skip
    strict = against(made[0], recipe({"low-temperature": Stage(where="temperature = 0.6")}))
    assert [tuple(row.values()) for row in strict.reasons] == [("a", "outranked, or in no stage", 3)]


def test_shifts_are_means_over_the_rows_of_each_side(found: Comparison) -> None:
    assert found.margin == 0.2
    a, b = found.shifts["only_a"], found.shifts["only_b"]
    assert (a["rows"], a["tokens"], a["mean_tokens"], a["median_tokens"]) == (3, 63, 21.0, 21.0)
    # counts at margin 0.2 are 9 − 3 + sample; of a prompt's four replies, three are correct
    assert (a["teacher_sentences"], b["teacher_sentences"]) == (6.0, 7.0)
    assert (a["pass_rate"], a["mean_delta"]) == (0.75, 0.25)


def test_missing_scores_verdicts_and_token_counts_enter_no_mean(tmp_path: Path) -> None:
    run = fill(Run(tmp_path), ("p",))
    rows = [reply("bare", "n", temperature=0.6, completion_tokens=None)]
    run.append("prompts", columns_table("prompts", [prompt("n", "Something else?") | {"domain": None}]))
    run.append("responses", columns_table("responses", rows))
    run.append("verdicts", columns_table("verdicts", [verdict_of(rows[0], verdict="unscorable")]))
    keep_all = recipe(selection=Selection(rules=[], selector="random", keep=4))
    found = against(run, keep_all, recipe(selection=Selection(rules=["score_missing"], selector="random", keep=4)))
    assert [(row["response_id"], row["pass_rate"], row["mean_delta"]) for row in found.examples] == [
        ("bare", None, None)
    ]  # fmt: skip
    assert (found.shifts["only_b"]["rows"], found.shifts["only_b"]["mean_tokens"]) == (1, None)
    assert found.shifts["b"]["mean_delta"] == 0.25
    assert {row["domain"]: (row["rows_a"], row["rows_b"]) for row in found.domains} == {
        "math": (4, 4), "unknown": (0, 1)
    }  # fmt: skip


def test_nothing_stored_changes_and_the_scores_of_the_recipes_student_stay(made: Selected) -> None:
    run, result = made
    before = files(run)
    other = STUDENT.model_copy(update={"revision": "6" * 40})
    run.append("scores", columns_table("scores", [score_of(row) | {"student_id": student_id(other), "mean_delta": 0.9}
                                                  for row in run.read("responses").to_dicts()]))  # fmt: skip
    found = against(run, recipe(student=Student.model_validate(other.model_dump()), selection=Selection(rules=[])))
    assert found.rows["only_b"] == 3
    assert {path: content for path, content in files(run).items() if path in before} == before
    with duckdb.connect(str(run.database), read_only=True) as connection:
        assert connection.execute("select distinct student_id from stg_scores").fetchall() == [(student_id(STUDENT),)]
        assert connection.execute("select distinct selection_id from stg_selection").fetchall() == [
            (result.selection_id,)
        ]


def test_a_broken_other_side_changes_nothing(made: Selected) -> None:
    run, _ = made
    before = files(run)
    with pytest.raises(SqlError, match="no_column"):
        against(run, recipe({"low-temperature": Stage(where="no_column > 1")}, student=Student(model="org/other")))
    assert files(run) == before
    with duckdb.connect(str(run.database), read_only=True) as connection:
        assert connection.execute("select count(*) from stg_scores").fetchall() == [(12,)]


def test_without_another_the_stored_selection_is_compared_with_the_recipe(made: Selected) -> None:
    run, result = made
    same = compare_recipes(run, recipe(), Path(), None)
    assert same.selection_a == same.selection_b == result.selection_id
    assert same.rows == {"both": 6, "only_a": 0, "only_b": 0}
    changed = compare_recipes(run, NO_ANSWERS, Path(), None)
    assert changed.rows == {"both": 3, "only_a": 3, "only_b": 3}
    assert changed.label_a == "the latest select"


def test_what_the_stored_selection_drops_is_still_told_after_replies_came_that_change_every_number(
    made: Selected,
) -> None:
    run, _ = made
    before = compare_recipes(run, NO_ANSWERS, Path(), None)
    first = columns_table("responses", [reply("0", "n", temperature=0.6)])
    run.append("prompts", columns_table("prompts", [prompt("n", "Something else?")]))
    run.append("responses", first)
    after = compare_recipes(run, NO_ANSWERS, Path(), None)
    assert [row for row in after.reasons if row["only_in"] == "b"] == [
        *before.reasons[1:], {"only_in": "b", "reason": "outranked, or in no stage", "rows": 1}
    ]  # fmt: skip
    assert [row["breaks_a"] for row in after.rules] == [row["breaks_a"] for row in before.rules]


def test_before_the_first_select_it_says_what_can_be_compared(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no selection.*--with key=value"):
        compare_recipes(fill(Run(tmp_path), ("p",)), recipe(), Path(), None)


@pytest.mark.parametrize("sample", [0, 2])
def test_examples_are_the_first_of_one_order_and_as_many_as_asked(
    found: Comparison, made: Selected, sample: int
) -> None:
    few = against(made[0], NO_ANSWERS, sample=sample)
    for side, ids in (("a", "p-1.0-0 q-1.0-0 s-1.0-0"), ("b", "p-1.0-1 q-1.0-1 s-1.0-1")):
        all_of_them, shown = ([row for row in one.examples if row["only_in"] == side] for one in (found, few))
        assert {row["response_id"] for row in all_of_them} == set(ids.split())
        assert shown == all_of_them[:sample]


def test_with_goes_over_the_overrides_and_against_takes_only_its_own(tmp_path: Path) -> None:
    for name, keep in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nselection: {{keep: {keep}}}\n", encoding="utf-8")
    one, two = str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")
    found = other_recipe(Path(one), ["generation.seed=5"], None, ["selection.keep=3"])
    assert found is not None
    assert (found[0].generation.seed, found[0].selection.keep, found[2]) == (5, 3, "one with selection.keep=3")
    found = other_recipe(Path(one), ["generation.seed=5"], two, [])
    assert found is not None
    assert (found[0].name, found[0].generation.seed, found[0].selection.keep) == ("two", 0, 2)
    assert other_recipe(Path(one), ["generation.seed=5"], None, []) is None


def test_it_prints_80_columns_with_reasons_and_examples(found: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    show_compared(Reporter(), found)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    words = " ".join(out.split())
    assert "3 in both, 3 only in A, 3 only in B" in words
    assert "answer_wrong 3 – 3 – 63 –" in words
    assert "teacher sentences, mean 6.5 7.0 6.0 7.0" in words
    assert "math 6 6 100.0 100.0" in words
    assert "Nothing is rejected by response_truncated." in words
    assert "in A breaks answer_wrong" in words
    assert "question What is 1 + 2, p?" in words


def test_it_says_when_both_keep_the_same(made: Selected, capsys: pytest.CaptureFixture[str]) -> None:
    same = against(made[0], recipe())
    assert (same.shifts["only_b"]["rows"], same.shifts["only_b"]["mean_tokens"]) == (0, None)
    show_compared(Reporter(), same)
    assert "Both keep the same replies." in capsys.readouterr().out


def test_two_selections_that_keep_nothing_are_compared(made: Selected, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = recipe(selection=Selection(rules=["too_long_for_student"], params={"max_student_tokens": 1}))
    show_compared(Reporter(), against(made[0], nothing, nothing))
    assert "0 in both" in capsys.readouterr().out


def test_json_holds_everything(found: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(as_json=True)
    show_compared(reporter, found)
    reporter.finish()
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["compare"]
    assert told["rows"] == {"both": 3, "only_a": 3, "only_b": 3}
    assert len(told["examples"]) == 6
    assert told["examples"][0]["reasoning"].startswith("Thinking of")


def test_stages_of_prompts_are_compared_by_their_rows(made: Selected) -> None:
    run, _ = made
    one, other = (recipe({"rl": Stage(kind="grpo", where=where)}) for where in ("true", "prompt_id > 'p'"))
    found = against(run, other, one)
    assert [tuple(stage.values()) for stage in found.stages] == [("rl", "grpo", 3, 2, 2)]
    assert found.rows == {"both": 0, "only_a": 0, "only_b": 0}
    assert select(run, recipe()).kept == 6


def test_a_run_without_replies_names_the_step_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="builder generate"):
        against(Run(tmp_path / "run"), NO_ANSWERS)
    assert not (tmp_path / "run").exists()
