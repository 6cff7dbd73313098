"""Held-out prompts: all their replies on one side, in every stage; no reader of a release mixes the sides unasked."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from release_toys import STAGES, contents, fill, recipe, score_of, whole
from score_toys import reply

from builder.config import ReleaseSection, Stage
from builder.diff import diff
from builder.errors import ReleaseError
from builder.formats import KINDS, export
from builder.import_release import derive, import_release
from builder.published import database, open_published
from builder.recipe import load_recipe
from builder.release import Release, release
from builder.release_held_out import is_held_out
from builder.selection import select
from builder.sqlrun import query
from builder.store import Run, columns_table

SHARE = 0.3
NAMES = tuple(f"q{number:02d}" for number in range(24))
ALL_STAGES = {"rl": Stage(kind="grpo"), "judge": Stage(kind="reward"), **STAGES}
EVERY_CONFIG = (*ALL_STAGES, "mixed-policy")


def expected(names: Sequence[str] = NAMES, share: float = SHARE, seed: int = 0) -> set[str]:
    """Held-out prompts by the documented formula."""
    drawn = {name: hashlib.md5(f"held-out:{name}:{seed}".encode()).hexdigest()[:8] for name in names}
    return {name for name, digits in drawn.items() if int(digits, 16) / 16**8 < share}


def released(run: Run, share: float = SHARE, **changes: Any) -> Release:
    given_recipe = recipe(**{"release": {"license": "mit", "held_out": share}} | changes)
    return release(run, given_recipe, select(run, given_recipe))


def mixed(run: Run, names: Sequence[str]) -> None:
    """A rollout of each prompt, cut and continued; and a pair of its replies."""
    for name in names:
        replies = [
            reply(f"{name}-roll", name, role="student"),
            reply(
                f"{name}-mix", name, role="mixed", prefix_response_id=f"{name}-roll", prefix_chars=4, temperature=0.8
            ),
        ]
        rollout = {
            "response_id": f"{name}-roll", "prompt_id": name, "reference_id": f"{name}-0.6-1", "length_cap": 10,
            "weights_sha256": "0" * 64, "student_tokens": 10, "hit_cap": True, "outcome": "cut", "cut_chars": 4,
            "cut_share": 0.5, "continuation_id": f"{name}-mix",
        }  # fmt: skip
        pair = {"prompt_id": name, "chosen_id": f"{name}-0.6-1", "rejected_id": f"{name}-0.6-0", "votes": []}
        tables = {"responses": replies, "scores": [score_of(replies[1])], "rollouts": [rollout], "pairs": [pair]}
        for table, rows in tables.items():
            run.append(table, columns_table(table, rows))


def side(path: Path, config: str, split: str) -> list[dict[str, Any]]:
    files = sorted((path / "data" / config).glob(f"{split}-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def prompts_of(rows: Sequence[dict[str, Any]]) -> set[str]:
    """The names of the prompts, which a pair holds in its text alone."""
    return {row.get("prompt_id") or row["prompt"][-1]["content"].split(", ")[1].rstrip("?") for row in rows}


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, Path]:
    """A run with every kind of stage; its release with held-out prompts, and one of the same rows without."""
    run = fill(Run(tmp_path_factory.mktemp("held") / "toy"), NAMES)
    mixed(run, NAMES)
    changes: dict[str, Any] = {"stages": ALL_STAGES, "mixed_policy": {"off_policy_ratio": 1.5}}
    whole_one = released(run, 0.0, **changes)
    return run, released(run, **changes).path, whole_one.path


@pytest.fixture
def path(_made: tuple[Run, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return _made[1]


def test_no_prompt_is_on_both_sides_of_any_config_at_any_temperature(path: Path) -> None:
    held = expected()
    assert 0 < len(held) < len(NAMES)
    sides = {split: [row for config in EVERY_CONFIG for row in side(path, config, split)]
             for split in ("train", "validation")}  # fmt: skip
    assert prompts_of(sides["validation"]) == held
    assert prompts_of(sides["train"]) == set(NAMES) - held
    for rows in sides.values():
        assert {row.get("temperature") for row in rows} == {None, 0.6, 0.8, 1.0}
        assert {row.get("policy") for row in rows} == {None, "teacher", "mixed"}


def test_both_sides_together_are_the_rows_of_a_release_that_holds_out_none(_made: tuple[Run, Path, Path]) -> None:
    _, path, unsplit = _made
    for config in EVERY_CONFIG:
        rows = side(path, config, "train") + side(path, config, "validation")
        assert sorted(rows, key=lambda row: row["position"]) == sorted(
            side(unsplit, config, "train"), key=lambda row: row["position"]
        )
        assert not side(unsplit, config, "validation")
    assert side(path, "candidates", "train") == side(unsplit, "candidates", "train")
    assert not side(path, "candidates", "validation")


def test_the_manifest_counts_train_rows_in_the_schedule_and_the_rest_beside_it(path: Path) -> None:
    manifest = whole(path)
    for stage in manifest["schedule"]:
        rows = side(path, stage["config"], "train")
        hashes = {entry["rowset_hash"] for entry in manifest["files"]
                  if entry["path"].startswith(f"data/{stage['config']}/train-")}  # fmt: skip
        assert (stage["rows"], {stage["rowset_hash"]}) == (len(rows), hashes)
        if stage["kind"] == "sft":
            assert stage["tokens"] == sum(row["student_tokens"] for row in rows)
    held = {config: len(side(path, config, "validation")) for config in EVERY_CONFIG}
    assert manifest["held_out"] == {"share": SHARE, "prompts": len(expected()), "rows": held}


def test_the_card_lists_both_splits_and_says_what_is_held_out(path: Path) -> None:
    text = (path / "README.md").read_text(encoding="utf-8")
    configs = {one["config_name"]: one["data_files"] for one in yaml.safe_load(text.split("---\n")[1])["configs"]}
    assert [one["split"] for one in configs["low-temperature"]] == ["train", "validation"]
    assert [one["split"] for one in configs["candidates"]] == ["train"]
    assert f"{len(expected())} prompts are held out of training" in text
    assert "## Held out" in text
    held = len(side(path, "low-temperature", "validation"))
    assert f"| `low-temperature` | {len(NAMES) - held} | {held} |" in text.replace(" (default)", "")


def test_without_held_out_prompts_there_is_one_split_and_no_word_of_it(_made: tuple[Run, Path, Path]) -> None:
    unsplit = _made[2]
    assert whole(unsplit)["held_out"] is None
    assert not [name for name in contents(unsplit) if "validation" in name]
    text = (unsplit / "README.md").read_text(encoding="utf-8")
    assert "Held out" not in text and "held out" not in text and "validation" not in text


@pytest.mark.filterwarnings("ignore:Specifying null_placement in SortOptions:FutureWarning")  # datasets' own
def test_datasets_loads_each_split(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    found = datasets.load_dataset(str(path), "high-temperature", cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train", "validation"}
    assert set(found["validation"]["prompt_id"][:]) == expected()
    assert not set(found["train"]["prompt_id"][:]) & expected()


@given(
    st.sets(st.text(max_size=12), max_size=30),
    st.sets(st.text(max_size=12), max_size=30),
    st.floats(0, 0.49),
    st.integers(0, 2**31),
)
def test_prompts_that_are_added_and_a_larger_share_move_none_back(
    before: set[str], added: set[str], share: float, seed: int
) -> None:
    held = {name for name in before if is_held_out(name, share, seed)}
    later = {name for name in before | added if is_held_out(name, share, seed)}
    assert later & before == held
    assert held <= {name for name in before if is_held_out(name, min(0.49, share * 1.5), seed)}
    assert not [name for name in before if is_held_out(name, 0, seed)]


def test_the_share_is_met_and_does_not_follow_the_order_of_positions_and_mixes() -> None:
    names = [f"prompt-{number}" for number in range(4000)]
    held = {name for name in names if is_held_out(name, 0.1, 7)}
    assert 300 < len(held) < 500
    first = sorted(names, key=lambda name: hashlib.md5(f"{name}:7".encode()).hexdigest())[:400]
    assert len(held & set(first)) < 100  # by chance 40; by the same hash 400


def test_the_documented_sql_finds_the_held_out_prompts(path: Path) -> None:
    hashed = "('0x' || left(md5('held-out:' || prompt_id || ':' || 0), 8))::ubigint"
    sql = f"select distinct prompt_id from candidates where {hashed} < {SHARE} * 16 ** 8"
    found = query(database(open_published(str(path))), sql).to_pylist()
    assert {row["prompt_id"] for row in found} == expected()


def test_a_version_with_more_prompts_keeps_every_prompt_on_its_side(tmp_path: Path) -> None:
    run = fill(Run(tmp_path / "toy"), NAMES[:16])
    one = released(run)
    two = released(fill(run, NAMES[16:], shard=1))
    for config in STAGES:
        old = {split: prompts_of(side(one.path, config, split)) for split in ("train", "validation")}
        new = {split: prompts_of(side(two.path, config, split)) for split in ("train", "validation")}
        assert old["train"] < new["train"] and old["validation"] <= new["validation"]
        assert new["validation"] == expected()
    changes = {(one["what"], one["name"]) for one in whole(two.path)["history"][-1]["changes"]}
    assert {("config", "low-temperature"), ("held-out rows of config", "low-temperature")} <= changes


def test_the_same_rows_release_nothing_and_unchanged_configs_repeat_byte_for_byte(tmp_path: Path) -> None:
    run = fill(Run(tmp_path / "toy"), NAMES)
    one = released(run)
    assert not released(run).is_new
    barely = released(run, SHARE + 1e-9)  # the same rows, but the manifest says another share
    assert (barely.is_new, barely.manifest["held_out"]["share"]) == (True, SHARE + 1e-9)
    two = released(run, stages={"low-temperature": STAGES["low-temperature"]})
    same = [name for name in contents(two.path) if name.startswith("data/low-temperature/")]
    assert [name.split("/")[-1] for name in same if "validation" in name] == ["validation-00000-of-00001.parquet"]
    assert {name: contents(two.path)[name] for name in same} == {name: contents(one.path)[name] for name in same}


def test_another_share_is_another_build_and_is_told_in_the_history(_made: tuple[Run, Path, Path]) -> None:
    _, path, unsplit = _made
    one, two = whole(unsplit), whole(path)
    assert one["build_id"] != two["build_id"]
    changes = two["history"][-1]["changes"]
    assert {"what": "held out", "name": "share of prompts", "before": None, "after": SHARE} in changes
    text = (path / "README.md").read_text(encoding="utf-8")
    assert f"held out `share of prompts`: `{SHARE}`, new" in text
    assert f"held-out rows of config `low-temperature` is new: {len(expected())} rows" in text


@pytest.mark.parametrize(
    ("names", "split", "words"),
    [
        (sorted(set(NAMES) - expected())[:3], "validation", "holds out none of its 3 prompts"),
        (sorted(expected())[:2], "train", "holds out all of its 2 prompts"),
    ],
)
def test_a_stage_with_an_empty_side_is_refused_and_nothing_is_released(
    tmp_path: Path, names: list[str], split: str, words: str
) -> None:
    run = fill(Run(tmp_path / "toy"), tuple(names))
    with pytest.raises(ReleaseError, match=f"'low-temperature' would have no rows in split '{split}'.*{words}"):
        released(run)
    assert [path.name for path in run.releases.iterdir()] == []


@pytest.mark.parametrize("share", [-0.01, 0.5, 1, float("nan"), "all"])
def test_shares_that_are_none_are_refused(share: Any) -> None:
    with pytest.raises(ValueError, match="held_out"):
        ReleaseSection.model_validate({"held_out": share})


def test_sql_on_a_release_has_held_out_rows_in_tables_of_their_own(path: Path) -> None:
    with duckdb.connect(str(database(open_published(str(path)))), read_only=True) as connection:
        names = {name for (name,) in connection.sql("select table_name from duckdb_tables()").fetchall()}
        assert names == {
            *(config.replace("-", "_") for config in (*EVERY_CONFIG, "candidates")),
            *(f"{config.replace('-', '_')}_validation" for config in EVERY_CONFIG),
        }
        for table, wanted in (("mixed_policy", set(NAMES) - expected()), ("mixed_policy_validation", expected())):
            found = connection.sql(f"select distinct prompt_id from {table}").fetchall()
            assert {name for (name,) in found} == wanted


def test_exports_hold_train_rows_only_and_say_how_many_they_leave_out(path: Path, tmp_path: Path) -> None:
    for name in sorted(set(KINDS) - {"axolotl-kd"}):  # which takes its rows in the same way, from logprobs as well
        found = export(path, name, tmp_path / name, stages=list(STAGES))
        assert set(found.rows.values()) == {len(NAMES) - len(expected())}
        told = f"{2 * len(expected())} rows of split `validation` are not in these files"
        assert [note for note in found.notes if note.startswith(told)]
        assert told in (found.path / "README.md").read_text(encoding="utf-8")


def test_a_run_made_from_a_release_holds_out_the_same_prompts(path: Path, tmp_path: Path) -> None:
    published = open_published(str(path))
    theirs, folder = derive(published, tmp_path / "mine")
    loaded = load_recipe(theirs, ["mixed_policy=null", "stages={low: {where: temperature = 0.6}}"])
    run = Run(folder)
    import_release(run, loaded, published)
    found = release(run, loaded, select(run, loaded), recipe_dir=theirs.parent)
    assert prompts_of(side(found.path, "low", "validation")) == expected()
    assert prompts_of(side(found.path, "low", "train")) == set(NAMES) - expected()


def test_diff_compares_each_side_with_its_own(_made: tuple[Run, Path, Path]) -> None:
    _, split, unsplit = _made
    found = {config.config: config for config in diff(str(unsplit), str(split)).configs}
    assert list(found)[4:6] == ["low-temperature", "low-temperature/validation"]
    held = found["low-temperature/validation"]
    assert (held.rows_a, held.rows_b) == (None, len(expected()))
    train = found["low-temperature"].rows
    assert train is not None
    assert (train.removed, train.added, train.changed, train.moved) == (len(expected()), 0, 0, 0)
    assert diff(str(split), str(split)).is_same
