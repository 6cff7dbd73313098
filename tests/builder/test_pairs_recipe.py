"""From a packaged recipe to a release with a config for a reward model: both endpoints scripted, all else real."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from endpoint import Ask, endpoint
from judge_toys import body, parts_of, said
from typer.testing import CliRunner

from builder.cli import app
from builder.decision import plan_selection
from builder.recipe import load_recipe
from builder.schema import RELEASE_REWARD
from builder.store import Run

QUESTIONS = 24


def draw(ask: Ask) -> int:
    return int(hashlib.sha256(f"{ask.question} {ask.body['seed']}".encode()).hexdigest(), 16)


def answer_of(question: str) -> int:
    first, _, second = question.removesuffix("?").partition(" + ")
    return int(first) + int(second)


def final(text: str) -> str:
    """The number that a reply ends with; an order to the judge behind it says nothing."""
    return text.partition("\n\n")[0].rpartition(" ")[2].rstrip(".")


def script(ask: Ask) -> bytes:
    """A teacher that is right half of the time, at some length, and an honest judge."""
    if not ask.question.startswith("The nonce"):
        chance = draw(ask)
        answer = answer_of(ask.question) + chance % 2
        reply = json.loads(body(f"{'So. ' * (chance % 7)}The answer is {answer}"))
        reply["choices"][0]["message"]["reasoning"] = "Adding."
        reply["usage"]["completion_tokens"] = 10 + chance % 7
        return json.dumps(reply).encode()
    parts, nonce = parts_of(ask)
    if "ANSWER" in parts:
        return body(said(nonce, "correct" if final(parts["ANSWER"]) == parts["REFERENCE"] else "wrong"))
    return body(said(nonce, "first" if final(parts["FIRST REPLY"]) == parts["REFERENCE"] else "second"))


def builder(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_smoke_recipe_runs_to_a_release_with_a_reward_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [{"prompt": f"{place} + {3 * place}?", "gold": str(4 * place)} for place in range(1, QUESTIONS + 1)]
    Path("questions.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    with endpoint(script=script, model=None) as server:
        at = [f"prompts.0.source={tmp_path / 'questions.jsonl'}", f"teacher.endpoints.0.url={server.url}"]
        at += [f"judge.endpoints.0.url={server.url}", "release.license=mit"]
        found = builder("run", "r1-preference-smoke", *at)
        asked = len(server.asks)
        again = builder("run", "r1-preference-smoke", *at)
        assert len(server.asks) == asked
    run = Run(tmp_path / "runs" / "r1-preference-smoke")
    table = run.read("pairs")
    assert found["preference"]["judged"] == again["preference"]["kept"] == table.height > QUESTIONS // 3
    counts = found["select"]["pairs"]
    assert counts["judged"] == table.height == counts["under_gap"] + counts["left_out"] + counts["taken"]
    assert counts["under_gap"] == table.filter(gap=0).height > 0 == counts["broken"]
    assert found["release"]["is_new"] and not again["release"]["is_new"]
    (file,) = (run.releases / "v1" / "data" / "preference").glob("*.parquet")
    rows = pq.read_table(file)
    assert rows.schema.names == RELEASE_REWARD.names
    assert rows.num_rows == found["select"]["stages"][0]["rows"] > 0
    for row in rows.to_pylist():
        gold = str(answer_of(row["prompt"][-1]["content"]))
        chosen, rejected = (row[side][0]["content"].rpartition(" ")[2] for side in ("chosen", "rejected"))
        assert chosen == gold != rejected
        assert row["gap"] == 1
    tokens = dict(run.read("responses").select("response_id", "completion_tokens").iter_rows())
    kept = [one.split(":") for one in run.read("selection")["grain_id"]]
    left = [tokens[chosen] - tokens[rejected] for chosen, rejected in kept]
    before = sum(tokens[one["chosen_id"]] - tokens[one["rejected_id"]] for one in table.filter(gap=1).to_dicts())
    assert all(abs(sum(left)) < abs(one) for one in left if one * before > 0)
    manifest = json.loads((run.releases / "v1" / ".builder" / "manifest.json").read_text(encoding="utf-8"))
    assert [(one["config"], one["kind"]) for one in manifest["schedule"]] == [("preference", "reward")]
    assert "sql/mix/preference_pairs.sql" in manifest["sql"]


def test_full_and_smoke_recipe_have_the_same_shape_and_gaps_that_a_judge_can_give() -> None:
    full, smoke = load_recipe("r1-preference"), load_recipe("r1-preference-smoke")
    for recipe in (full, smoke):
        assert recipe.preference is not None and recipe.judge is not None
        assert recipe.preference.min_gap <= recipe.judge.votes
        assert plan_selection(recipe).preference is not None
    assert any(source.gold is not None for source in full.prompts)  # else no judge can be tried
    assert list(full.stages) == list(smoke.stages) == ["preference"]
    assert full.selection.rules == smoke.selection.rules
    assert full.preference is not None and full.preference.min_gap > 1  # arXiv:2501.12948v2 3.1


def test_pairs_without_the_section_is_a_usage_error_in_one_message(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["pairs", "gsm8k-smoke", "--run", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "no `preference` section" in result.stderr
    assert "Traceback" not in result.output
