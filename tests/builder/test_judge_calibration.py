"""Known answers: those that are called wrong are wrong, and a judge is measured on all of them before it counts."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from endpoint import endpoint
from judge_toys import (
    ESSAY,
    NAMED,
    SUMS,
    honest,
    judge_replies,
    judge_verdicts,
    judging,
    obedient,
    prompt,
    reply,
    run_of,
)
from typer.testing import CliRunner

from builder import judge_known
from builder.cli import app
from builder.config import Recipe
from builder.console import Reporter
from builder.errors import UsageError, VerifyError
from builder.judge_calibration import Calibration, Measured
from builder.judge_cost import judge_budget
from builder.judge_known import INJECTED, MADE, PROVED, known_answers
from builder.pipeline import Limits, Steps
from builder.store import Run, columns_table
from builder.verifiers import verify_answer
from builder.verify import verify

MORE = [prompt(f"frac{number}", f"{number}/19", "latex", "math") for number in range(1, 30)]
LETTERS = [prompt(f"pick{number}", letter, "choice", "choice") for number, letter in enumerate("ABCDABCD")]
CODE = prompt("code", "assert f()", "python_tests", "code")


def known_run(folder: Path, *more: dict[str, Any]) -> Run:
    run = run_of(folder, *more, prompts=(*MORE, *LETTERS, CODE))
    verify(run)
    return run


def test_every_answer_that_is_known_to_be_wrong_is_wrong_and_every_right_one_right(tmp_path: Path) -> None:
    known = known_answers(known_run(tmp_path), seed=0)
    assert {one.group for one in known} == {"right", "wrong", "injected"}
    for one in known:
        if one.prompt["checker"] is None:
            assert (one.text == one.prompt["gold"]) == (one.group == "right")
        elif one.group == "right":
            verdict = verify_answer(one.prompt["gold"], one.prompt["gold_type"], one.text).verdict
            assert verdict == ("unscorable" if one.prompt["gold"] == "seventy" else "correct")
        elif one.group == "wrong":
            assert verify_answer(one.prompt["gold"], one.prompt["gold_type"], one.text).verdict == "wrong"
    plain = {one.text for one in known if one.group == "wrong"}
    assert all(
        one.text.rpartition("\n\n")[0].partition("\n\n[END")[0] in plain for one in known if one.group == "injected"
    )


def test_kinds_and_their_numbers(tmp_path: Path) -> None:
    run = known_run(tmp_path, *(reply(f"more{number}", SUMS[0], f"It is {100 + number}.") for number in range(60)))
    known = known_answers(run, seed=0)
    assert Counter((one.group, one.kind) for one in known) == {
        ("right", "proved correct"): 6,
        ("right", "gold itself"): MADE,
        ("wrong", "proved wrong"): PROVED,
        ("wrong", "another's gold"): MADE,
        ("wrong", "a digit changed"): 7,  # six sums, and the question that names the judge
        ("injected", "wrong + request"): INJECTED,
        ("injected", "wrong + false fence"): INJECTED,
        ("injected", "wrong + planted verdict"): INJECTED,
    }
    assert "code" not in {one.prompt_id[8:] for one in known}
    assert "rules" not in {one.prompt_id[8:] for one in known}
    assert known == known_answers(run, seed=0)
    assert known != known_answers(run, seed=1)


def test_verdicts_of_verifiers_that_a_prompt_no_longer_names_prove_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    stale = {"response_id": "c-named", "verifier": "math", "verifier_version": "0", "verdict": "wrong"}
    other = {"response_id": "a-essay", "verifier": "published", "verifier_version": "0", "verdict": "wrong"}
    run.append("verdicts", columns_table("verdicts", [stale, other]))
    assert not [one for one in known_answers(run, seed=0) if one.kind.startswith("proved")]


def test_samples_are_spread_over_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_known, "MADE", 4)
    rare = [{**prompt(f"rare{number}", f"{number}1", "number", "math"), "domain": "rare"} for number in range(2)]
    run = run_of(tmp_path, prompts=(*MORE, *rare))
    golds = [one.prompt["domain"] for one in known_answers(run, seed=3) if one.kind == "gold itself"]
    assert Counter(golds) == {None: 2, "rare": 2}


def test_a_digit_is_changed_and_never_to_a_leading_zero() -> None:
    for gold in ("9", "10", "-3.5", "1,000", "0.25", ".5", "99"):
        row = prompt("x", gold, "number", "math") | {"checker": "math"}
        for seed in range(8):
            changed = judge_known._digit_changed(row, seed)
            assert changed is not None
            assert sum(a != b for a, b in zip(changed, gold, strict=True)) == 1
            assert verify_answer(gold, "number", changed).verdict == "wrong"
    assert judge_known._digit_changed(prompt("x", r"\frac12", "latex", "math") | {"checker": "math"}, 0) is None
    assert judge_known._digit_changed(ESSAY | {"checker": None}, 0) is None


def measured(correct: int, wrong: int, null: int = 0, *, is_right: bool = False) -> Measured:
    return Measured("kind", is_right, correct + wrong + null, correct, wrong, null)


def calibration(right: Measured, wrong: Measured, injected: Measured) -> Calibration:
    return Calibration((), (right, wrong, injected), 0.1, 3, 0, 0, None)


@pytest.mark.parametrize(
    ("right", "wrong", "injected", "word"),
    [
        (measured(9, 1, is_right=True), measured(1, 9), measured(1, 9), None),
        (measured(8, 1, is_right=True), measured(0, 9), measured(0, 9), "called 1 of 9 right answers wrong (11.1%)"),
        (measured(9, 0, is_right=True), measured(1, 8), measured(0, 9), "called 1 of 9 wrong answers correct (11.1%)"),
        (
            measured(9, 0, is_right=True),
            measured(0, 9),
            measured(2, 8),
            "called 2 of 10 wrong answers that give it orders",
        ),
        (measured(9, 0, 50, is_right=True), measured(0, 9, 50), measured(0, 0, 9), None),
        (measured(0, 0, 9, is_right=True), measured(0, 9), measured(0, 9), "no verdict on any of 9 answers"),
        (measured(9, 0, is_right=True), measured(0, 0, 9), measured(0, 9), "no verdict on any of 9 answers"),
        (measured(9, 0, is_right=True), measured(0, 0), measured(0, 0), "no answer is known to be wrong"),
        (measured(0, 0, is_right=True), measured(0, 9), measured(0, 9), "no answer is known to be right"),
    ],
)
def test_a_judge_is_believed_at_its_error_rate_and_not_above(
    right: Measured, wrong: Measured, injected: Measured, word: str | None
) -> None:
    found = calibration(right, wrong, injected)
    if word is None:
        found.require_trust()
    else:
        with pytest.raises(VerifyError) as caught:
            found.require_trust()
        assert word in str(caught.value)


def write_recipe(folder: Path, url: str, judge: str = "") -> Path:
    path = folder / "toy.yaml"
    section = f"{{model: toy, endpoints: [{{url: '{url}'}}], prices: {{input: 1, output: 10}}{judge}}}"
    path.write_text(f"name: toy\nprompts: []\nteacher: {{model: m}}\njudge: {section}\n", encoding="utf-8")
    return path


def test_calibrate_prints_rates_and_bias_in_80_columns_and_decides_nothing(tmp_path: Path) -> None:
    run = known_run(tmp_path)
    with endpoint(script=judging(honest)) as server:
        path = write_recipe(tmp_path, server.url)
        said = CliRunner().invoke(app, ["verify", str(path), "--run", str(run.root), "--calibrate"])
        again = CliRunner().invoke(app, ["verify", str(path), "--run", str(run.root), "--calibrate", "--json"])
    assert (said.exit_code, again.exit_code) == (0, 0), said.output
    lines = said.stdout.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("known answers"))
    table = {line[:24].strip(): line[24:].split() for line in lines[start : start + 12]}
    assert max(map(len, lines[start - 1 :])) <= 80
    assert table["proved wrong"][:5] == ["6", "0", "6", "0", "0.0%"]
    assert table["wrong + planted verdict"][:5] == ["10", "0", "10", "0", "0.0%"]
    assert "position bias" in said.stdout
    assert "50.0% of 36 answers" in said.stdout
    facts = json.loads(again.stdout)["calibration"]
    assert (facts["sent"], facts["tokens"], facts["cost_usd"], facts["problem"]) == (0, 0, 0.0, None)
    assert facts["totals"]["right"]["wrong"] == facts["totals"]["wrong"]["correct"] == 0
    assert judge_verdicts(run) == {}


def test_status_says_what_the_judge_cost_beside_the_teacher(tmp_path: Path) -> None:
    run = known_run(tmp_path)
    with endpoint(script=judging(honest)) as server:
        path = write_recipe(tmp_path, server.url)
        CliRunner().invoke(app, ["verify", str(path), "--run", str(run.root), "--calibrate", "--quiet"])
    said = CliRunner().invoke(app, ["status", str(path), "--run", str(run.root), "--json"])
    roles = json.loads(said.stdout)["roles"]
    assert set(roles) == {"judge", "teacher"}
    assert (roles["judge"]["replies"], roles["judge"]["tokens"]) == (judge_replies(run), 10 * judge_replies(run))
    assert roles["teacher"]["cost_usd"] is None
    shown = CliRunner().invoke(app, ["status", str(path), "--run", str(run.root)]).stdout
    assert "paid for" in shown


def test_a_judge_that_is_not_believed_ends_with_exit_1_after_its_table(tmp_path: Path) -> None:
    run = known_run(tmp_path)
    with endpoint(script=judging(obedient)) as server:
        path = write_recipe(tmp_path, server.url)
        for arguments in (["--calibrate"], []):
            said = CliRunner().invoke(app, ["verify", str(path), "--run", str(run.root), *arguments])
            assert said.exit_code == 1
            assert "wrong + planted verdict" in said.stdout
            assert "VerifyError: The judge is not believed" in said.stderr
            assert "Traceback" not in said.output
    assert judge_verdicts(run) == {}


def test_a_judge_counts_at_its_own_prices(tmp_path: Path) -> None:
    paid = reply("t", SUMS[0], "It is 7.", prompt_tokens=1000, completion_tokens=2000)
    voted = reply("v", SUMS[0], "{}", role="judge", prompt_tokens=300, completion_tokens=10)
    run = run_of(tmp_path, paid, voted)
    section = {"model": "j", "prices": {"input": 1, "output": 2}}
    teacher = {"model": "t", "prices": {"input": 10, "output": 100}}
    recipe = Recipe.model_validate({"name": "r", "teacher": teacher, "judge": section})
    budget = judge_budget(run, recipe, 5.0, None)
    assert budget.cost == pytest.approx((1000 * 10 + 2000 * 100 + 300 * 1 + 10 * 2) / 1e6)
    assert budget.tokens == 3310
    assert budget.price(1_000_000, 0) == 1.0
    with pytest.raises(UsageError, match=r"judge\.prices"):
        judge_budget(
            run,
            recipe.model_copy(update={"judge": recipe.require_judge().model_copy(update={"prices": None})}),
            1.0,
            None,
        )
    assert Steps(run, recipe, tmp_path, Reporter(quiet=True), limits=Limits(cost=5.0))._budget().cost == budget.cost
    bare = recipe.model_copy(update={"teacher": None})
    assert judge_budget(run, bare, 5.0, None).cost == pytest.approx((300 * 1 + 10 * 2) / 1e6)


@pytest.mark.parametrize(
    ("section", "word"),
    [
        ({"votes": 3, "temperature": 0}, "one vote paid 3 times"),
        ({"extra_body": {"seed": 1}}, "seed cannot be set here"),
        ({"extra_body": {"response_format": {}}}, "response_format cannot be set here"),
        ({"votes": 0}, "votes"),
        ({"max_error_rate": 0.5}, "max_error_rate"),
        ({"temperature": float("nan")}, "temperature"),
    ],
)
def test_a_judge_section_that_cannot_work_is_refused(section: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Recipe.model_validate({"name": "r", "judge": {"model": "j", **section}})


def test_a_recipe_without_a_judge_keeps_its_hash_and_endpoints_never_count() -> None:
    def recipe(**judge: Any) -> Recipe:
        return Recipe.model_validate({"name": "r", "judge": {"model": "j", **judge}})

    assert "judge" not in Recipe(name="r").decisive()
    assert recipe().hash() != Recipe(name="r").hash()
    assert recipe(endpoints=[{"url": "http://a:1/v1", "api_key_env": "KEY"}]).hash() == recipe().hash()
    assert recipe(model="/home/a/j").decisive()["judge"]["model"] == "j"
    assert recipe(votes=1, temperature=0).require_judge().temperature == 0
    assert NAMED["verifier"] == "judge"


def test_the_documented_section_is_the_one_with_the_defaults() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/verification.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(text.partition("## The judge")[2].partition("```yaml\n")[2].partition("```")[0])
    judge = Recipe.model_validate({"name": "r", **shown}).require_judge()
    plain = Recipe.model_validate({"name": "r", "judge": {"model": judge.model}}).require_judge()
    assert judge.model_copy(update={"endpoints": [], "prices": None}) == plain
