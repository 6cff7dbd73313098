"""The command line, and the real clients on what it publishes: `hf`, `datasets`, DuckDB by `builder sql`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from loopback_hub import EXCUSED, TOKEN, Hub, hub, use
from publish_toys import HERE, NAME, Versions, holds, versions
from release_toys import HOST, contents, recipe
from typer.testing import CliRunner

from builder.options import recipe_command
from builder.publish_command import key_variables, publish

pytestmark = EXCUSED
app = typer.Typer()
recipe_command(app, writes=False)(publish)
BIN = Path(sys.executable).parent

LOAD = """
import json, sys, warnings
import datasets
name = sys.argv[1]
configs = datasets.get_dataset_config_names(name, revision="v1")
first = datasets.load_dataset(name, revision="v1", split="train")
low = datasets.load_dataset(name, "low-temperature", revision="v1", split="train")
high = datasets.load_dataset(name, "high-temperature", revision="v1", split="train")
print(json.dumps([configs, first["response_id"] == low["response_id"], low.num_rows, high.num_rows, low[0]["prompt"]]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    return versions(tmp_path_factory.getbasetemp() / "publish")


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub() as state:
        use(state, monkeypatch, tmp_path / "cache")
        yield state


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path, **HERE)


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "toy.yaml"
    file.write_text(yaml.safe_dump(recipe(**changes).model_dump(mode="json", exclude_unset=True)))
    return file


def call(*argv: Any) -> Any:
    return CliRunner().invoke(app, [str(one) for one in argv], catch_exceptions=False)


def test_a_dry_run_shows_files_bytes_version_and_card_and_sends_nothing(
    remote: Hub, made: Versions, path: Path
) -> None:
    run = made.v1.path.parents[1]
    shown = call(path, "--run", run, "--repo", NAME, "--dry-run", "--json")
    told = json.loads(shown.stdout)
    assert (told["version"], told["private"], told["published"]) == ("v2", True, False)
    assert {one["path"] for one in told["files"]} == contents(made.v2.path).keys()
    assert told["new_bytes"] == sum(one["bytes"] for one in told["files"] if one["change"] == "new") > 0
    assert f'"{NAME}"' in told["card"] and not remote.repos
    text = call(path, "--run", run, "--repo", NAME, "--dry-run").stdout
    assert "would publish v2 of org/toy-distill-teacher (private)" in text and "data/candidates/train-00000" in text


def test_the_command_publishes_the_latest_release_and_says_where(remote: Hub, made: Versions, path: Path) -> None:
    run = made.v1.path.parents[1]
    text = call(path, "--run", run, "--repo", NAME).stdout
    commit = remote.repos[NAME].tags["v2"]
    assert f"commit {commit}, tag v2: {remote.url}/datasets/{NAME}/tree/v2" in text
    holds(remote, made.v2)
    again = call(path, "--run", run, "--repo", NAME)
    assert (
        again.exit_code == 0 and f"v2: published already; nothing to publish. {NAME} at commit {commit}" in again.stdout
    )
    assert json.loads(call(path, "--run", run, "--repo", NAME, "--json").stdout)["nothing_to_do"] == "published already"
    assert "is private and stays so" not in call(path, "--run", run, "--repo", NAME, "--public").stderr


def test_the_repository_is_the_recipes_unless_told(remote: Hub, made: Versions, tmp_path: Path) -> None:
    path = written(tmp_path, release={"license": "mit", "repo": NAME})
    assert call(path, "--run", made.v1.path.parents[1]).exit_code == 0
    assert remote.repos.keys() == {NAME}


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "UsageError: builder publish needs --repo ORG/NAME, or release.repo in the recipe."),
        (["--repo", "toy"], 2, "UsageError: 'toy' is no name of a dataset on the Hub: it must be ORG/NAME"),
        (["--repo", "nobody/toy"], 1, "HubError: HF_TOKEN may not do this to nobody/toy (403"),
    ],
)
def test_mistakes_end_with_one_message(
    remote: Hub, made: Versions, path: Path, argv: list[str], code: int, message: str
) -> None:
    done = call(path, "--run", made.v1.path.parents[1], *argv)
    assert done.exit_code == code and done.stderr.startswith(message) and done.stdout == ""
    assert "Traceback" not in done.stderr and TOKEN not in done.stderr


def test_a_run_without_a_release_has_nothing_to_publish(remote: Hub, path: Path, tmp_path: Path) -> None:
    done = call(path, "--run", tmp_path / "none", "--repo", NAME)
    assert done.exit_code == 1 and "holds no release yet" in done.stderr and not remote.log


def test_keys_of_the_recipes_endpoints_are_looked_for() -> None:
    teacher = {"model": "t", "endpoints": [{"url": f"http://{HOST}/v1", "api_key_env": "MY_TEACHER"}]}
    endpoint = {"url": f"http://{HOST}/v1", "api_key_env": "MY_STUDENT"}
    student = {"model": "s", "backend": "endpoint", "endpoint": endpoint}
    found = key_variables(recipe(teacher=teacher, student=student))
    assert found == {"HF_TOKEN", "OPENAI_API_KEY", "MY_TEACHER", "MY_STUDENT"}


def test_a_key_of_this_process_in_a_release_is_refused(
    remote: Hub, made: Versions, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "Thinking of p | at 0.6")  # what a reply of the toys says
    for extra in ([], ["--dry-run"]):
        done = call(path, "--run", made.v1.path.parents[1], "--repo", NAME, *extra)
        assert done.exit_code == 1 and "SecretError: " in done.stderr
        assert "column completion, response_id p-0.6-1: key of this process Thin…" in done.stderr
        assert "Thinking of p | at 0.6" not in done.stderr and not remote.repos


def process(state: Hub, home: Path, *argv: Any, code: int = 0, token: str | None = TOKEN) -> str:
    """What a client says in a process of its own: the Hub's address is read at import."""
    environment = state.environment(home, token) | {"NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(one) for one in argv], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_the_real_clients_read_what_was_published(remote: Hub, made: Versions, path: Path, tmp_path: Path) -> None:
    run = made.v1.path.parents[1]
    (tmp_path / "run" / "releases").mkdir(parents=True)
    (tmp_path / "run" / "releases" / "v1").symlink_to(made.v1.path)
    assert call(path, "--run", tmp_path / "run", "--repo", NAME).exit_code == 0
    assert call(path, "--run", run, "--repo", NAME).exit_code == 0
    holds(remote, made.v1)
    holds(remote, made.v2)

    configs, is_first, low, high, prompt = json.loads(process(remote, tmp_path / "h", sys.executable, "-c", LOAD, NAME))
    assert configs == ["low-temperature", "high-temperature", "candidates"] and is_first
    rows = {stage["config"]: stage["rows"] for stage in made.v1.manifest["schedule"]}
    assert (low, high) == (rows["low-temperature"], rows["high-temperature"]) and prompt[-1]["role"] == "user"

    download = (BIN / "hf", "download", NAME, "--type", "dataset", "--revision", "v1", "--local-dir", tmp_path / "v1")
    assert "not found" in process(remote, tmp_path / "h", *download, code=1, token=None).lower()
    process(remote, tmp_path / "h", *download)
    assert contents(tmp_path / "v1").items() >= remote.repos[NAME].contents("v1").items()

    query = ("sql", f"{NAME}@v1", "--json", "-c", "select count(*) as n from high_temperature")
    assert json.loads(process(remote, tmp_path / "h", BIN / "builder", *query))["rows"] == [{"n": high}]
