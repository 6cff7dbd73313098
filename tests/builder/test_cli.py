"""The command line: help for everything, one clear message for every mistake, nothing heavy before work begins."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from builder.cli import app

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def builder(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "builder.cli", *arguments],
        cwd=cwd,
        env={"PATH": "", "HF_HUB_OFFLINE": "1", "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def write_recipe(folder: Path, text: str = "", questions: str = '{"prompt": "1+1?", "gold": "2"}\n') -> Path:
    (folder / "q.jsonl").write_text(questions, encoding="utf-8")
    recipe = folder / "r.yaml"
    recipe.write_text(f"name: r\nprompts: [{{source: q.jsonl}}]\nteacher: {{model: t}}\n{text}", encoding="utf-8")
    return recipe


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_of_80_columns_and_stands_in_the_readme(command: str) -> None:
    shown = builder(command, "--help")
    assert shown.returncode == 0
    assert max(len(line) for line in shown.stdout.split("\n")) <= 80
    assert f"`builder {command}" in (ROOT / "README.md").read_text("utf-8")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, builder.cli\n"
        "try: builder.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'polars', 'duckdb', 'openai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")


def assert_one_message(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    assert_one_message(builder("plan", "gsm8", cwd=tmp_path), 2, "gsm8", "did you mean 'gsm8k'")


def test_unknown_key_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "generation: {sample: 3}\n")
    assert_one_message(builder("plan", recipe.name, cwd=tmp_path), 2, "generation.sample", "did you mean 'samples'")


def test_missing_question_file_is_named(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    done = builder("plan", recipe.name, "prompts.0.source=nowhere.jsonl", cwd=tmp_path)
    assert_one_message(done, 1, "nowhere.jsonl does not exist")


def test_refused_connection_is_one_sentence_and_costs_nothing(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    done = builder("generate", recipe.name, cwd=tmp_path, OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    assert_one_message(done, 1, "127.0.0.1:9", "Nothing was sent")


def test_no_endpoint_says_which_variable_to_set(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert_one_message(builder("generate", recipe.name, cwd=tmp_path), 2, "OPENAI_BASE_URL")


def test_plan_counts_requests_and_sends_nothing(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, questions='{"prompt": "1+1?"}\n{"prompt": " 1+1? "}\n{"prompt": "2+2?"}\n')
    done = builder("plan", recipe.name, "generation.samples=3", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert (plan["prompts"], plan["duplicates"], plan["need"]) == (2, 1, {"total": 12, "stored": 0})
    assert not (tmp_path / "runs").exists()


def test_shard_out_of_range_is_a_usage_error(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert_one_message(builder("generate", recipe.name, "--shard", "2/2", cwd=tmp_path), 2, "--shard")


def test_status_of_a_run_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert_one_message(builder("status", recipe.name, cwd=tmp_path), 2, "builder generate")


def test_init_copies_recipe_and_sql_and_never_overwrites(tmp_path: Path) -> None:
    assert builder("init", "mine", "--recipe", "demo", cwd=tmp_path).returncode == 0
    assert (tmp_path / "mine" / "sql" / "rules" / "answer_wrong.sql").is_file()
    assert builder("plan", "mine/demo.yaml", "prompts.0.rows=null", cwd=tmp_path).returncode == 1  # no questions yet
    assert_one_message(builder("init", "mine", cwd=tmp_path), 2, "not empty")


@pytest.fixture(scope="module")
def _toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with toy.yaml and its selected run, as `builder select toy.yaml` leaves it."""
    from release_toys import recipe, selected

    folder = tmp_path_factory.mktemp("toy")
    selected(folder / "runs" / "toy")
    (folder / "toy.yaml").write_text(yaml.safe_dump(recipe().resolved()), encoding="utf-8")
    return folder


@pytest.fixture
def toy(_toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the folder that commands run in, on a terminal of 80 columns."""
    monkeypatch.chdir(_toy)
    monkeypatch.setenv("COLUMNS", "80")
    return _toy


def here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in this process, which need not import everything again."""
    done = CliRunner().invoke(app, list(arguments))
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


@pytest.mark.usefixtures("toy")
def test_explain_takes_id_and_overrides() -> None:
    done = here("explain", "toy.yaml", "p-1.0-1", "selection.rules=[]", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["explain"]["outcome"].startswith("kept: in stage high-temperature")
    assert_one_message(here("explain", "toy.yaml", "p-1.0-2"), 2, "did you mean 'p-1.0-")


@pytest.mark.usefixtures("toy")
def test_compare_takes_changes_and_refuses_a_misspelt_one() -> None:
    done = here("compare", "toy.yaml", "--with", "selection.rules=[]", "--sample", "1")
    assert done.returncode == 0, done.stderr
    assert "3 in both, 3 only in A, 3 only in B" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert_one_message(here("compare", "toy.yaml", "--with", "selection.kep=2"), 2, "did you mean 'keep'")
    assert_one_message(here("compare", "toy.yaml", "--against", "gsm8"), 2, "did you mean 'gsm8k'")


@pytest.mark.usefixtures("toy")
def test_select_tells_the_funnel_apart_and_refuses_other_groups() -> None:
    done = here("select", "toy.yaml", "--by", "temperature", "--json")
    assert {row["temperature"] for row in json.loads(done.stdout)["funnel_by"]} == {0.6, 1.0}
    assert_one_message(here("select", "toy.yaml", "--by", "domian"), 2, "did you mean 'domain'")


@pytest.mark.usefixtures("toy")
def test_rules_go_without_a_query() -> None:
    assert_one_message(here("sql", "toy.yaml", "--rules", "--csv"), 2, "--rules")


def test_a_reader_that_has_seen_enough_ends_a_query_quietly(toy: Path) -> None:
    query = "select * from range(200000)"
    with subprocess.Popen(
        [sys.executable, "-m", "builder.cli", "sql", "toy.yaml", "--csv", "-c", query],
        cwd=toy, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as done:  # fmt: skip
        assert done.stdout is not None
        assert done.stderr is not None
        assert done.stdout.readline() == "range\n"
        done.stdout.close()
        assert done.stderr.read() == ""
