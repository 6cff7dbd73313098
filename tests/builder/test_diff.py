"""`builder diff`: what two releases do not share, counted exactly, from literal rows; exit codes; the Hub."""

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from loopback_hub import Hub, hub
from release_toys import contents, fill, recipe, selected
from typer.testing import CliRunner

from builder.config import Selection
from builder.diff import ConfigDiff, Diff, diff
from builder.diff_command import diff as command
from builder.diff_rows import compare_rows
from builder.errors import ReleaseError, UsageError
from builder.release import release
from builder.selection import select
from builder.store import Run, file_sha256

LOW = "low-temperature"
Change = Callable[[pl.DataFrame], pl.DataFrame]


@pytest.fixture(scope="module")
def _toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run, result = selected(tmp_path_factory.mktemp("toy") / "runs" / "toy")
    return release(run, recipe(), result).path


@pytest.fixture(scope="module")
def _loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy release without answer_wrong, at another margin, under another license, of other prompts."""
    loose = recipe(
        selection=Selection(rules=["response_truncated"], params={"teacher_margin": 0.1}),
        release={"license": "cc0-1.0"},
    )
    run = fill(Run(tmp_path_factory.mktemp("loose") / "toy"), ("p", "q", "t"))
    return release(run, loose, select(run, loose)).path


@pytest.fixture
def a(_toy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_toy, tmp_path / "a"))


@pytest.fixture
def b(_toy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_toy, tmp_path / "b"))


def data_file(root: Path, config: str = LOW) -> Path:
    return root / f"data/{config}/train-00000-of-00001.parquet"


def manifest_of(root: Path, **changes: Any) -> dict[str, Any]:
    """The manifest, with these changes from now on."""
    path = root / ".builder/manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(manifest))
    return manifest


def listed(root: Path) -> None:
    """Let the manifest list the files that are there."""
    files = [
        path for path in sorted(root.rglob("*")) if path.is_file() and path.name not in ("manifest.json", "README.md")
    ]
    entries = [
        {
            "path": path.relative_to(root).as_posix(),
            "sha256": file_sha256(path),
            "bytes": path.stat().st_size,
            "rows": pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None,
        }
        for path in files
    ]
    manifest_of(root, files=entries)


def change_rows(root: Path, change: Change, config: str = LOW) -> None:
    path = data_file(root, config)
    changed = change(pl.read_parquet(path)).to_arrow()
    pq.write_table(changed, path, compression="snappy")
    listed(root)


def put(column: str, value: Any, *ids: str) -> Change:
    return lambda rows: rows.with_columns(
        pl.when(pl.col("response_id").is_in(ids)).then(pl.lit(value)).otherwise(pl.col(column))
        .cast(rows.schema[column]).alias(column)
    )  # fmt: skip


def config_of(found: Diff, name: str = LOW) -> ConfigDiff:
    return next(config for config in found.configs if config.config == name)


def counts(found: ConfigDiff) -> tuple[int, int, int, int, int]:
    assert found.rows is not None
    return found.rows.unchanged, found.rows.added, found.rows.removed, found.rows.changed, found.rows.moved


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of builder diff on a terminal of 80 columns."""
    app = typer.Typer()
    app.command()(command)
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(one) for one in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_a_release_is_the_same_as_itself(a: Path, b: Path) -> None:
    code, out, _ = run(a, b)
    assert code == 0
    assert "Same: rows, schema, schedule, funnel, recipe, SQL and licenses." in out
    assert "at most 0 B in 0 files" in out


def test_another_build_of_the_same_rows_is_the_same(a: Path, tmp_path: Path) -> None:
    again = fill(Run(tmp_path / "again"), ("s", "q", "p"), backwards=True)
    assert diff(str(a), str(release(again, recipe(), select(again, recipe())).path)).is_same


def test_the_same_rows_in_other_files_are_the_same_but_downloaded(a: Path, b: Path) -> None:
    change_rows(b, lambda rows: rows.reverse())
    found = diff(str(a), str(b))
    assert found.is_same and counts(config_of(found)) == (3, 0, 0, 0, 0)
    assert found.download["files"] == 1 and found.download["bytes"] == data_file(b).stat().st_size
    code, out, _ = run(a, b)
    assert code == 0 and "low-temperature: the same rows in other files" in out


def test_rows_added_removed_and_changed_are_counted(a: Path, b: Path) -> None:
    def change(rows: pl.DataFrame) -> pl.DataFrame:
        new = rows.filter(pl.col("response_id") == "s-0.6-1").with_columns(response_id=pl.lit("new"))
        return pl.concat(
            [rows.filter(pl.col("response_id") != "q-0.6-1"), new, new.with_columns(response_id=pl.lit("n"))]
        )

    change_rows(b, change)
    change_rows(b, put("domain", "physics", "p-0.6-1"))
    found = diff(str(a), str(b))
    assert not found.is_same and counts(config_of(found)) == (1, 2, 1, 1, 0)
    assert config_of(found, "high-temperature").rows is None
    code, out, _ = run(a, b)
    assert code == 1 and "Different: config low-temperature." in out
    assert ["low-temperature", "3", "4", "2", "1", "1", "0"] in [line.split() for line in out.splitlines()]
    groups = [row for row in config_of(found).rows.groups if row["column"] == "domain"]  # type: ignore[union-attr]
    assert groups == [
        {"column": "domain", "value": "math", "rows_a": 3, "rows_b": 3},
        {"column": "domain", "value": "physics", "rows_a": 0, "rows_b": 1},
    ]


def test_the_changed_column_is_named_with_its_shift(a: Path, b: Path) -> None:
    change_rows(b, put("mean_delta", 0.55, "p-0.6-1", "s-0.6-1"))
    rows = config_of(diff(str(a), str(b))).rows
    assert rows is not None and rows.columns == {"mean_delta": 2} and rows.changed == 2
    shift = next(row for row in rows.numbers if row["column"] == "mean_delta")
    assert shift["mean_b"] == pytest.approx(0.45) and (shift["median_a"], shift["median_b"]) == (0.25, 0.55)
    out = run(a, b)[1]
    assert "low-temperature, rows by changed column: mean_delta 2" in out
    assert ["mean_delta", "0.25", "0.45", "0.25", "0.55"] in [line.split() for line in out.splitlines()]


def test_another_order_is_no_other_content(a: Path, b: Path) -> None:
    change_rows(b, lambda rows: rows.with_columns(position=(pl.col("position") + 1) % 3))
    change_rows(b, put("prefix_chars", 7, "p-0.6-1"))
    rows = config_of(found := diff(str(a), str(b))).rows
    assert rows is not None and counts(config_of(found)) == (0, 0, 0, 1, 2)
    assert rows.columns == {"position": 3, "prefix_chars": 1}


def test_a_column_that_only_one_side_has_is_schema_and_changes_no_row(a: Path, b: Path) -> None:
    change_rows(
        b, lambda rows: rows.drop("source").with_columns(judged=pl.lit(1.5), position=pl.col("position").cast(pl.Int64))
    )
    found = diff(str(a), str(b))
    rows = config_of(found).rows
    assert not found.is_same and rows is not None and counts(config_of(found)) == (3, 0, 0, 0, 0)
    assert {(row["column"], row["type_a"], row["type_b"]) for row in rows.schema} == {
        ("source", "VARCHAR", None), ("judged", None, "DOUBLE"), ("position", "INTEGER", "BIGINT")
    }  # fmt: skip
    out = run(a, b)[1]
    assert "column judged added (DOUBLE)" in out and "column source removed (VARCHAR)" in out
    assert "column position was INTEGER, is BIGINT" in out


def test_recipe_and_sql_are_unified_diffs_and_the_funnel_stands_side_by_side(_toy: Path, _loose: Path) -> None:
    found = diff(str(_toy), str(_loose))
    texts = {row["path"]: row["diff"] for row in found.texts}
    assert set(texts) == {".builder/recipe.yaml", ".builder/sql/rules/answer_wrong.sql"}
    assert texts[".builder/sql/rules/answer_wrong.sql"].startswith(
        "--- a/.builder/sql/rules/answer_wrong.sql\n+++ /dev/null\n@@"
    )
    rules = {row["rule"]: (row["a"], row["b"]) for row in found.funnel}
    assert rules["answer_wrong"] == ({"breaks": 3, "breaks_alone": 3, "tokens": 63}, None)
    assert {"field": "license", "a": "mit", "b": "cc0-1.0"} in found.fields
    code, out, _ = run(_toy, _loose)
    lines = out.splitlines()
    assert code == 1 and "-    teacher_margin: 0.2" in lines and "+    teacher_margin: 0.1" in lines
    assert ["answer_wrong", "3", "–", "3", "–", "63", "–"] in [line.split() for line in lines]
    assert ["license", "mit", "cc0-1.0"] in [line.split() for line in lines]


def test_b_against_a_mirrors_a_against_b(_toy: Path, _loose: Path) -> None:
    there, back = diff(str(_toy), str(_loose), 9), diff(str(_loose), str(_toy), 9)
    assert [config.config for config in there.configs] == [config.config for config in back.configs]
    for one, other in zip(there.configs, back.configs, strict=True):
        same, added, removed, changed, moved = counts(one)
        assert counts(other) == (same, removed, added, changed, moved) and added + removed > 0
        assert one.rows is not None and other.rows is not None and one.rows.columns == other.rows.columns
        sides = {"a": "b", "b": "a"}
        mirrored = [row | {"only_in": sides[row["only_in"]]} for row in one.rows.samples]
        assert sorted(map(str, mirrored)) == sorted(map(str, other.rows.samples))
    assert [(row["rule"], row["a"], row["b"]) for row in there.funnel] == [
        (row["rule"], row["b"], row["a"]) for row in sorted(back.funnel, key=lambda row: row["a"] is None)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_counts_are_those_of_a_plain_count_of_rows(tmp_path: Path, seed: int) -> None:
    """Repeated keys, nulls and lists included: rows equal in both are unchanged, the rest of a key pairs off."""
    chance = random.Random(seed)

    def rows() -> list[tuple[str | None, int | None, tuple[str | None, ...]]]:
        return [
            (chance.choice([None, "", "k1", "k2", "k3", "k4"]), chance.choice([None, 0, 1]),
             chance.choice([(), (None,), ("",), ("NULL",), ("x", None)]))
            for _ in range(chance.randint(0, 30))
        ]  # fmt: skip

    sides = [rows(), rows()]
    for name, side in zip("ab", sides, strict=True):
        keys, values, lists = ([row[place] for row in side] for place in range(3))
        columns = {
            "response_id": pa.array(keys, pa.string()),
            "value": pa.array(values, pa.int32()),
            "words": pa.array([list(one) for one in lists], pa.list_(pa.string())),
        }
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    one, two = map(Counter, sides)
    left = [Counter(key or "" for key, *_ in only.elements()) for only in (one - two, two - one)]
    paired = (left[0] & left[1]).total()
    files = [[tmp_path / "a.parquet"], [tmp_path / "b.parquet"]]
    found, back = compare_rows(*files, 0), compare_rows(*files[::-1], 0)
    assert (back.unchanged, back.removed, back.added, back.columns) == (
        found.unchanged, found.added, found.removed, found.columns
    )  # fmt: skip
    assert (found.unchanged, found.added, found.removed, found.changed) == (
        (one & two).total(), left[1].total() - paired, left[0].total() - paired, paired
    )  # fmt: skip


def test_pairs_are_named_by_their_texts_and_foreign_rows_by_themselves(tmp_path: Path) -> None:
    def written(name: str, **columns: list[Any]) -> list[Path]:
        pq.write_table(pa.table(columns), tmp_path / name)
        return [tmp_path / name]

    pairs = {"chosen": ["yes", "yes", "4"], "rejected": ["no", "No", "5"]}
    a = written("a", **pairs, gap=[0.5, 0.25, 1.0])
    found = compare_rows(a, written("b", **pairs, gap=[0.5, 0.75, 1.0]), 0)
    assert found.key == ("chosen", "rejected") and (found.unchanged, found.columns) == (2, {"gap": 1})
    shifted = written("b", chosen=["yes", "ye", "4"], rejected=["no", "sNo", "5"], gap=[0.5, 0.25, 1.0])
    found = compare_rows(a, shifted, 0)
    assert (found.unchanged, found.added, found.removed) == (2, 1, 1)
    found = compare_rows(written("a", text=["x", "y", None]), written("b", text=["x", "x", None]), 1)
    assert found.key == () and (found.unchanged, found.added, found.removed, found.changed) == (2, 1, 1, 0)
    assert [(row["only_in"], row["facts"]) for row in found.samples] == [("a", {"text": "y"}), ("b", {"text": "x"})]


def test_a_config_of_one_side_is_counted_by_its_manifest_and_quoted_on_request(a: Path, b: Path) -> None:
    shutil.copytree(b / "data" / LOW, b / "data/extra")
    listed(b)
    extra = config_of(found := diff(str(a), str(b)), "extra")
    assert (extra.rows_a, extra.rows_b, extra.rows, extra.samples) == (None, 3, None, ()) and not found.is_same
    assert ["extra", "–", "3", "3", "0", "0", "0"] in [line.split() for line in run(a, b)[1].splitlines()]
    quotes = config_of(diff(str(b), str(a), 2), "extra").samples
    assert len(quotes) == 2 and {row["only_in"] for row in quotes} == {"a"}
    assert quotes[0]["texts"]["completion"].startswith("<think>\nThinking of")


def test_sampled_rows_show_question_and_reply_and_no_control_characters(a: Path, b: Path) -> None:
    evil = [{"role": "user", "content": "What?\x1b]0;owned\x07\r\x9b2J" + "x" * 5000}]
    change_rows(b, lambda rows: rows.with_columns(
        response_id=pl.lit("new\x1b[2J-") + pl.col("prompt_id"), domain=pl.lit("d\x1b[31m"),
        prompt=pl.Series([evil] * 3, dtype=rows.schema["prompt"]),
    ))  # fmt: skip
    recipe_file = b / ".builder/recipe.yaml"
    recipe_file.write_text(recipe_file.read_text() + "# \x1b[31mred\x9b\n")
    manifest_of(b, license="\x1b]0;mit\x07", created="\x1b[2J", version="v\x9b1")
    listed(b)
    code, out, err = run(a, b, "--sample", 2)
    assert code == 1 and out.count("only in A, low-temperature") == out.count("only in B, low-temperature") == 2
    assert "prompt     What? ]0;owned 2Jxxx" in out and "completion <think> Thinking of" in out
    assert not [one for one in out + err if (ord(one) < 32 and one != "\n") or 127 <= ord(one) < 160]
    assert max(map(len, out.splitlines())) <= 80
    found = json.loads(run(a, b, "--sample", 1, "--json")[1])["diff"]
    rows = next(config["rows"] for config in found["configs"] if config["config"] == LOW)
    assert [row["only_in"] for row in rows["samples"]] == ["a", "b"] and len(str(rows["samples"])) < 3000
    assert found["download"]["all_files"] == len(manifest_of(b)["files"]) and not found["is_same"]


def test_what_the_manifest_says_otherwise_is_listed(a: Path, b: Path) -> None:
    before = manifest_of(a)
    stages = [{**before["schedule"][1], "init": "base", "epochs": 2.0}, before["schedule"][0]]
    teacher = {**before["teacher"], "revision": "8" * 40}
    source = {"source": "toy.jsonl", "revision": None, "license": "mit", "rows": 4}
    manifest_of(b, schedule=stages, teacher=teacher, prompts=[source], withdrawn=["r-1", "r-2"], rollout=None, flag=0)
    found = diff(str(a), str(b))
    assert not found.is_same and {row["field"]: row for row in found.fields} == {
        "teacher.revision": {"field": "teacher.revision", "a": "7" * 40, "b": "8" * 40},
        "withdrawn": {"field": "withdrawn", "removed": [], "added": ["r-1", "r-2"]},
        "flag": {"field": "flag", "a": None, "b": 0},
    }
    assert found.sources == ({k: v for k, v in source.items() if k != "rows"} | {"rows_a": 3, "rows_b": 4},)
    out = run(a, b)[1]
    assert "Different: manifest, prompt sources, schedule." in out
    assert "withdrawn: 0 removed, 2 added" in out and "  + r-2" in out.splitlines()
    assert "high-temperature: init was previous, is base" in out and "high-temperature: epochs was –, is 2.0" in out
    assert [line.split()[:3] for line in out.splitlines() if line.startswith(LOW)][1] == [LOW, "1", "2"]


def test_other_rows_of_the_same_build_are_called_a_defect(a: Path, b: Path) -> None:
    schedule = manifest_of(b)["schedule"]
    manifest_of(b, schedule=[{**schedule[0], "rowset_hash": "0" * 64}, *schedule[1:]])
    code, _, err = run(a, b, "--quiet")
    assert code == 0 and "yet other rows in low-temperature" in " ".join(err.split())
    manifest_of(b, build_id="0" * 64)
    assert not diff(str(a), str(b)).warnings


def test_a_run_is_named_with_its_version(_toy: Path, a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_toy.parents[3])
    for name in (f"{_toy.parents[1]}@v1", "runs/toy@v1", "toy@v1", "./runs/toy/releases/v1/"):
        assert diff(name, str(a)).is_same
    for name in ("runs/toy", "toy", "toy@v7", "runs/toy@"):
        with pytest.raises(UsageError, match=r"give its version, RUN@vN. There: (runs/)?toy@v1"):
            diff(name, str(a))
    (tmp_path / "empty/releases").mkdir(parents=True)
    with pytest.raises(UsageError, match="none yet; run builder release"):
        diff(str(tmp_path / "empty"), str(a))


def test_a_folder_named_like_a_pattern_is_itself(a: Path, b: Path, tmp_path: Path) -> None:
    change_rows(b, put("domain", "physics", "p-0.6-1"))
    odd = b.rename(tmp_path / "[a]'*")
    shutil.copytree(a, tmp_path / "a'x")
    assert counts(config_of(diff(str(a), str(odd)))) == (2, 0, 0, 1, 0)


def test_what_cannot_be_compared_exits_3_and_what_cannot_be_meant_2(a: Path, b: Path, tmp_path: Path) -> None:
    def ends(one: object, code: int, said: str, *options: str) -> None:
        found, out, err = run(one, a, *options)
        assert (found, out) == (code, "") and said in " ".join(err.split())

    (tmp_path / "none").mkdir()
    ends(tmp_path / "none", 3, "is no release of builder")
    ends("org/toy", 2, "neither the folder of a release nor")
    ends(b, 2, "--sample", "--sample", "-1")
    manifest_of(b, format=2)
    ends(b, 3, "manifest format 2; this version reads 1")
    ends(b, 3, "manifest format 2; this version reads 1", "--debug")
    assert "Traceback" in run(b, a, "--debug")[2] and "Traceback" not in run(b, a)[2]
    manifest_of(b, format=1, funnel=[{"rule": "x"}])
    ends(b, 3, "is not a manifest (funnel.0.breaks: field required)")


def test_a_file_that_is_not_as_listed_is_refused_even_where_its_hash_is_the_same(a: Path, b: Path) -> None:
    path = data_file(b)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ReleaseError, match=r"was altered: sha256"):
        diff(str(a), str(b))
    shutil.copy(data_file(a), path)
    (b / ".builder/recipe.yaml").write_bytes(b"name: \xff")
    listed(b)
    with pytest.raises(ReleaseError, match=r"recipe.yaml cannot be read as text"):
        diff(str(a), str(b))


def test_rows_that_cannot_be_read_are_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ReleaseError, match=r"^Comparing the rows failed: [^\n]*x.parquet[^\n]*TMPDIR; then rerun.$"):
        compare_rows([tmp_path / "x.parquet"], [tmp_path / "x.parquet"], 0)


def test_a_text_that_nobody_reads_is_only_named(a: Path, b: Path) -> None:
    (b / ".builder/recipe.yaml").write_text("# x\n" * 100_000)
    (b / ".builder/plot.png").write_bytes(b"\x89PNG")
    listed(b)
    found = diff(str(a), str(b))
    assert not found.texts and [row["path"] for row in found.files] == [".builder/plot.png", ".builder/recipe.yaml"]
    assert "Different: plot.png, recipe.yaml." in run(a, b)[1]


DIFF = """
import sys, typer
from builder.diff_command import diff
app = typer.Typer()
app.command()(diff)
app()
"""


def from_hub(state: Hub, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """builder diff in a process of its own: the Hub's address is read at import."""
    command = [sys.executable, "-c", DIFF, *map(str, arguments)]
    environment = state.environment(home) | {"COLUMNS": "80"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_of_published_versions_only_what_differs_is_fetched(a: Path, b: Path, tmp_path: Path) -> None:
    manifest_of(b, repo="org/toy")
    with hub() as state:
        first = state.add("org/toy", contents(b), tag="v1").tags["v1"]
        same = from_hub(state, tmp_path / "home", a, f"org/toy@{first}")
        assert same.returncode == 0, same.stderr
        assert set(state.asked()) == {".builder/manifest.json"}
        change_rows(b, put("domain", "physics", "p-0.6-1"))
        state.add("org/toy", contents(b), tag="v2")
        state.log.clear()
        done = from_hub(state, tmp_path / "home", a, "org/toy@main", "--json")
        assert done.returncode == 1, done.stderr
        changed = data_file(b).relative_to(b).as_posix()
        assert set(state.asked()) == {".builder/manifest.json", changed}
        found = json.loads(done.stdout)["diff"]
        assert found["b"]["commit"] == state.repos["org/toy"].tags["v2"]
        assert (found["download"]["files"], found["download"]["bytes"]) == (1, data_file(b).stat().st_size)
        both = from_hub(state, tmp_path / "other", "org/toy@v1", "org/toy@v2")
        assert both.returncode == 1 and "rows by changed column: domain 1" in both.stdout
        missing = from_hub(state, tmp_path / "home", a, "org/toy@v9")
    away = from_hub(state, tmp_path / "empty", a, "org/toy@v1")
    for refused in (missing, away):
        assert refused.returncode == 3 and "Cannot get dataset org/toy at v" in refused.stderr
        assert "Traceback" not in refused.stderr and refused.stdout == ""
