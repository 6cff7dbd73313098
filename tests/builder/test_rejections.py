"""A rule whose file, parameters and tables are the same keeps its rows; the table is as if every rule had run."""

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from test_selection import make_run, own_rule, recipe, reply

from builder import decision, rejections
from builder.config import Recipe
from builder.errors import SqlError
from builder.selection import select
from builder.store import Run, columns_table, write_parquet

RULES = ["response_truncated", "reasoning_missing", "score_missing", "too_long_for_student", "answer_missing"]


def table(run: Run, name: str = "rejections") -> list[tuple[Any, ...]]:
    return run.read(name).sort(pl.all()).rows()


def asked(run: Run, made: Recipe, monkeypatch: pytest.MonkeyPatch, **given: Any) -> set[str]:
    """Names of the rules that `select` ran."""
    steps: list[Any] = []
    real = decision.run_steps

    def spied(database: Path, given_steps: Any, *rest: Any, **more: Any) -> Any:
        steps.extend(given_steps)
        return real(database, given_steps, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(decision, "run_steps", spied)
        select(run, made, **given)
    return {step.name.split()[1] for step in steps if step.name.startswith("rule ")}


def test_only_a_rule_whose_parameter_changed_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    assert asked(run, recipe(rules=RULES), monkeypatch) == set(RULES)
    assert asked(run, recipe(rules=RULES), monkeypatch) == set()
    assert asked(run, recipe(rules=RULES, params={"teacher_margin": 0.2}), monkeypatch) == set()
    assert asked(run, recipe(rules=RULES, params={"max_student_tokens": 100}), monkeypatch) == {"too_long_for_student"}
    assert asked(run, recipe(rules=[*RULES[:2], "tail_loop"]), monkeypatch) == {"tail_loop"}


def test_a_rule_runs_again_when_a_table_that_it_reads_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    rules = ["response_truncated", "score_missing"]
    select(run, recipe(rules=rules))
    run.replace("scores", run.columns("scores").slice(0, 3))
    assert asked(run, recipe(rules=rules), monkeypatch) == {"score_missing"}
    run.append("responses", columns_table("responses", [reply("a0", "p", finish_reason="length")]))
    assert asked(run, recipe(rules=rules), monkeypatch) == set(rules)
    assert ("a0", "response_truncated") in [row[:2] for row in table(run)]


def test_a_rule_runs_again_when_its_file_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    made = recipe(rules=["only.sql"])
    assert asked(run, made, monkeypatch, recipe_dir=own_rule(tmp_path, "completion_tokens > 250")) == {"only"}
    assert [row[0] for row in table(run)] == ["c", "d"]
    assert asked(run, made, monkeypatch, recipe_dir=own_rule(tmp_path, "completion_tokens > 500")) == {"only"}
    assert [row[0] for row in table(run)] == ["d"]


@pytest.mark.parametrize("view", ["grain_id from stg_selection", "response_id from stg_sentences"])
def test_a_rule_that_reads_parts_of_tables_always_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: str
) -> None:
    run, made = make_run(tmp_path / "run"), recipe(rules=["only.sql"])
    here = own_rule(tmp_path, f"response_id in (select {view})")
    select(run, made, recipe_dir=here)
    assert asked(run, made, monkeypatch, recipe_dir=here) == {"only"}


@pytest.mark.parametrize("seed", range(6))
def test_after_any_changes_the_tables_are_those_of_a_run_that_never_selected(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    run = make_run(tmp_path / "run")
    for turn in range(4):
        made = recipe(
            rules=draw.sample(RULES, draw.randint(0, len(RULES))),
            params={"max_student_tokens": draw.choice([100, 1000])},
            selector=draw.choice(["teacher_sentence_count", "longest"]),
            order=draw.choice(["rules-first", "selector-first"]),
            keep=draw.choice([1, 2]),
        )
        if draw.random() < 0.4:
            changed = [
                {**row, "completion_tokens": draw.choice([50, 5000])} for row in run.read("responses").to_dicts()
            ]
            run.replace("responses", columns_table("responses", changed))
        chosen = select(run, made)
        fresh = Run(tmp_path / f"fresh{turn}")
        for name in ("prompts", "responses", "scores", "features"):
            shutil.copytree(run.table_dir(name), fresh.table_dir(name))
        assert replace(select(fresh, made), new_features=chosen.new_features) == chosen
        assert table(run) == table(fresh)
        assert table(run, "selection") == table(fresh, "selection")


def test_a_crash_between_the_tables_leaves_no_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    select(run, recipe(rules=RULES))
    before = table(run, "selection")

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rejections, "write_parquet", dies)
        with pytest.raises(KeyboardInterrupt):
            select(run, recipe(rules=RULES, params={"max_student_tokens": 100}))
    assert table(run, "selection") == []
    select(run, recipe(rules=RULES))
    assert table(run, "selection") == before


def test_a_rule_that_fails_leaves_both_tables_as_they_were(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    select(run, recipe(rules=RULES))
    before = table(run), table(run, "selection")
    with pytest.raises(SqlError):
        select(run, recipe(rules=[*RULES, "only.sql"]), recipe_dir=own_rule(tmp_path, "error('no') = 'x'"))
    assert (table(run), table(run, "selection")) == before


def test_a_part_that_nobody_can_read_is_made_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    select(run, recipe(rules=RULES))
    before = table(run)
    write_parquet(run.columns("rejections").slice(0, 1), run.parts("rejections")[0])  # says not what it was made from
    select(run, recipe(rules=RULES))
    assert table(run) == before


def test_rejections_of_another_version_are_made_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    select(run, recipe(rules=RULES))
    before = table(run)
    old = pq.read_table(run.parts("rejections")[0]).drop_columns(["reply"])
    pq.write_table(old, run.parts("rejections")[0])
    select(run, recipe(rules=RULES))
    assert table(run) == before
