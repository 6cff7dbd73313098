"""What a selection and a release make of rewrites: they stand in the place of the replies that they rewrite."""

import json
from pathlib import Path

import jsonschema
import polars as pl
import pyarrow.parquet as pq
import pytest
from endpoint import endpoint
from judge_toys import shorten
from rewrite_toys import RULES, faithful, parts_of, recipe_of, rewriting, rows, run_of, steps

from builder.card import render_card
from builder.config import Recipe
from builder.errors import TableError
from builder.explain import explain
from builder.find_reply import rows_of
from builder.funnel import funnel_by
from builder.import_release import import_release
from builder.published import open_published
from builder.release_manifest import license_conflicts
from builder.resources import resource
from builder.store import Run


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


def selected(run: Run) -> set[str]:
    return set(run.read("selection")["grain_id"])


def liar(parts: dict[str, str]) -> str:
    """Faithful, but for the first two questions, whose answers it changes."""
    said = faithful(parts)
    return (
        said.replace(parts["ANSWER"], "It is 3.") if parts["QUESTION"] in ("Question sum1?", "Question sum2?") else said
    )


def rewritten(folder: Path, character: object = faithful, **recipe: object) -> tuple[Run, Recipe]:
    run = run_of(folder)
    with endpoint(script=rewriting(character)) as server:  # type: ignore[arg-type]
        made = recipe_of(server, **recipe)  # type: ignore[arg-type]
        steps(run, made).rewrite()
    return run, made


def test_stages_take_rewrites_and_no_original(tmp_path: Path) -> None:
    run, recipe = rewritten(tmp_path)
    result = steps(run, recipe).select()
    assert selected(run) == {row["response_id"] for row in rows(run).values()}
    assert (result.replies, result.survivors, result.kept, result.prompts) == (4, 4, 4, 4)
    counts = result.rewrites
    assert counts is not None
    assert (counts.kept_answer, counts.changed_answer, counts.unknown_answer) == (4, 0, 0)


def test_a_rewrite_that_changed_the_answer_leaves_its_prompt_without_a_row(tmp_path: Path) -> None:
    run, recipe = rewritten(tmp_path, liar)
    result = steps(run, recipe).select()
    counts = result.rewrites
    assert counts is not None
    assert (counts.kept_answer, counts.changed_answer, counts.prompts, counts.prompts_without) == (2, 2, 4, 2)
    assert {one.rule_name: one.breaks for one in result.funnel}["answer_wrong"] == 2
    by_group = [(one.rule_name, one.replies, one.breaks) for one in funnel_by(run, ["domain"], ranked_role="rewrite")]
    assert by_group == [("answer_wrong", 4, 2), ("(kept)", 4, 2)]
    prompts = run.read("responses").filter(pl.col("response_id").is_in(list(selected(run))))["prompt_id"]
    assert sorted(one[-1] for one in prompts) == ["3", "4"]
    roles = run.read("responses").filter(pl.col("response_id").is_in(list(selected(run))))["role"]
    assert set(roles) == {"rewrite"}


def test_another_rewrite_of_the_prompt_takes_the_place_of_one_that_is_wrong(tmp_path: Path) -> None:
    def half(parts: dict[str, str]) -> str:
        return liar(parts) if "right-" in parts["REASONING"] else faithful(parts)

    run, recipe = rewritten(tmp_path, half, per_prompt=2)
    result = steps(run, recipe).select()
    assert (result.replies, result.kept) == (8, 4)
    assert result.rewrites is not None
    assert (result.rewrites.changed_answer, result.rewrites.prompts_without) == (2, 0)


def test_without_a_rewrite_nothing_is_selected_but_an_error_says_what_to_run(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with pytest.raises(TableError, match="builder rewrite"):
        steps(run, recipe_of(None)).select()
    plain = recipe_of(None).model_copy(update={"rewrite": None})
    assert steps(run, plain).select().replies == 12


def test_rewrites_of_another_model_do_not_count_once_this_recipe_has_its_own(tmp_path: Path) -> None:
    run, _ = rewritten(tmp_path)
    before = {row["response_id"] for row in rows(run).values()}
    with endpoint(script=rewriting(faithful)) as server:
        other = recipe_of(server, revision="second")
        steps(run, other).rewrite()
        assert steps(run, other).select().kept == 4
    assert not selected(run) & before


def test_the_survivors_of_the_database_are_those_that_were_ranked(tmp_path: Path) -> None:
    run, recipe = rewritten(tmp_path, liar)
    steps(run, recipe).select()
    assert {one for (one,) in rows_of(run, "select response_id from survivors")} == selected(run)


def test_a_release_names_who_reasoned_and_who_rewrote(tmp_path: Path) -> None:
    run, recipe = rewritten(tmp_path, liar, license="llama3.3")
    made = recipe.model_copy(update={"release": recipe.release.model_copy(update={"license": "mit"})})
    release = steps(run, made).release(steps(run, made).select())
    manifest = json.loads((release.path / ".builder" / "manifest.json").read_text(encoding="utf-8"))
    jsonschema.validate(manifest, json.loads(resource("data_cards", "manifest.schema.json").read_text("utf-8")))
    assert manifest["rewrite"]["model"] == "toy"
    assert (manifest["rewrite"]["kept_answer"], manifest["rewrite"]["changed_answer"]) == (2, 2)
    assert "rewriting model toy" in [one["source"] for one in manifest["license_conflicts"]]
    (file,) = (release.path / "data" / "train").glob("*.parquet")
    released = pq.read_table(file).to_pylist()
    assert [(row["policy"], row["teacher"]) for row in released] == [("rewrite", "m")] * 2
    assert all("First: Hmm then" in row["completion"][0]["content"] for row in released)
    text = render_card(manifest)
    assert "rewritten by `toy`" in text
    assert "2 changed it" in text


def test_a_withdrawn_original_takes_its_rewrite_along(tmp_path: Path) -> None:
    run, recipe = rewritten(tmp_path)
    gone, row = next(iter(rows(run).items()))
    section = recipe.release.model_copy(update={"withdrawn": [gone], "license": "mit"})
    made = recipe.model_copy(update={"release": section})
    release = steps(run, made).release(steps(run, made).select())
    (file,) = (release.path / "data" / "train").glob("*.parquet")
    assert row["response_id"] not in pq.read_table(file)["response_id"].to_pylist()


def test_explain_names_the_reply_that_was_rewritten_and_the_rewrite_of_a_reply(tmp_path: Path) -> None:
    run, recipe = rewritten(tmp_path, liar)
    steps(run, recipe).select()
    for original, row in rows(run).items():
        found = explain(run, recipe, row["response_id"])
        wrong = row["prompt_id"].endswith(("1", "2"))
        assert found.outcome.startswith("dropped: breaks answer_wrong" if wrong else "kept: in stage train")
        assert [one["original_id"] for one in found.rewrites] == [original]
        assert [one.response_id for one in found.candidates] == [row["response_id"]]
        other = explain(run, recipe, original)
        assert row["response_id"] in other.outcome
        assert not other.candidates
    wrong_one = explain(run, recipe, "wrong-1")
    assert wrong_one.outcome == "dropped: breaks answer_wrong"
    left = next(one for one in ("right-1", "also-1") if one not in rows(run))
    assert "not rewritten" in explain(run, recipe, left).outcome


def test_the_candidates_of_a_release_can_be_selected_from_again(tmp_path: Path) -> None:
    run, recipe = rewritten(tmp_path, liar)
    made = recipe.model_copy(update={"release": recipe.release.model_copy(update={"license": "mit"})})
    release = steps(run, made).release(steps(run, made).select())
    other = Run(tmp_path / "other")
    import_release(other, recipe, open_published(str(release.path)))
    again = steps(other, recipe).select()
    assert selected(other) == selected(run)
    assert again.rewrites is not None
    assert (again.replies, again.rewrites.changed_answer) == (4, 2)


def test_nobody_rewrites_what_breaks_a_rule(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with endpoint(script=rewriting(faithful)) as server:
        steps(run, recipe_of(server, rules=RULES, per_prompt=9)).rewrite()
        assert all("It is 5." not in parts_of(ask)["ANSWER"] for ask in server.asks)
    assert len(rows(run)) == 8


def test_the_license_of_the_rewriting_model_is_compared_too() -> None:
    found = license_conflicts("mit", [], {"model": "t", "license": "mit"}, {"model": "r", "license": "cc-by-nc-4.0"})
    assert [(one["source"], one["kind"]) for one in found] == [("rewriting model r", "non-commercial")]
