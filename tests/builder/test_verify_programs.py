"""Programs from questions file to verdict: the golds of benchmarks, read and judged by `builder verify`."""

import json
from pathlib import Path

import pytest
from sandbox_toys import needs_bwrap
from test_verify import reply
from typer.testing import CliRunner

from builder.cli import app
from builder.config import Recipe
from builder.prompts import load_prompts, write_prompts
from builder.store import Run, columns_table

HUMANEVAL = (
    "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n"
)
GOLDS = {
    "HumanEval": HUMANEVAL + "\n\ncheck(total)\n",
    "HumanEval, entry point beside": json.dumps({"asserts": HUMANEVAL, "entry_point": "total"}),
    "MBPP, text": "assert total([1, 2]) == 3\nassert total([]) == 0",
    "MBPP, list": json.dumps(["assert total([1, 2]) == 3", "assert total([]) == 0"]),
    "APPS": json.dumps({"inputs": ["1 2\n", "\n"], "outputs": ["3\n", "0\n"]}),
    "TACO, lines": json.dumps({"inputs": [["1 2"], [""]], "outputs": [["3"], ["0"]]}),
}
PROGRAM = """def plus(a, b):
    return a {sign} b


def total(numbers):
    found = 0
    for number in numbers:
        found = plus(found, number)
    return found


if __name__ == "__main__":
    print(total(map(int, input().split())))"""


@needs_bwrap
def test_golds_of_benchmarks_are_judged_from_the_questions_file_to_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": name, "gold": gold, "gold_type": "python_tests"} for name, gold in GOLDS.items()]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "code.yaml").write_text(
        "name: code\nprompts: [{source: questions.jsonl, domain: code}]\nteacher: {model: toy}\n"
    )
    run = Run(tmp_path / "run")
    prompts = load_prompts(Recipe.model_validate({"name": "code", "prompts": [{"source": "questions.jsonl"}]}))
    write_prompts(run, prompts)
    replies = [
        reply(f"{row['messages'][0]['content']}: {verdict}", row["prompt_id"], f"```python\n{program}\n```")
        for row in prompts.rows
        for verdict, program in (("correct", PROGRAM.format(sign="+")), ("wrong", PROGRAM.format(sign="-")))
    ]
    run.append("responses", columns_table("responses", replies))
    said = CliRunner().invoke(app, ["verify", "code.yaml", "--run", str(run.root)])
    assert said.exit_code == 0, said.output
    found = dict(run.read("verdicts", ["response_id", "verdict"]).iter_rows())
    assert found == {f"{name}: {verdict}": verdict for name in GOLDS for verdict in ("correct", "wrong")}
