"""What steps say: at most 80 columns, and what the user can do about it."""

from pathlib import Path

import pytest
from endpoint import endpoint
from typer.testing import CliRunner

from builder.cli import app
from builder.console import Reporter
from builder.show import show_verified
from builder.verify import VerifyResult


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    found = capsys.readouterr().out.splitlines()
    assert max(map(len, found)) <= 80
    return found


def test_verdicts_of_a_large_run_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = {"correct": 1_200_000, "wrong": 500_000, "unscorable": 50_000, "timeout": 12_000, "error": 1_000}
    show_verified(Reporter(), VerifyResult(computed=1_763_000, verdicts=verdicts, without_gold=36_999, for_judge=1))
    found = lines(capsys)
    assert found[0].startswith("verify: 1,763,000 new; 1,200,000 correct, 500,000 wrong")
    assert found[-2:] == ["  36,999 without a gold that a verifier here reads", "  1 for the judge"]
    show_verified(Reporter(), VerifyResult(computed=2, verdicts={"correct": 2}))
    assert lines(capsys) == ["verify: 2 new; 2 correct"]


def test_status_lists_what_to_back_up_a_path_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("questions.jsonl").write_text('{"prompt": "1 + 1?", "gold": "2"}\n', encoding="utf-8")
    for command in ("generate", "status"):
        result = CliRunner().invoke(app, [command, "r1-zero-smoke"])
        assert result.exit_code == 0, result.output
    found = result.stdout.splitlines()
    assert max(map(len, found)) <= 80
    assert found[-3:] == [f"  runs/r1-zero-smoke/{path}" for path in ("journal", "tables/responses", "tables/logprobs")]


def test_eval_of_a_model_that_its_endpoint_lacks_names_the_options_of_eval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("questions.jsonl").write_text('{"prompt": "1 + 1?", "gold": "2"}\n', encoding="utf-8")
    with endpoint(model="other") as server:
        given = ["eval", "r1-zero-smoke", "--model", "mine", "--endpoint", server.url]
        result = CliRunner().invoke(app, given)
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert "serves other, not 'mine'" in said
    assert "Give --model the name that the server uses, or --endpoint the server of that model." in said
    assert "teacher.model" not in said
