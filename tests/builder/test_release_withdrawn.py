"""Withdrawal: prompts and replies by id, left out of every config of this version and of all later ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from release_toys import STAGES, Selected, fill, recipe, rows, selected, whole
from score_toys import logprobs, reply

from builder.config import Recipe, Stage
from builder.errors import ReleaseError, UsageError
from builder.recipe import load_recipe
from builder.release import Release, release
from builder.selection import select
from builder.store import Run, columns_table
from builder.withdrawal import without


def withdrawing(*ids: str, **changes: Any) -> Recipe:
    return recipe(release={"license": "mit", "logprobs": True, "withdrawn": list(ids)}, **changes)


def released(run: Run, given: Recipe) -> Release:
    return release(run, given, select(run, given))


def held(path: Path) -> set[str]:
    """Every word of every Parquet file: ids, texts, all."""
    found = [rows(path, config.name).to_pylist() for config in (path / "data").iterdir()]
    return set(json.dumps(found, default=str).replace('"', " ").replace(",", " ").split())


def test_a_withdrawn_prompt_is_in_no_config(made: Selected) -> None:
    run, _ = made
    run.append("pairs", columns_table("pairs", [
        {"prompt_id": name, "chosen_id": f"{name}-0.6-1", "rejected_id": f"{name}-0.6-0", "gap": 0.5, "votes": []}
        for name in ("p", "q")
    ]))  # fmt: skip
    stages = {"rl": Stage(kind="grpo"), "judge": Stage(kind="reward"), **STAGES}
    found = released(run, withdrawing("p", stages=stages))
    manifest = whole(found.path)
    assert manifest["withdrawn"] == ["p"]
    assert {stage["stage"]: stage["rows"] for stage in manifest["schedule"]} == {
        "rl": 2, "judge": 1, "low-temperature": 2, "high-temperature": 2
    }  # fmt: skip
    assert (rows(found.path, "candidates").num_rows, rows(found.path, "logprobs").num_rows) == (8, 4)
    assert not [word for word in held(found.path) if word == "p" or word.startswith("p-")]
    assert [source["rows"] for source in manifest["prompts"]] == [2]
    for stage in stages:
        assert sorted(rows(found.path, stage)["position"].to_pylist()) == list(range(rows(found.path, stage).num_rows))


def test_a_withdrawn_reply_is_no_candidate_and_is_not_counted(made: Selected) -> None:
    run, _ = made
    found = released(run, withdrawing("p-0.6-0"))
    table = rows(found.path, "low-temperature")
    assert dict(zip(table["prompt_id"].to_pylist(), table["n_candidates"].to_pylist(), strict=True)) == {
        "p": 1, "q": 2, "s": 2
    }  # fmt: skip
    assert "p-0.6-0" not in rows(found.path, "candidates")["response_id"].to_pylist()
    assert rows(found.path, "candidates").num_rows == 11


def test_a_selected_reply_leaves_with_its_row(made: Selected) -> None:
    run, _ = made
    found = released(run, withdrawing("p-0.6-1"))
    assert rows(found.path, "low-temperature")["response_id"].to_pylist() == ["q-0.6-1", "s-0.6-1"]
    assert sorted(rows(found.path, "low-temperature")["position"].to_pylist()) == [0, 1]
    assert [stage["tokens"] for stage in found.manifest["schedule"]] == [2 * 41, 3 * 40]


def test_replies_that_go_on_from_a_withdrawn_rollout_leave_too(tmp_path: Path) -> None:
    run = fill(Run(tmp_path / "run"), ("p",))
    rollout = reply("rollout", "p", role="student")
    mixed = reply("mixed", "p", role="mixed", prefix_response_id="rollout", prefix_chars=4)
    run.append("responses", columns_table("responses", [rollout, mixed]))
    run.append("logprobs", columns_table("logprobs", [logprobs(mixed)]))
    kept = without(run, ["rollout"])
    assert not kept.ids("responses") & {"rollout", "mixed"}
    assert "mixed" not in kept.ids("logprobs") and run.ids("responses") >= {"rollout", "mixed"}
    assert without(run, []) is run


def test_what_a_version_withdrew_stays_out_without_being_named(made: Selected) -> None:
    run, _ = made
    released(run, withdrawing("p-0.6-0"))
    second = released(run, withdrawing("q"))
    third = released(run, recipe(release={"license": "apache-2.0"}))
    assert [second.manifest["withdrawn"], third.manifest["withdrawn"]] == [["p-0.6-0", "q"]] * 2
    ids = rows(third.path, "candidates")["response_id"].to_pylist()
    assert "p-0.6-0" not in ids and not [one for one in ids if one.startswith("q")]
    same = released(run, recipe(release={"license": "apache-2.0", "withdrawn": ["q", "p-0.6-0"]}))
    assert (same.version, same.is_new) == ("v3", False)


def test_withdrawing_changes_the_build_id_and_the_configs_that_held_it_only(made: Selected) -> None:
    run, _ = made
    first, second = released(run, withdrawing()), released(run, withdrawing("p-1.0-0"))
    assert (second.version, second.manifest["build_id"] == first.manifest["build_id"]) == ("v2", False)
    low = "data/low-temperature/train-00000-of-00001.parquet"
    assert (second.path / low).read_bytes() == (first.path / low).read_bytes()
    assert (second.path / ".builder/recipe.yaml").read_text().count("p-1.0-0") == 1


@pytest.mark.parametrize(
    ("wrong", "right"), [("p-0.6-7", "p-0.6-[01]"), ("q-1.0", "q-1.0-[01]"), ("-0.6-0", "[pqs]-0.6-0")]
)
def test_an_id_that_is_nearly_one_of_the_run_is_refused(made: Selected, wrong: str, right: str) -> None:
    run, _ = made
    with pytest.raises(ReleaseError, match=rf"names 1 ids .*: {wrong} \(did you mean {right}\?\)\. Misspelt"):
        released(run, withdrawing(wrong, "x", "q"))
    assert list(run.releases.iterdir()) == []


def test_an_id_that_the_run_does_not_hold_stays_on_the_list_for_what_comes_later(made: Selected) -> None:
    run, _ = made
    found = released(run, withdrawing("t", "of-another-run"))
    assert found.manifest["withdrawn"] == ["of-another-run", "t"]
    assert found.warnings == ("2 ids of release.withdrawn are not in this run, such as of-another-run",)
    fill(run, ("t", "u"))
    assert {one[0] for one in rows(released(run, withdrawing()).path, "candidates")["prompt_id"].to_pylist()} == set(
        "pqsu"
    )


def test_a_stage_that_withdrawal_empties_is_refused(tmp_path: Path) -> None:
    run, _ = selected(tmp_path / "run", ("p",))
    with pytest.raises(ReleaseError, match="Stage 'low-temperature' has no rows"):
        released(run, withdrawing("p"))


def test_ids_of_digits_alone_must_be_quoted(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: r\nrelease: {withdrawn: [0123]}\n")
    with pytest.raises(UsageError, match=r"release\.withdrawn\.0: .*valid string"):
        load_recipe(path)
    path.write_text("name: r\nrelease: {withdrawn: [b, a, b]}\n")
    assert load_recipe(path).release.withdrawn == ["a", "b"]
