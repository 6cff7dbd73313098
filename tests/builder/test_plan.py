import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from endpoint import endpoint

from builder.config import Recipe
from builder.errors import SourceError
from builder.generate import generate
from builder.judge_config import Judge
from builder.judge_known import MOST_KNOWN, PAIRS
from builder.pairs import pairs_version
from builder.plan import Plan, make_plan
from builder.prompts import load_prompts, write_prompts
from builder.store import Run, columns_table

HUB = "hf://datasets/org/name"


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "q.jsonl"
    questions = [f"What is {index} + {index}?" for index in (0, 1, 2, 2)]
    path.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in questions))
    return str(path)


def recipe(source: str | dict[str, Any], url: str = "http://127.0.0.1:9/v1", **generation: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "toy",
            "prompts": [{"source": source} if isinstance(source, str) else source],
            "teacher": {
                "model": "toy",
                "revision": "r1",
                "endpoints": [{"url": url}],
                "prices": {"input": 1.0, "output": 10.0},
            },
            "generation": {"samples": 4, "max_tokens": 100, **generation},
            "selection": {"selector": "random", "rules": []},
        }
    )


def plan(run: Run, asked: Recipe, **options: Any) -> Plan:
    return make_plan(run, asked, **options)


def ask(run: Run, asked: Recipe, limit: int | None = None) -> None:
    prompts = load_prompts(asked, limit=limit)
    write_prompts(run, prompts)
    generate(run, asked, prompts)


def test_requests_are_prompts_times_temperatures_times_samples(tmp_path: Path, source: str) -> None:
    found = plan(Run(tmp_path / "run"), recipe(source))
    assert (found.prompts, found.duplicates) == (3, 1)
    assert (found.need.total, found.need.stored, found.need.missing) == (24, 0, 24)
    assert (found.at_most_tokens, found.at_most_usd) == (2400, 0.024)
    assert plan(Run(tmp_path / "run"), recipe(source), limit=2).need.total == 16
    assert not (tmp_path / "run").exists()  # a plan writes nothing


def test_before_any_reply_nothing_is_estimated(tmp_path: Path, source: str) -> None:
    found = plan(Run(tmp_path / "run"), recipe(source))
    assert (found.completion_tokens, found.cost_usd, found.disk_bytes, found.measured_replies) == (None, None, None, 0)


def test_what_is_paid_for_is_subtracted_and_the_rest_estimated_from_it(tmp_path: Path, source: str) -> None:
    run = Run(tmp_path / "run")
    with endpoint() as server:
        ask(run, recipe(source, server.url, samples=1))
    found = plan(run, recipe(source, samples=3))
    assert (found.need.total, found.need.stored, found.measured_replies) == (18, 6, 6)
    assert found.completion_tokens is not None  # all replies have 7 tokens: an interval without width
    assert (found.completion_tokens.value, found.completion_tokens.low, found.completion_tokens.high) == (84, 84, 84)
    assert found.cost_usd is not None
    assert found.cost_usd.value == pytest.approx((12 * 11 * 1.0 + 84 * 10.0) / 1e6)
    assert found.disk_bytes is not None
    assert found.disk_bytes.value > 84
    assert plan(run, recipe(source, samples=1)).at_most_usd == 0


def test_estimates_carry_the_95_percent_interval_of_the_mean(tmp_path: Path, source: str) -> None:
    run = Run(tmp_path / "run")
    for limit, seed in ((3, 0), (100, 1)):  # six replies of 3 tokens, six of 7: mean 5, sd 2.09
        with endpoint() as server:
            ask(run, recipe(source, server.url, samples=1, max_tokens=limit, seed=seed))
    found = plan(run, recipe(source, samples=1, seed=2))
    assert found.completion_tokens is not None
    half = 1.96 * (4 * 12 / 11) ** 0.5 / 12**0.5
    assert found.completion_tokens.value == pytest.approx(6 * 5)
    assert found.completion_tokens.low == pytest.approx(6 * (5 - half))
    assert found.completion_tokens.high == pytest.approx(6 * (5 + half))


def test_a_cut_reply_counts_as_missing_under_a_larger_limit(tmp_path: Path, source: str) -> None:
    run = Run(tmp_path / "run")
    with endpoint() as server:
        ask(run, recipe(source, server.url, samples=1, max_tokens=3))
    assert plan(run, recipe(source, samples=1, max_tokens=3)).need.missing == 0
    assert plan(run, recipe(source, samples=1, max_tokens=64)).need.missing == 6


def test_a_hub_source_is_planned_from_its_declared_rows_without_a_download(tmp_path: Path) -> None:
    found = plan(Run(tmp_path / "run"), recipe({"source": HUB, "rows": 1000}))
    assert (found.prompts, found.need.total) == (1000, 8000)
    assert any("generate will refuse it until prompts.0.revision" in warning for warning in found.warnings)
    assert plan(Run(tmp_path / "run"), recipe({"source": HUB, "rows": 1000}), limit=10).need.total == 80
    with pytest.raises(SourceError, match=r"nothing is downloaded for a plan\. Declare prompts\.N\.rows"):
        plan(Run(tmp_path / "run"), recipe({"source": HUB}))


def test_what_a_hub_recipe_has_paid_is_known_from_the_run(tmp_path: Path, source: str) -> None:
    run = Run(tmp_path / "run")
    with endpoint() as server:
        ask(run, recipe(source, server.url), limit=2)
    found = plan(run, recipe({"source": HUB, "rows": 1000}))
    assert (found.need.total, found.need.stored) == (8000, 16)


def test_an_undeclared_teacher_revision_is_warned_about(tmp_path: Path, source: str) -> None:
    given = recipe(source)
    unnamed = given.model_copy(update={"teacher": given.require_teacher().model_copy(update={"revision": None})})
    assert "teacher.revision is not declared" in plan(Run(tmp_path), unnamed).warnings[0]
    assert plan(Run(tmp_path), given).warnings == []


def test_a_judges_requests_and_price_are_named(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    golds = [("4", "number", None), ("5", "number", "judge"), ("prose", "reference_text", None), (None, None, None)]
    rows = [{"prompt": f"{gold}?", "gold": gold, "gold_type": kind, "verifier": by} for gold, kind, by in golds]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"model": "j", "votes": 5, "max_tokens": 1000, "prices": {"input": 1, "output": 3}}
    judged = recipe(str(path)).model_copy(update={"judge": Judge.model_validate(section)})
    (said,) = plan(Run(tmp_path), judged).warnings
    assert "judge j on top: 5 votes, at most $0.0030 of output each" in said
    assert "at most 16 replies that no verifier reads" in said  # 2 prompts, 2 temperatures, 4 samples
    even = judged.model_copy(update={"judge": Judge.model_validate(section | {"votes": 4})})
    assert "4 votes (as many for as against is no verdict)" in plan(Run(tmp_path), even).warnings[0]


def test_a_recipe_without_a_teacher_counts_its_prompts_and_asks_nothing(tmp_path: Path, source: str) -> None:
    found = plan(Run(tmp_path), recipe(source).model_copy(update={"teacher": None}))
    assert (found.prompts, found.duplicates, found.need.total, found.cost_usd) == (3, 1, 0, None)
    assert "names no teacher" in found.warnings[-1]


def preferring(source: str, **judge: Any) -> Recipe:
    section = {"model": "j", "votes": 3, "max_tokens": 1000, "prices": {"input": 1, "output": 3}, **judge}
    given = recipe(source, samples=1).resolved()
    preference = {"preference": {"pairs_per_prompt": 2}, "stages": {"preference": {"kind": "reward"}}}
    return Recipe.model_validate(given | preference | {"judge": section})


def test_votes_on_pairs_are_two_requests_each_at_the_judges_price(tmp_path: Path, source: str) -> None:
    given = preferring(source)
    votes = plan(Run(tmp_path), given).pair_votes
    assert votes is not None
    assert votes.votes == 3 * 1 * 3 * 2  # 3 prompts; two replies, at two temperatures, make one pair; 3 votes both ways
    assert votes.tries == 3 * (MOST_KNOWN + 2 * PAIRS)
    assert votes.at_most_usd == pytest.approx((votes.votes + votes.tries) * 1000 * 3 / 1e6)
    more = given.model_copy(update={"generation": given.generation.model_copy(update={"samples": 2})})
    for asked, limit, pairs in ((more, None, 6), (more, 1, 2)):
        found = plan(Run(tmp_path), asked, limit=limit).pair_votes
        assert found is not None
        assert found.votes == pairs * 3 * 2
    assert plan(Run(tmp_path), preferring(source, prices=None)).pair_votes == replace(votes, at_most_usd=None)


def test_pairs_that_this_judge_has_judged_are_not_counted_again(tmp_path: Path, source: str) -> None:
    given, run = preferring(source), Run(tmp_path)
    prompt = load_prompts(given).rows[0]["prompt_id"]
    row = {"prompt_id": prompt, "chosen_id": "a", "rejected_id": "b", "votes": ["chosen"] * 3, "gap": 3.0}
    for version, pairs in ((pairs_version(given), 2), ("another judge", 3)):
        run.replace("pairs", columns_table("pairs", [{**row, "judge_version": version}]))
        votes = plan(run, given).pair_votes
        assert votes is not None
        assert votes.votes == pairs * 3 * 2


def test_quotas_are_counted_and_one_beyond_all_replies_is_named(tmp_path: Path, source: str) -> None:
    def quotas(rows: int) -> Recipe:
        stage = {"quotas": {"rows": rows, "weights": {"math": 2, "general": 1}}}
        return Recipe.model_validate(recipe(source).resolved() | {"stages": {"mix": stage}})

    found = plan(Run(tmp_path), quotas(6))
    assert found.quota_rows == {"mix": {"math": 4, "general": 2}}
    assert not found.warnings  # 3 prompts, 2 temperatures, selection.keep 1
    (said,) = plan(Run(tmp_path), quotas(9)).warnings
    assert "stages.mix.quotas asks for 9 rows, but these prompts give at most 6" in said
