"""A release is what its manifest says, or it is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from trainer_toys import edit_manifest, reply, stage_rows, write_manifest, write_release

from trainer import data, schedule
from trainer.errors import ReleaseError

LOW = "data/low-temperature/train-00000-of-00001.parquet"


def check(root: Path) -> data.Release:
    release = data.resolve(str(root))
    for stage in schedule.stages(release.manifest.schedule):
        data.check_stage(release, stage)
    return release


def test_a_release_is_read_in_file_order(release: Path) -> None:
    found = check(release)
    rows = [row for batch in data.read(found, "low-temperature") for row in batch]
    assert [row["response_id"] for row in rows] == [f"r{i}" for i in range(12)]
    assert [row["position"] for row in rows] == list(range(11, -1, -1))
    assert found.manifest.version == "v1" and found.commit is None


def test_several_files_are_read_in_order(tmp_path: Path) -> None:
    root = write_release(tmp_path / "v1", {"a": stage_rows(0, 4)})
    folder = root / "data" / "a"
    table = pq.read_table(folder / "train-00000-of-00001.parquet")
    (folder / "train-00000-of-00001.parquet").unlink()
    for i in (1, 0):
        pq.write_table(table.slice(2 * i, 2), folder / f"train-{i:05}-of-00002.parquet")
    schedule_ = json.loads((root / ".builder/manifest.json").read_text())["schedule"]
    write_manifest(root, "v1", schedule_)
    rows = [row["response_id"] for batch in data.read(check(root), "a") for row in batch]
    assert rows == ["r0", "r1", "r2", "r3"]


def test_an_altered_file_is_refused_with_both_hashes(release: Path) -> None:
    path = release / LOW
    content = bytearray(path.read_bytes())
    expected = data.sha256_of(path)
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(ReleaseError) as error:
        data.resolve(str(release))
    for part in (LOW, expected, data.sha256_of(path), "Get the release again"):
        assert part in str(error.value)


@pytest.mark.parametrize("path", ["data/candidates/train-00000-of-00001.parquet", "README.md"])
def test_files_that_no_stage_reads_are_checked_too(release: Path, path: str) -> None:
    (release / path).write_bytes(b"changed")
    with pytest.raises(ReleaseError, match="was altered"):
        data.resolve(str(release))


def set_key(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        node: Any = manifest
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_key("format", value=2), "not a manifest that this version trains on .format: input should be 1"),
        (set_key("files", value="x"), "not a manifest .* .files: "),
        (set_key("files", 0, "path", value="../../etc/passwd"), "not a file in"),
        (set_key("files", 0, "path", value="/etc/passwd"), "not a file in"),
        (set_key("files", 0, "path", value="//etc/passwd"), "not a file in"),
        (lambda manifest: manifest.pop("format"), "not a manifest .* .format: field required"),
        (set_key("schedule", value=[]), "not a manifest .* .schedule: list should have at least 1 item"),
        (set_key("schedule", 0, "stage", value="a/../../../b"), "not a manifest .* .schedule.0.stage: "),
        (set_key("schedule", 0, "stage", value=""), "not a manifest .* .schedule.0.stage: "),
        (set_key("schedule", 0, "stage", value="a\nb"), "not a manifest .* .schedule.0.stage: "),
        (set_key("schedule", 0, "stage", value="base"), "Stage 'base': name taken"),
        (set_key("schedule", 0, "epochs", value=0), "not a manifest .* .schedule.0.epochs: "),
        (set_key("files", 0, "path", value="data/gone.parquet"), "gone.parquet, which is not a file"),
        (set_key("files", 1, "sha256", value="0"), "was altered: sha256 .*, the manifest expects 0"),
        (set_key("schedule", 0, "kind", value="dpo"), "not a manifest .* .schedule.0.kind: "),
        (set_key("rollout", value={"base": 1}), "not a manifest .* .rollout.base: "),
        (set_key("schedule", 0, "rows", value=5), "holds 12 rows, the schedule says 5"),
        (set_key("schedule", 0, "config", value="nothing"), "holds 0 rows"),
    ],
)
def test_a_manifest_that_does_not_hold_is_refused(
    release: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit_manifest(release, change)
    with pytest.raises(ReleaseError, match=message):
        check(release)


def test_no_manifest_means_no_release(release: Path) -> None:
    (release / ".builder/manifest.json").write_text("[]")
    with pytest.raises(ReleaseError, match="is not a manifest"):
        data.resolve(str(release))
    (release / ".builder/manifest.json").unlink()
    with pytest.raises(ReleaseError, match="is not a release"):
        data.resolve(str(release))


def without(column: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != column} for row in stage_rows(0, 2)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds 0 rows"),
        (without("completion"), "completion: missing"),
        (without("position"), "position: missing"),
        ([reply(0, 0, prompt="1 + 1?")], "prompt: string"),
        ([reply(0, "0")], "position: string"),
    ],
)
def test_a_stage_without_rows_or_with_wrong_columns_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ReleaseError, match=message):
        check(write_release(tmp_path / "v1", {"a": rows}))


@pytest.mark.parametrize("dataset", ["org/name", "nowhere/at/all@v1", "nothing"])
def test_a_dataset_without_version_is_refused(dataset: str) -> None:
    with pytest.raises(ReleaseError, match="neither a release directory nor"):
        data.resolve(dataset)


def test_an_unreachable_hub_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ReleaseError, match=r"Cannot get dataset org/name at v1: .* Check the name"):
        data.resolve("org/name@v1")
