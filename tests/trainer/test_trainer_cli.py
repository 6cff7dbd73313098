"""The command line: quick, quiet on stdout, one message for an error."""

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from jinja2 import Template
from rich.console import Console

from trainer import cli, data

COMMIT = "a" * 40


def call(monkeypatch: pytest.MonkeyPatch, *argv: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["trainer", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def arguments(release: Path, student: Path, output: Path) -> list[str]:
    return ["--dataset", str(release), "--model", str(student), "--output", str(output), "--recipe", "smoke"]


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, trainer.cli; print({'torch', 'transformers', 'trl', 'datasets', 'builder'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


@pytest.mark.parametrize(("names", "most"), [(("language", "rewards", "reinforce"), 350), (("",), 1460)])
def test_the_package_stays_thin(names: tuple[str, ...], most: int) -> None:
    files = [file for file in Path(cli.__file__).parent.glob("**/*.py") if file.stem.startswith(names)]
    assert sum(bool(line.strip()) for file in files for line in file.read_text(encoding="utf-8").splitlines()) < most


@pytest.mark.parametrize("argv", [["--help"], ["plan", "--help"], ["run", "--help"]])
def test_help_is_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert call(monkeypatch, *argv) == 0
    assert "Usage" in capsys.readouterr().out


def test_plan_run_and_plan_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], release: Path, student: Path, tmp_path: Path
) -> None:
    common = arguments(release, student, tmp_path / "out")
    assert call(monkeypatch, "plan", *common, "--json", "defaults.num_train_epochs=2") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [(s["stage"], s["rows"], s["steps"], s["epochs"], s["state"]) for s in plan["stages"]] == [
        ("low-temperature", 12, 4, 2, "to train"),
        ("high-temperature", 8, 2, 2, "to train"),
    ]
    assert not (tmp_path / "out").exists()

    assert call(monkeypatch, "run", *common, "--json", "--until", "low-temperature") == 0
    out = capsys.readouterr()
    assert [stage["trained"] for stage in json.loads(out.out)["stages"]] == [True]
    assert "stage low-temperature: 12 rows, from base" in out.err

    assert call(monkeypatch, "plan", *common, "--json", "stages.high-temperature.learning_rate=0.5") == 0
    assert [stage["state"] for stage in json.loads(capsys.readouterr().out)["stages"]] == ["done", "to train"]
    assert call(monkeypatch, "plan", *common, "--json", "defaults.learning_rate=0.5") == 1
    assert "1-low-temperature holds this stage trained otherwise (learning_rate 0.001, now" in capsys.readouterr().err


def test_plan_shows_rows_with_masked_and_trained_tokens_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], release: Path, student: Path, tmp_path: Path
) -> None:
    assert call(monkeypatch, "plan", *arguments(release, student, tmp_path / "out"), "--show", "1") == 0
    out = capsys.readouterr().out
    assert "11 + 1?<|im_end|>\n<|im_start|>assistant\n[/masked][trained]<think>\none more than 11\n</think>" in out
    assert out.count("[trained]") == 2


def test_on_a_terminal_masked_tokens_are_dim_and_trained_ones_green_or_in_brackets_without_colour() -> None:
    renderer = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: "".join(chr(number) for number in ids)))
    rows = Dataset.from_dict({"input_ids": [[65, 66, 67]], "labels": [[-100, -100, 67]]})
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
    cli.show_rows(console, renderer, "one", rows, 1)
    assert console.file.getvalue().endswith("\x1b[2mAB\x1b[0m\x1b[32mC\x1b[0m\n")  # type: ignore[attr-defined]
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80, no_color=True)
    cli.show_rows(console, renderer, "one", rows, 1)
    assert "[masked]AB[/masked]" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "[trained]C[/trained]" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("command", "option"), [("plan", ["--push-to-hub", "org/m"]), ("run", ["--show", "1"])])
def test_an_option_of_the_other_command_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], release: Path, student: Path, tmp_path: Path,
    command: str, option: list[str],
) -> None:  # fmt: skip
    assert call(monkeypatch, command, *arguments(release, student, tmp_path / "out"), *option) == 2
    assert "--show is an option of `trainer plan`, --push-to-hub one of `trainer run`" in capsys.readouterr().err


def stage_line(number: int, stage: str) -> dict[str, Any]:
    numbers = {"rows": 105_000, "tokens": 1_450_000_000, "epochs": 6.0, "steps": 12_345, "learning_rate": 5e-5}
    words = {
        "config": stage,
        "kind": "sft",
        "init": "low-temperature",
        "state": "to train",
        "warnings": ["mind this"],
        "device_hours": 1234.5,
        "state_bytes": 2**34,
        "activation_bytes": 2**33,
    }
    return {"number": number, "stage": stage} | numbers | words


def test_the_table_fits_80_columns_and_cuts_nothing() -> None:
    stages = [stage_line(1, "low-temperature"), stage_line(2, "high-temperature")]
    dataset = {"source": "org/name@v1", "version": "v1", "commit": COMMIT}
    content = {"dataset": dataset, "model": {"name": "m", "revision": None}, "recipe": "dasd", "stages": stages}
    out = Template(cli.PLAN.read_text(encoding="utf-8")).render(content | {"warnings": ["and that"]})
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    for shown in ("105,000", "1.45e+09", "12,345", "5e-05", "to train; 6 epochs, 1234.5 h", "16.0 + 8.0 GiB before"):
        assert out.count(shown) == 2, shown
    assert "! high-temperature: mind this\n! and that\n" in out and "commit " + COMMIT in out


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--recipe", "dast"], 2, "did you mean 'dasd'"),
        (["defaults.learning_rat=1"], 2, "did you mean 'learning_rate'"),
        (["learning_rate=1"], 2, "an override is"),
        (["--until", "nothing"], 2, "no such stage"),
        (["--dataset", "nothing"], 1, "neither a release directory"),
        (["--model", "nothing"], 1, "neither a directory"),
        (["--nothing"], 2, "No such option"),
    ],
)
def test_mistakes_end_with_one_message_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], release: Path, student: Path, tmp_path: Path,
    argv: list[str], code: int, message: str,
) -> None:  # fmt: skip
    assert call(monkeypatch, "run", *arguments(release, student, tmp_path / "out"), *argv) == code
    out = capsys.readouterr()
    assert message in out.err and "Traceback" not in out.err and out.out == ""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("too big"), "Unexpected MemoryError: too big"),
        (OSError(28, "No space left"), "Unexpected OSError"),
        (
            ModuleNotFoundError("No module named 'trl'"),
            "Unexpected ModuleNotFoundError: No module named 'trl'. Training needs it: pip install",
        ),
    ],
)
def test_the_unexpected_ends_with_one_message_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], release: Path, student: Path, tmp_path: Path,
    error: BaseException, message: str,
) -> None:  # fmt: skip
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(data, "resolve", fail)
    common = arguments(release, student, tmp_path / "out")
    assert call(monkeypatch, "run", *common) == 1
    err = capsys.readouterr().err
    assert err.startswith(message) and "Traceback" not in err
    assert call(monkeypatch, "run", *common, "--debug") == 1
    assert "Traceback" in capsys.readouterr().err
