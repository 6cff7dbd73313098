"""A dataset without a manifest: one stage, rows in file order, and said so."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer import data, plan, train
from trainer.errors import ReleaseError, RenderError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def turns(number: int) -> list[dict[str, str]]:
    answer = f"<think>\none more\n</think>\n\n{number + 1}"
    return [{"role": "user", "content": f"{number} + 1?"}, {"role": "assistant", "content": answer}]


MESSAGES = [{"messages": turns(number), "source": "toy"} for number in range(600)]
PAIRS = [{"prompt": turns(number)[:1], "completion": turns(number)[1:]} for number in range(6)]


def folder(root: Path, rows: list[dict[str, Any]], name: str = "train.jsonl") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def prepare(root: Path, student: Path, output: Path, *overrides: str) -> plan.Job:
    return plan.Job(str(root), str(student), output, "smoke", overrides)


@pytest.mark.parametrize("name", ["train.jsonl", "data/train-00000-of-00001.parquet", "rows.jsonl"])
@pytest.mark.parametrize("rows", [MESSAGES, PAIRS], ids=["messages", "prompt and completion"])
def test_rows_become_one_stage_in_file_order(tmp_path: Path, rows: list[dict[str, Any]], name: str) -> None:
    release = data.resolve(str(folder(tmp_path / "d", rows, name)))
    (stage,) = release.manifest.schedule
    assert (stage.name, stage.init, stage.rows, stage.epochs) == ("train", "base", len(rows), None)
    data.check_stage(release, stage)
    found = [row for batch in data.read(release, "train") for row in batch]
    assert [row["prompt"] + row["completion"] for row in found] == [turns(number) for number in range(len(rows))]
    assert [row["position"] for row in found] == sorted({row["position"] for row in found})
    assert found[-1]["response_id"] == f"number {len(rows)}"


def test_a_plain_dataset_is_trained_and_said_to_be_one(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "d", MESSAGES[:8])
    folder(root, MESSAGES[8:10], "test.jsonl")
    job = prepare(root, student, tmp_path / "out")
    job.quiet = False
    (finished,) = train.run(job)
    assert capsys.readouterr().err.count("stage train: this dataset has no manifest: one stage") == 1
    assert (tmp_path / "out" / "final").readlink() == Path("1-train")
    (tmp_path / "rows").mkdir()
    rows = {"train": plan.rendered(job, job.asked[0], tmp_path / "rows")[0][1]}
    (line,) = plan.report(job, rows)["stages"]
    assert line["state"] == "done" and line["rows"] == 8 and "no manifest" in line["warnings"][0]
    assert finished.trained and not train.run(job)[0].trained


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "data/rows.parquet"])
def test_other_rows_are_another_stage(tmp_path: Path, name: str) -> None:
    hashes = []
    for count in (8, 7):
        (stage,) = data.resolve(str(folder(tmp_path / "d", MESSAGES[:count], name))).manifest.schedule
        hashes.append(stage.rowset_hash)
    assert hashes[0] != hashes[1]
    (tmp_path / "d" / ".git").mkdir()
    (tmp_path / "d" / ".git" / "HEAD").write_text("main")
    assert data.resolve(str(tmp_path / "d")).manifest.schedule[0].rowset_hash == hashes[1]


def test_messages_are_trained_whatever_a_column_prompt_says(tmp_path: Path) -> None:
    release = data.resolve(
        str(folder(tmp_path / "d", [row | {"prompt": "1 + 1?", "text": "x"} for row in MESSAGES[:3]]))
    )
    data.check_stage(release, release.manifest.schedule[0])
    found = [row for batch in data.read(release, "train") for row in batch]
    assert [row["prompt"] + row["completion"] for row in found] == [turns(number) for number in range(3)]


def test_messages_may_have_keys_of_their_own(tmp_path: Path) -> None:
    call = {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
    }
    asked = [turns(1)[0], call, {"role": "tool", "name": "add", "content": "2"}]
    release = data.resolve(str(folder(tmp_path / "d", [{"messages": [*asked, turns(1)[1]]}, {"messages": turns(2)}])))
    data.check_stage(release, release.manifest.schedule[0])
    first, second = (row for batch in data.read(release, "train") for row in batch)
    assert (first["prompt"], first["completion"]) == (asked, turns(1)[1:])
    assert second["prompt"] + second["completion"] == turns(2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "1 + 1?", "completion": "2"}], r"prompt: string, completion: string.*lists of \{role, content\}"),
        ([{"text": "1 + 1 = 2"}], "prompt: missing, completion: missing"),
        ([{"messages": ["1 + 1?"]}], "messages: list"),
    ],
)
def test_columns_of_another_kind_are_refused(
    student: Path, tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ReleaseError, match=message):
        prepare(folder(tmp_path / "d", rows), student, tmp_path / "out")


def test_a_conversation_that_ends_with_the_user_is_refused_by_number(student: Path, tmp_path: Path) -> None:
    root = folder(tmp_path / "d", [MESSAGES[0], {"messages": turns(1)[:1] * 2, "source": "toy"}])
    with pytest.raises(RenderError, match="Reply number 2 is not a prompt and one assistant message"):
        train.run(prepare(root, student, tmp_path / "out"))


@pytest.mark.parametrize("name", [None, "test.jsonl", "notes.txt"])
def test_a_folder_without_rows_to_train_on_is_refused(tmp_path: Path, name: str | None) -> None:
    root = tmp_path / "d"
    root.mkdir()
    if name:
        folder(root, MESSAGES[:2] if name.startswith("test") else [], name)
    with pytest.raises(ReleaseError, match=r"is not a release, nor can it be read as a plain dataset"):
        data.resolve(str(root))


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", MESSAGES[:3])
    (root / "train.jsonl").write_text('{"messages": [', encoding="utf-8")
    with pytest.raises(ReleaseError, match="nor can it be read as a plain dataset"):
        data.resolve(str(root))


def test_held_out_rows_need_a_release(student: Path, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"has no data/train/validation-\*.parquet"):
        prepare(folder(tmp_path / "d", MESSAGES[:3]), student, tmp_path / "out", "defaults.eval_strategy=epoch")
