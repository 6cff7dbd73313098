"""Releases from literal tables: layout, identity, what a stranger's tools make of them."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from release_toys import (
    HOST,
    STAGES,
    Selected,
    contents,
    fill,
    recipe,
    rows,
    whole,
)
from score_toys import save_student

from builder import release_files
from builder.config import Stage, Teacher
from builder.errors import ReleaseError
from builder.release import Release, latest_release, read_manifest, release
from builder.release_manifest import build_id
from builder.schema import RELEASE_SFT
from builder.selection import select
from builder.store import Run

SORTING = pytest.mark.filterwarnings("ignore:Specifying null_placement in SortOptions:FutureWarning")  # datasets' own


def test_layout_and_manifest(made: Selected) -> None:
    found = release(made[0], recipe(), made[1])
    assert (found.version, found.is_new, found.path) == ("v1", True, made[0].releases / "v1")
    plots = [f".builder/plots/{name}.svg" for name in ("pass-rate", "student-tokens", "teacher-share")]
    assert sorted(contents(found.path)) == [
        ".builder/constraints.txt",
        ".builder/manifest.json",
        *plots,
        ".builder/recipe.yaml",
        ".builder/sql/rules/answer_wrong.sql",
        ".builder/sql/rules/response_truncated.sql",
        ".builder/sql/selectors/teacher_sentence_count.sql",
        "README.md",
        "data/candidates/train-00000-of-00001.parquet",
        "data/high-temperature/train-00000-of-00001.parquet",
        "data/low-temperature/train-00000-of-00001.parquet",
    ]
    manifest = whole(found.path)
    assert manifest == found.manifest
    listed = {entry["path"] for entry in manifest["files"]}
    assert listed == set(contents(found.path)) - {"README.md", ".builder/manifest.json"}
    assert [(s["stage"], s["rows"], s["tokens"]) for s in manifest["schedule"]] == [
        ("low-temperature", 3, 3 * 41),
        ("high-temperature", 3, 3 * 40),
    ]
    assert manifest["funnel"] == [
        {"rule": "response_truncated", "breaks": 0, "breaks_alone": 0, "tokens": 0},
        {"rule": "answer_wrong", "breaks": 3, "breaks_alone": 3, "tokens": 63},
    ]
    assert manifest["prompts"] == [{"source": "toy.jsonl", "revision": None, "license": "mit", "rows": 3}]
    assert manifest["calls"] == {
        "attempts": 0, "maybe_billed": 0, "replies": 12, "rollouts": 0, "prompt_tokens": 84, "completion_tokens": 252,
        "cost_usd": pytest.approx(0.012),
    }  # fmt: skip
    for path, sha256 in manifest["sql"].items():
        assert hashlib.sha256((found.path / ".builder" / path).read_bytes()).hexdigest() == sha256


@SORTING
def test_datasets_loads_a_release_from_disk(made: Selected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    path = str(release(made[0], recipe(), made[1]).path)
    cache = str(tmp_path / "cache")
    low = datasets.load_dataset(path, "low-temperature", split="train", cache_dir=cache)
    assert low.column_names == RELEASE_SFT.names
    assert low.sort("position")["position"][:] == [0, 1, 2]
    default = datasets.load_dataset(path, split="train", cache_dir=cache)
    assert default["response_id"][:] == low["response_id"][:]
    candidates = datasets.load_dataset(path, "candidates", split="train", cache_dir=cache)
    assert candidates.num_rows == 12
    assert datasets.get_dataset_config_names(path) == ["low-temperature", "high-temperature", "candidates"]


IN_SHARDS = {
    "one part": lambda run: fill(run, ("p", "q", "s")),
    "a part each, backwards": lambda run: fill(run, ("s", "q", "p"), backwards=True),
    "three shards": lambda run: [fill(run, (name,), shard=shard) for shard, name in enumerate("sqp")][-1],
}


@pytest.mark.parametrize("shards", IN_SHARDS)
@pytest.mark.parametrize("zone", ["Asia/Kathmandu", "America/Los_Angeles"])
def test_identity_does_not_depend_on_order_shards_zone_or_place(
    made: Selected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: str, zone: str
) -> None:
    first = release(made[0], recipe(), made[1])
    elsewhere = tmp_path / "an other" / "place[1]"
    (elsewhere / "org" / "student").mkdir(parents=True)  # the student's name, which is no folder
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        run = IN_SHARDS[shards](Run(Path("run")))
        second = release(run, recipe(), select(run, recipe()))
        data = {name: content for name, content in contents(second.path).items() if name.startswith("data/")}
    finally:
        monkeypatch.undo()
        time.tzset()
    assert second.manifest["schedule"] == first.manifest["schedule"]
    assert second.manifest["build_id"] == first.manifest["build_id"]
    assert {name: (first.path / name).read_bytes() for name in data} == data


@pytest.mark.parametrize("name", ["org/tokenizer", "./org/tokenizer", "/models/org/tokenizer"])
def test_a_folder_of_that_name_in_the_working_directory_does_not_change_the_build_id(
    made: Selected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    teacher = recipe().require_teacher().model_copy(update={"tokenizer": name})
    given = recipe(teacher=teacher, prompts=[{"source": "org/tokenizer/q.jsonl"}])
    monkeypatch.chdir(tmp_path)
    before = build_id(made[0], given, {})
    (tmp_path / "org" / "tokenizer").mkdir(parents=True)
    (tmp_path / "org" / "tokenizer" / "q.jsonl").touch()
    assert build_id(made[0], given, {}) == before


@pytest.mark.parametrize("table", ["prompts", "responses", "scores", "verdicts", "features"])
def test_every_table_that_decides_the_rows_is_in_the_build_id(made: Selected, table: str) -> None:
    run, _ = made
    before = build_id(run, recipe(), {})
    rows = run.read(table)
    run.replace(table, rows[:-1].to_arrow())
    assert build_id(run, recipe(), {}) != before
    run.replace(table, rows.reverse().to_arrow())
    assert build_id(run, recipe(), {}) == before
    assert build_id(run, recipe(), {"sql/rules/x.sql": "0" * 64}) != before
    assert build_id(run, recipe(), {}, ["p"]) != before
    assert build_id(run, recipe(generation={"samples": 5}), {}) != before


def test_times_and_costs_are_not_in_the_build_id(made: Selected) -> None:
    run, _ = made
    before = build_id(run, recipe(), {})
    run.replace("responses", run.read("responses").with_columns(latency_s=9.0, cost_usd=None).to_arrow())
    assert build_id(run, recipe(), {}) == before


def test_unchanged_rows_release_nothing(made: Selected) -> None:
    run, result = made
    first = release(run, recipe(), result)
    before = contents(run.releases)
    again = release(run, recipe(), result)
    assert (again.version, again.is_new, again.manifest) == ("v1", False, first.manifest)
    assert contents(run.releases) == before
    assert [path.name for path in run.releases.iterdir()] == ["v1"]


def test_the_same_rows_by_another_writer_are_unchanged(made: Selected, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes differ between versions of pyarrow; rows are what counts."""
    run, result = made
    release(run, recipe(), result)
    monkeypatch.setitem(release_files.PARQUET, "compression_level", 1)
    assert not release(run, recipe(), result).is_new


@pytest.mark.parametrize(
    "changes",
    [
        {"release": {"license": "apache-2.0"}},
        {"stages": dict(reversed(STAGES.items()))},
        {"stages": STAGES | {"high-temperature": STAGES["high-temperature"].model_copy(update={"init": "base"})}},
    ],
    ids=["licence", "order", "init"],
)
def test_another_schedule_or_licence_of_the_same_rows_is_a_version(made: Selected, changes: dict[str, Any]) -> None:
    run, result = made
    first = release(run, recipe(), result)
    changed = recipe(**changes)
    second = release(run, changed, select(run, changed))
    assert (second.version, second.manifest["parent"]) == ("v2", "v1")
    one, two = contents(first.path), contents(second.path)
    assert {name: one[name] for name in one if name.startswith("data/")} == {
        name: two[name] for name in two if name.startswith("data/")
    }


def test_appended_prompts_repeat_unchanged_configs_byte_for_byte(
    made: Selected, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, result = made
    first = release(run, recipe(), result)
    kept = contents(first.path)
    fill(run, ("t",), (0.6,))
    monkeypatch.setitem(release_files.PARQUET, "compression_level", 1)  # a newer writer must not touch them
    second = release(run, recipe(), select(run, recipe()))
    assert (second.version, second.is_new, second.manifest["parent"]) == ("v2", True, "v1")
    whole(second.path)
    assert contents(first.path) == kept
    high = "data/high-temperature/train-00000-of-00001.parquet"
    assert (second.path / high).read_bytes() == kept[high]
    assert rows(second.path, "low-temperature").num_rows == 4
    assert rows(second.path, "candidates").num_rows == 14
    assert latest_release(run) == Release(second.path, second.manifest, is_new=False)


def test_rows_of_the_version_before_keep_their_order_and_new_ones_follow(made: Selected) -> None:
    """Ids are hashes: in order of ids alone, new rows would stand among all others, and every chunk would be new."""
    run, result = made
    release(run, recipe(), result)
    fill(run, ("a", "r"), (0.6,))
    second = release(run, recipe(), select(run, recipe()))
    fill(run, ("b",), (0.6,))
    third = release(run, recipe(), select(run, recipe()))
    low = [
        [one[0] for one in rows(found.path, "low-temperature")["response_id"].to_pylist()] for found in (second, third)
    ]
    assert low == [[*"pqsar"], [*"pqsarb"]]
    everything = rows(third.path, "candidates")["response_id"].to_pylist()
    assert everything[:16] == rows(second.path, "candidates")["response_id"].to_pylist()
    assert everything[16:] == ["b-0.6-0", "b-0.6-1"]


def test_an_empty_stage_is_refused(made: Selected) -> None:
    run, _ = made
    stages = {**STAGES, "hot": Stage(where="temperature = 9")}
    with pytest.raises(ReleaseError, match="Stage 'hot' has no rows"):
        release(run, recipe(stages), select(run, recipe(stages)))
    assert list(run.releases.iterdir()) == []


def test_a_selection_of_another_recipe_is_refused(made: Selected) -> None:
    run, result = made
    with pytest.raises(ReleaseError, match="run builder select again"):
        release(run, recipe(selection={"rules": ["response_truncated"]}), result)
    run.replace("selection", run.read("selection").with_columns(selection_id=pl.lit("x")).to_arrow())
    with pytest.raises(ReleaseError, match="run builder select again"):
        release(run, recipe(), result)


def test_no_folder_and_no_address_of_this_machine_is_released(made: Selected, tmp_path: Path) -> None:
    run, _ = made
    folder = save_student(tmp_path / "models" / "student")
    questions = tmp_path / "questions.jsonl"
    questions.write_text("{}\n")
    local = recipe(
        prompts=[{"source": str(questions)}, {"source": "/gone/from/here.jsonl"}],
        teacher=Teacher(
            model="/srv/models/teacher", tokenizer=str(folder), endpoints=recipe().require_teacher().endpoints
        ),
        student={"model": str(folder)},
        selection={"rules": [], "selector": "random"},
        release={"logprobs": True},
    )
    labelled = run.read("responses").with_columns(model=pl.lit("/srv/models/teacher"))
    run.replace("responses", labelled.to_arrow())
    path = release(run, local, select(run, local)).path
    said = b"\n".join(contents(path).values())
    for file in path.rglob("*.parquet"):
        said += json.dumps(pq.read_table(file).to_pylist(), default=str).encode()
    for forbidden in (str(tmp_path), str(Path.home()) + "/", "/srv/", "/gone", HOST, ":8000"):
        assert forbidden.encode() not in said, forbidden
    resolved = yaml.safe_load((path / ".builder" / "recipe.yaml").read_text())
    assert [source["source"] for source in resolved["prompts"]] == ["questions.jsonl", "here.jsonl"]
    assert (resolved["teacher"]["model"], resolved["student"]["model"]) == ("teacher", "student")
    assert set(rows(path, "candidates")["model"].to_pylist()) == {"teacher"}


def test_a_release_of_several_shards_loads_and_repeats(
    made: Selected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(release_files, "_GROUP_BYTES", 700)
    monkeypatch.setattr(release_files, "_SHARD_GROUPS", 1)
    found = release(made[0], recipe(), made[1])
    manifest = whole(found.path)
    assert sum(entry["path"].startswith("data/candidates") for entry in manifest["files"]) > 3
    table = datasets.load_dataset(str(found.path), "candidates", split="train", cache_dir=str(tmp_path / "cache"))
    assert table["response_id"][:] == rows(found.path, "candidates")["response_id"].to_pylist()
    assert not release(made[0], recipe(), made[1]).is_new


def test_only_directories_with_a_manifest_of_this_format_are_releases(made: Selected, tmp_path: Path) -> None:
    run, result = made
    assert latest_release(run) is None
    found = release(run, recipe(), result)
    (run.releases / "v7").mkdir()
    (run.releases / "v2.bak").mkdir()
    (run.releases / ".v2-half").mkdir()
    assert latest_release(run) == Release(found.path, found.manifest, is_new=False)
    with pytest.raises(ReleaseError, match="is no release"):
        read_manifest(run.releases / "v7")
    manifest = found.path / ".builder" / "manifest.json"
    manifest.write_text(json.dumps({**found.manifest, "format": 2}))
    with pytest.raises(ReleaseError, match="has manifest format 2; this version reads 1"):
        latest_release(run)


@SORTING
def test_plain_trl_trains_on_a_release(made: Selected, tmp_path: Path) -> None:
    """Ten lines that know nothing of this project."""
    import torch
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(1)
    path = release(made[0], recipe(), made[1]).path
    student = str(save_student(tmp_path / "student"))
    data = load_dataset(str(path), "low-temperature", split="train", cache_dir=str(tmp_path / "cache"))
    config = SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        max_length=512,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        disable_tqdm=True,
    )
    trained = SFTTrainer(model=student, args=config, train_dataset=data.sort("position")).train()
    assert trained.global_step == 2
    assert trained.training_loss > 0
