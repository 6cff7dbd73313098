"""Releases that somebody published: queried, and selected anew, without a request."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from loopback_hub import Hub, hub
from release_toys import STUDENT, contents, fill, recipe, rows, selected, whole

from builder import import_run
from builder.config import Recipe, Selection, Student
from builder.console import Reporter
from builder.errors import ReleaseError, SqlError, UsageError
from builder.import_command import import_given, queried, recipe_of, split_arguments
from builder.import_release import derive, import_release
from builder.import_result import Declared
from builder.models import student_id
from builder.published import database, is_dataset, open_published
from builder.recipe import load_recipe
from builder.release import release
from builder.resources import resource
from builder.selection import select
from builder.sqlrun import query
from builder.store import Run, columns_table, file_sha256
from builder.verify import verify


@pytest.fixture(scope="module")
def _theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run, result = selected(tmp_path_factory.mktemp("theirs") / "toy", ("p", "q"))
    return release(run, recipe(), result).path


@pytest.fixture
def theirs(_theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release of one's own copy; databases are made in a cache of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(_theirs, tmp_path / "v1"))


def mine(theirs: Path, root: Path, *overrides: str) -> tuple[Run, Recipe, Path]:
    """A run made from the release, with their recipe under these overrides."""
    published = open_published(str(theirs))
    path, folder = derive(published, root)
    loaded = load_recipe(path, list(overrides))
    run = Run(folder)
    import_release(run, loaded, published)
    return run, loaded, path.parent


def change_manifest(release_dir: Path, **changes: Any) -> None:
    path = release_dir / ".builder/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_config_is_a_table_and_candidates_are_queried(theirs: Path) -> None:
    path = database(open_published(str(theirs)))
    sql = "select rejected_by, count(*) as n from candidates group by all order by n"
    assert query(path, sql).to_pylist() == [{"rejected_by": ["answer_wrong"], "n": 2}, {"rejected_by": [], "n": 6}]
    both = "select count(*) as n from low_temperature join high_temperature using (prompt_id) join stg_candidates"
    assert query(path, f"{both} using (prompt_id)").to_pylist() == [{"n": 8}]


def test_a_database_is_made_once_for_the_same_files(theirs: Path) -> None:
    first = database(open_published(str(theirs)))
    before = first.stat().st_mtime_ns
    assert database(open_published(str(theirs))) == first and first.stat().st_mtime_ns == before
    assert [one.name for one in first.parent.iterdir()] == [first.name]


@pytest.mark.parametrize("sql", ["select * from read_text('/etc/passwd')", "select 1; select 2", "attach ':memory:'"])
def test_queries_on_published_data_stay_in_the_sandbox(theirs: Path, sql: str) -> None:
    with pytest.raises(SqlError):
        query(database(open_published(str(theirs))), sql)


def test_an_altered_file_is_refused_before_anything_reads_it(theirs: Path) -> None:
    path = theirs / "data/candidates/train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ReleaseError, match=r"candidates.* was altered: sha256"):
        database(open_published(str(theirs)))


def test_a_manifest_that_leads_outside_is_refused(theirs: Path) -> None:
    secret = theirs.parent / "secret.parquet"
    shutil.copy(theirs / "data/candidates/train-00000-of-00001.parquet", secret)
    facts = {"sha256": file_sha256(secret), "bytes": secret.stat().st_size, "rows": 8}
    change_manifest(theirs, files=[{"path": ".builder/sql/rules/../../../secret.parquet", **facts}])
    published = open_published(str(theirs))
    with pytest.raises(ReleaseError, match="lies outside"):
        published.get(published.manifest.files)
    change_manifest(theirs, recipe_name="../../up")
    with pytest.raises(ReleaseError, match="cannot name a folder"):
        derive(open_published(str(theirs)), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"format": 2}, "manifest format 2; this version reads 1"), ({"files": None}, "is not a manifest .files")],
)
def test_a_manifest_of_another_kind_is_named(theirs: Path, changes: dict[str, Any], message: str) -> None:
    change_manifest(theirs, **changes)
    with pytest.raises(ReleaseError, match=message):
        open_published(str(theirs))


def test_names_of_datasets_are_told_from_recipes(theirs: Path, tmp_path: Path) -> None:
    assert is_dataset(str(theirs)) and is_dataset("org/name@v3")
    assert not is_dataset("gsm8k") and not is_dataset(str(tmp_path)) and not is_dataset("recipes/mine.yaml")
    with pytest.raises(UsageError, match="neither the folder of a release nor"):
        open_published("org/name")


def test_their_selection_comes_out_again_from_their_candidates(theirs: Path, tmp_path: Path) -> None:
    run, loaded, folder = mine(theirs, tmp_path / "run")
    result = select(run, loaded, recipe_dir=folder)
    made = release(run, loaded, result, recipe_dir=folder)
    for stage in ("low-temperature", "high-temperature"):
        same = [name for name in rows(theirs, stage).column_names if name != "sentence_count"]  # literal in the toys
        assert rows(made.path, stage).select(same).equals(rows(theirs, stage).select(same))


def test_another_selection_is_a_new_release_that_names_its_source(theirs: Path, tmp_path: Path) -> None:
    run, loaded, folder = mine(theirs, tmp_path / "run", "selection.rules=[]", "selection.selector=longest")
    result = select(run, loaded, recipe_dir=folder)
    manifest = whole(release(run, loaded, result, recipe_dir=folder).path)
    parent = open_published(str(theirs)).manifest.build_id
    assert {"source": "toy-v1", "revision": parent, "license": "mit", "rows": 2} in manifest["prompts"]
    assert (result.survivors, manifest["calls"]["attempts"], manifest["repo"]) == (8, 0, None)
    assert not (tmp_path / "run/journal").exists()


def test_replies_without_released_logprobs_do_not_claim_any(theirs: Path, tmp_path: Path) -> None:
    run, *_ = mine(theirs, tmp_path / "run")
    assert run.read("responses")["logprobs_mode"].null_count() == 8
    assert run.read("responses")["received_at"].null_count() == 8


def test_released_logprobs_come_along(tmp_path: Path) -> None:
    their_run, result = selected(tmp_path / "toy", ("p",), release={"logprobs": True, "license": "mit"})
    made = release(their_run, recipe(release={"logprobs": True, "license": "mit"}), result)
    run, *_ = mine(made.path, tmp_path / "run")
    kept = set(pq.read_table(made.path / "data/logprobs")["response_id"].to_pylist())
    told = run.read("responses").filter(pl.col("logprobs_mode") == "raw")
    assert run.ids("logprobs") == kept == set(told["response_id"]) and len(kept) == 2


def test_a_second_import_of_a_release_adds_nothing(theirs: Path, tmp_path: Path) -> None:
    run, loaded, _ = mine(theirs, tmp_path / "run")
    again = import_release(run, loaded, open_published(str(theirs)))
    assert (again.replies, again.repeated, again.prompts) == (0, 8, 0)
    counts = {name: run.rows(name) for name in ("prompts", "responses", "scores", "verdicts")}
    assert counts == {"prompts": 2, "responses": 8, "scores": 8, "verdicts": 8}


def test_the_students_system_prompt_is_no_part_of_the_question(theirs: Path, tmp_path: Path) -> None:
    run, *_ = mine(theirs, tmp_path / "run")
    assert {message["role"] for row in run.read("prompts")["messages"] for message in row} == {"user"}


def test_an_import_that_dies_while_it_moves_is_completed_by_a_rerun(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(run: Run, scratch: Run, tables: Sequence[str]) -> None:
        import_run.adopt(run, scratch, [name for name in tables if name != "responses"])
        raise KeyboardInterrupt

    monkeypatch.setattr("builder.import_release.adopt", dies)
    with pytest.raises(KeyboardInterrupt):
        mine(theirs, tmp_path / "run")
    monkeypatch.undo()
    run, loaded, folder = mine(theirs, tmp_path / "run")
    assert (run.rows("scores"), run.rows("verdicts")) == (8, 8)
    assert select(run, loaded, recipe_dir=folder).survivors == 6


def test_scores_of_another_student_are_kept_apart_and_named(theirs: Path, tmp_path: Path) -> None:
    published = open_published(str(theirs))
    other = recipe(student=Student(model="org/other", revision="6" * 40))
    run = Run(tmp_path / "run")
    found = import_release(run, other, published)
    assert run.ids("scores", "student_id") == {student_id(STUDENT)}
    assert "the scores are those of student 'org/student'" in found.notes[0]
    assert select(run, other.model_copy(update={"selection": Selection(rules=["score_missing"])})).survivors == 0


def test_published_verdicts_decide_until_ones_own_are_there(theirs: Path, tmp_path: Path) -> None:
    run, loaded, folder = mine(theirs, tmp_path / "run")
    assert select(run, loaded, recipe_dir=folder).survivors == 6  # two are wrong by their literal verdict
    assert verify(run).computed == 8
    assert select(run, loaded, recipe_dir=folder).survivors == 8  # all of them say 3, which is the gold


def test_their_recipe_loses_what_could_harm(theirs: Path, tmp_path: Path) -> None:
    path = theirs / ".builder/recipe.yaml"
    hostile = path.read_text().replace(
        "teacher:\n", "teacher:\n  endpoints: [{url: 'http://evil.example/v1', api_key_env: AWS_SECRET}]\n"
    )
    path.write_text(hostile)
    manifest = json.loads((theirs / ".builder/manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == ".builder/recipe.yaml":
            entry |= {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    change_manifest(theirs, files=manifest["files"])
    derived, _ = derive(open_published(str(theirs)), tmp_path / "run")
    loaded = load_recipe(derived)
    assert loaded.require_teacher().endpoints == [] and loaded.release.repo is None
    assert "evil" not in derived.read_text()


def test_a_recipe_that_was_edited_stays(theirs: Path, tmp_path: Path) -> None:
    published = open_published(str(theirs))
    path, _ = derive(published, tmp_path / "run")
    path.write_text(path.read_text().replace("keep: 1", "keep: 2"))
    assert load_recipe(derive(published, tmp_path / "run")[0]).selection.keep == 2


def test_their_own_sql_comes_along_and_todays_is_taken_from_the_package(tmp_path: Path) -> None:
    (tmp_path / "sql/rules").mkdir(parents=True)
    rule = resource("sql", "rules", "answer_wrong.sql").read_text("utf-8").replace("answer_wrong", "answer_is_wrong")
    (tmp_path / "sql/rules/answer_is_wrong.sql").write_text(rule)
    changes = {"selection": Selection(rules=["response_truncated", "answer_is_wrong"])}
    run = fill(Run(tmp_path / "toy"), ("p",))
    result = select(run, recipe(**changes), recipe_dir=tmp_path)
    made = release(run, recipe(**changes), result, recipe_dir=tmp_path)
    path, folder = derive(open_published(str(made.path)), tmp_path / "run")
    assert [one.name for one in (folder / "sql").rglob("*.sql")] == ["answer_is_wrong.sql"]
    ours = Run(folder)
    import_release(ours, load_recipe(path), open_published(str(made.path)))
    assert select(ours, load_recipe(path), recipe_dir=folder).survivors == result.survivors == 3


def test_questions_keep_their_first_source_as_far_as_the_release_says(tmp_path: Path) -> None:
    run = fill(Run(tmp_path / "toy"), ("p", "q"))
    prompts = run.read("prompts").to_dicts()
    prompts[1]["sources"] = [{"source": "other.jsonl", "revision": "r", "license": "cc0"}]
    run.replace("prompts", columns_table("prompts", prompts))
    made = release(run, recipe(), select(run, recipe()))
    ours, *_ = mine(made.path, tmp_path / "run")
    found = dict(ours.read("prompts", ["prompt_id", "sources"]).iter_rows())
    parent = {"source": "toy-v1", "revision": made.manifest["build_id"], "license": "mit"}
    assert found["q"] == [{"source": "other.jsonl", "revision": "r", "license": "cc0"}, parent]
    assert found["p"] == [{"source": "toy.jsonl", "revision": None, "license": "mit"}, parent]


def test_candidates_of_another_version_are_refused_by_column(theirs: Path, tmp_path: Path) -> None:
    path = theirs / "data/candidates/train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["verdict"]), path)
    files = [{"path": path.relative_to(theirs).as_posix(), "sha256": file_sha256(path)}]
    change_manifest(theirs, files=[files[0] | {"bytes": path.stat().st_size, "rows": 8}])
    with pytest.raises(ReleaseError, match="has nothing where config candidates has string: column verdict"):
        import_release(Run(tmp_path / "run"), recipe(), open_published(str(theirs)))
    assert not (tmp_path / "run/tables").exists()


READ = """
import sys
from builder import errors, published, sqlrun
for name in sys.argv[1:]:
    try:
        found = published.open_published(name)
        rows = sqlrun.query(published.database(found), "select count(*) as n from candidates").to_pylist()
        print(found.source, found.revision, rows)
    except errors.BuilderError as error:
        print(error)
"""


def test_select_takes_a_recipe_or_theirs(theirs: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    path, changes, run = recipe_of("selection.keep=2", ["selection.rules=[]"], root, str(theirs))
    assert (path, changes, run) == (str(root / "recipe.yaml"), ["selection.keep=2", "selection.rules=[]"], root)
    assert recipe_of("gsm8k", None, None, str(theirs)) == ("gsm8k", [], None)
    for given in ((None, None), ("selection.keep=2", None), ("gsm8k", ["math"])):
        with pytest.raises(UsageError, match="needs one RECIPE, or --from"):
            recipe_of(*given, None, None)


def test_a_query_has_the_parameters_of_their_selection(theirs: Path) -> None:
    path, params = queried(str(theirs))
    assert query(path, "select getvariable('teacher_margin') as m", params).to_pylist() == [{"m": 0.2}]


def test_what_exists_is_a_file_even_with_an_equals_sign(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.jsonl"
    odd.write_text("")
    assert split_arguments([str(odd), "x.jsonl", "name=y"]) == ([str(odd), "x.jsonl"], ["name=y"])


@pytest.mark.parametrize(
    ("given", "name", "declared", "message"),
    [
        ([], "dasd", Declared(), "needs files and their --format .given: no file, dasd"),
        (["a.jsonl"], None, Declared(), "given: a.jsonl, no format"),
        (["v1", "v2"], "release", Declared(), "takes one dataset"),
        (["v1"], "release", Declared(temperature=0.6), "no further option"),
    ],
)
def test_an_import_that_cannot_be_meant_is_refused(
    tmp_path: Path, given: list[str], name: str | None, declared: Declared, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        import_given(Run(tmp_path), recipe(), Reporter(), given, name, declared)


def from_hub(state: Hub, home: Path, *datasets: str) -> list[str]:
    """What reading these datasets says, line by line, in a process of its own: addresses are read at import."""
    command = [sys.executable, "-c", READ, *datasets]
    environment = state.environment(home)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_published_version_is_read_at_its_commit(theirs: Path, tmp_path: Path) -> None:
    with hub() as state:
        repo = state.add("org/toy", contents(theirs), tag="v1")
        read = f"hf://datasets/org/toy {repo.tags['v1']} [{{'n': 8}}]"
        first, missing = from_hub(state, tmp_path / "home", "org/toy@v1", "org/toy@v2")
        assert first == read and "README.md" not in state.asked()
        assert missing.startswith("Cannot get dataset org/toy at v2: ")
        repo.put({".builder/manifest.json": b"{}"})
        repo.tag("v2", "main")
    # With the Hub away, the version that was read serves, at the commit that it stood for, and no other does.
    again, other = from_hub(state, tmp_path / "home", "org/toy@v1", "org/toy@v2")
    assert again == read and other.startswith("Cannot get dataset org/toy at v2: ")
