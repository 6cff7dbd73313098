"""Parts, replacement, foreign files, failing disks; and what identifies a student's weights."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder import store
from builder.config import Student
from builder.errors import TableError, UsageError
from builder.models import model_sha256, resolved_revision, student_id
from builder.schema import TABLES
from builder.store import Run, check_schema, columns_table, file_sha256, write_parquet, write_text


def rejections(*ids: str) -> pa.Table:
    rows = [{"response_id": name, "rule_name": "r", "observed": 1.0, "threshold": None} for name in ids]
    return columns_table("rejections", rows)


def ids(run: Run) -> list[str]:
    return sorted(run.read("rejections", ["response_id"])["response_id"])


def test_parts_are_numbered_by_shard_and_read_together(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.append("rejections", rejections()) is None
    assert run.parts("rejections") == []
    written = [
        run.append("rejections", rejections(name), shard=shard) for name, shard in (("a", 0), ("b", 2), ("c", 0))
    ]
    names = [path.name for path in written if path]
    assert names == ["part-000-00000.parquet", "part-002-00000.parquet", "part-000-00001.parquet"]
    assert ids(run) == ["a", "b", "c"]
    assert run.rows("rejections") == 3
    assert run.ids("rejections") == {"a", "b", "c"}


def test_a_table_never_written_is_empty_in_its_schema(tmp_path: Path) -> None:
    for name, table in TABLES.items():
        frame = Run(tmp_path).read(name)
        assert frame.is_empty()
        assert frame.columns == table.schema.names


def test_a_run_may_lie_in_a_folder_with_a_pattern_in_its_name(tmp_path: Path) -> None:
    run = Run(tmp_path / "a[1]*")
    run.append("rejections", rejections("a"))
    assert ids(run) == ["a"]


def test_replace_leaves_only_the_new_rows(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append("rejections", rejections("a"))
    run.append("rejections", rejections("b"))
    run.replace("rejections", rejections("c"))
    assert ids(run) == ["c"]
    run.replace("rejections", rejections())
    assert ids(run) == []


def test_replace_is_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads meanwhile sees the old rows or the new ones."""
    run = Run(tmp_path)
    run.replace("rejections", rejections("old"))
    seen = []
    rename = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append(ids(run))
        result = rename(self, target)
        seen.append(ids(run))
        return result

    monkeypatch.setattr(Path, "replace", watched)
    run.replace("rejections", rejections("new"))
    assert seen == [["old"], ["new"]]


def test_bytes_are_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    rename, sync = Path.replace, os.fsync
    monkeypatch.setattr(Path, "replace", lambda self, target: (order.append("rename"), rename(self, target))[1])
    monkeypatch.setattr(
        store.os,
        "fsync",
        lambda fd: order.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file") or sync(fd),
    )
    write_parquet(rejections("a"), tmp_path / "part.parquet")
    assert order == ["file", "rename", "folder"]


KILLED = """
import os, signal, sys
from pathlib import Path
from builder.store import Run, columns_table
Path.replace = os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
row = {"response_id": "b", "rule_name": "r", "observed": None, "threshold": None}
getattr(Run(Path(sys.argv[1])), sys.argv[2])("rejections", columns_table("rejections", [row]))
"""


@pytest.mark.parametrize("method", ["append", "replace"])
def test_a_kill_before_the_rename_leaves_the_table_as_it_was(tmp_path: Path, method: str) -> None:
    run = Run(tmp_path)
    run.append("rejections", rejections("a"))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), method], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert ids(run) == ["a"]
    run.append("rejections", rejections("b"))
    assert ids(run) == ["a", "b"]


def append_as(run: Run, *, times: int, first: str) -> str:
    """A process that appends so many parts of one row under shard 0."""
    return f"""
from pathlib import Path
from builder import store
from builder.store import Run, columns_table
{first}
for number in range({times}):
    row = {{"response_id": f"{{__import__('os').getpid()}}-{{number}}", "rule_name": "r", "observed": None}}
    Run(Path({str(run.root)!r})).append("rejections", columns_table("rejections", [row | {{"threshold": None}}]))
"""


NO_LINKS = """
def refuse(*_): raise OSError(95, "Operation not supported")
store.os.link = refuse
"""


@pytest.mark.parametrize("disk", ["", NO_LINKS], ids=["links", "no links"])
def test_two_processes_that_append_under_one_shard_lose_no_part(tmp_path: Path, disk: str) -> None:
    command = [sys.executable, "-c", append_as(Run(tmp_path), times=30, first=disk)]
    for process in [subprocess.Popen(command) for _ in range(2)]:
        assert process.wait(60) == 0
    assert len(ids(Run(tmp_path))) == len(set(ids(Run(tmp_path)))) == 60
    assert [path for path in Run(tmp_path).table_dir("rejections").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("has_links", [True, False])
def test_a_part_that_appears_between_the_look_and_the_write_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    run, seen = Run(tmp_path), []

    def meanwhile(_: Path, part: Path) -> None:
        seen.append(part.name)
        if len(seen) == 1:
            Run(tmp_path).append("rejections", rejections("other"))

    if not has_links:
        monkeypatch.setattr(store.os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    part = run.append("rejections", rejections("mine"), check=meanwhile)
    assert seen == ["part-000-00000.parquet", "part-000-00001.parquet"]
    assert part is not None and part.name == seen[-1]
    assert sorted(ids(run)) == ["mine", "other"]


def test_a_name_that_a_crash_left_taken_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    run.append("rejections", rejections("a"))
    (run.table_dir("rejections") / ".part-000-00001.parquet.taken").touch()
    monkeypatch.setattr(store.os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    part = run.append("rejections", rejections("b"))
    assert part is not None and part.name == "part-000-00002.parquet"


@pytest.mark.parametrize("failing", ["fsync", "write", "mkdir", "text"])
def test_a_disk_that_refuses_is_a_table_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    run = Run(tmp_path)
    run.append("rejections", rejections("a"))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    target = {"fsync": (store.os, "fsync"), "write": (store.pq, "write_table"), "mkdir": (Path, "mkdir")}
    monkeypatch.setattr(*target.get(failing, (store.os, "fsync")), refuse)
    with pytest.raises(TableError, match=r"No space left on device.*untouched"):
        write_text("x", tmp_path / "recipe.yaml") if failing == "text" else run.append("rejections", rejections("b"))
    monkeypatch.undo()
    assert ids(run) == ["a"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["part-000-00000.parquet"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["observed"]), "has nothing where table rejections has double: column observed"),
        (
            lambda t: t.set_column(2, "observed", pa.array(["1"])),
            "has string where table rejections has double: column observed",
        ),
        (
            lambda t: t.append_column("extra", pa.array([1])),
            "has int64 where table rejections has nothing: column extra",
        ),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_foreign_part_is_named_with_its_column(tmp_path: Path, change: Any, message: str, place: int) -> None:
    run = Run(tmp_path)
    tables = [rejections("a"), rejections("b")]
    tables[place] = change(tables[place])
    for number, table in enumerate(tables):
        write_parquet(table, run.table_dir("rejections") / f"part-000-{number:05d}.parquet")
    with pytest.raises(TableError, match=message):
        run.read("rejections")


def test_a_part_that_is_no_parquet_is_a_table_error(tmp_path: Path) -> None:
    path = tmp_path / "part-000-00000.parquet"
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(TableError, match="cannot be read as Parquet"):
        check_schema(TABLES["rejections"], path)


def test_rows_that_do_not_fit_are_named() -> None:
    with pytest.raises(TableError, match="table rejections"):
        columns_table("rejections", [{"response_id": "a", "rule_name": "r", "observed": "many"}])


def test_an_event_after_a_torn_line_stands_on_a_line_of_its_own(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.event("generate", {"replies": 1})
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"time": "20')
    run.event("score", {"scored": 1})
    run.event("select", {})
    lines = (tmp_path / "events.jsonl").read_text("utf-8").split("\n")
    assert lines[1] == '{"time": "20'
    assert [json.loads(lines[place])["step"] for place in (0, 2, 3)] == ["generate", "score", "select"]


def test_remember_keeps_the_recipe_as_given_and_resolved(tmp_path: Path) -> None:
    Run(tmp_path).remember("name: x # mine\n", {"name": "x", "prompts": []})
    assert (tmp_path / "recipe.yaml").read_text() == "name: x # mine\n"
    assert (tmp_path / "resolved.yaml").read_text() == "name: x\nprompts: []\n"


# builder.models


def model_folder(path: Path, weights: bytes = b"weights") -> Path:
    path.mkdir()
    for name, content in (("model.safetensors", weights), ("config.json", b"{}"), ("tokenizer.json", b"{}")):
        (path / name).write_bytes(content)
    return path


def test_a_student_is_its_weights_wherever_they_lie(tmp_path: Path) -> None:
    original = model_folder(tmp_path / "student")
    copy = Path(shutil.copytree(original, tmp_path / "elsewhere"))
    for name in ("training_args.bin", "training.json", "trainer_state.json", "README.md"):
        (copy / name).write_text("what training leaves beside the weights")
    assert model_sha256(copy) == model_sha256(original)
    assert student_id(Student(model=str(copy))) == student_id(Student(model=str(original)))


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_whatever_changes_the_scores_changes_the_student(tmp_path: Path, changed: str) -> None:
    folder = model_folder(tmp_path / "student")
    student = Student(model=str(folder))
    before = student_id(student)
    (folder / changed).write_bytes(b"other")
    assert student_id(student) != before


def test_system_prompt_dtype_model_and_revision_are_other_students() -> None:
    students = [
        Student(model="org/a", revision="1" * 40),
        Student(model="org/a", revision="2" * 40),
        Student(model="org/b", revision="1" * 40),
        Student(model="org/a", revision="1" * 40, system_prompt=None),
        Student(model="org/a", revision="1" * 40, dtype="float32"),
    ]
    assert len({student_id(student) for student in students}) == len(students)


def test_resolved_revision_is_the_declared_one_or_the_hash_of_a_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "student")
    assert resolved_revision("org/a", "1" * 40) == "1" * 40
    assert resolved_revision("org/a", None) is None
    assert resolved_revision(str(folder), None) == model_sha256(folder)


def test_a_folder_without_weights_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="holds no weights"):
        model_sha256(tmp_path)


def test_parts_are_zstd_and_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_parquet(rejections("a", "b"), tmp_path / name)
    assert file_sha256(tmp_path / "one") == file_sha256(tmp_path / "two")
    assert pq.read_metadata(tmp_path / "one").row_group(0).column(0).compression == "ZSTD"
    assert pl.read_parquet(tmp_path / "one").height == 2


NUMBERS = st.none() | st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5)
LOGPROBS = st.none() | st.lists(st.none() | st.floats(width=32, allow_nan=False), max_size=5)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, LOGPROBS), max_size=5))
def test_rows_of_arrays_are_the_same_table_as_rows_of_lists(values: list[tuple[Any, Any, Any]]) -> None:
    names = ("token_ids", "token_end", "logprob")
    lists = [{"response_id": "r", "nonfinite_count": 0, **dict(zip(names, row, strict=True))} for row in values]
    types = {"token_ids": np.int64, "token_end": np.int32, "logprob": np.float32}
    arrays = [
        {name: np.array(cell, types[name]) if isinstance(cell, list) else cell for name, cell in row.items()}
        for row in lists
    ]
    plain = pa.Table.from_pylist(lists, schema=TABLES["logprobs"].schema)
    assert columns_table("logprobs", arrays).equals(plain)
    assert columns_table("logprobs", lists).equals(plain)


def test_a_number_that_does_not_fit_its_column_is_refused() -> None:
    for ids in ([2**40], np.array([2**40])):
        with pytest.raises(TableError, match="logprobs"):
            columns_table("logprobs", [{"response_id": "r", "token_ids": ids, "nonfinite_count": 0}])


def test_token_columns_are_small_and_read_alike_by_everyone(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    number = 20_000
    row = {
        "response_id": "r",
        "token_ids": draw.integers(0, 150_000, number),
        "token_end": np.cumsum(draw.integers(0, 9, number)),
        "logprob": np.where(draw.random(number) < 0.01, np.nan, -draw.exponential(0.3, number)).astype(np.float32),
        "nonfinite_count": 0,
    }
    table = columns_table("logprobs", [row, {"response_id": "s", "nonfinite_count": 1}])
    run = Run(tmp_path)
    path = run.append("logprobs", table)
    assert path is not None
    assert pq.read_table(path).equals(table)
    assert run.read("logprobs").to_arrow().cast(table.schema).equals(table)
    assert duckdb.sql(f"from '{path}'").to_arrow_table().cast(table.schema).equals(table)
    pq.write_table(table, tmp_path / "usual.parquet", compression="zstd", compression_level=3)
    assert path.stat().st_size < 0.75 * (tmp_path / "usual.parquet").stat().st_size
