"""Quotas: shares by largest remainder, rows by a hash within a domain, and what is said where a domain is short."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from release_toys import whole
from test_selection import prompt, reply

from builder.config import Recipe
from builder.console import Reporter
from builder.decision import plan_selection
from builder.errors import SourceError, SqlError, UsageError
from builder.explain import explain
from builder.import_command import import_dataset, import_given
from builder.import_result import Declared
from builder.pipeline import Steps
from builder.quota_config import Quotas
from builder.release import release
from builder.selection import SelectionResult, select
from builder.store import Run, columns_table

TABLE_5 = {"math": 395_285, "code": 211_129, "stem": 10_124, "logic": 10_395, "general": 177_812}
"""Rows of DeepSeek-R1's second fine-tuning, arXiv:2501.12948v2 Table 5."""
DOMAINS = {"math": 40, "code": 25, "general": 30, "chess": 3, None: 2}
"""Prompts of the run, one reply each."""


def make_run(root: Path, domains: dict[str | None, int] | None = None) -> Run:
    run = Run(root)
    names = [
        (f"{domain}-{index:03}", domain) for domain, count in (domains or DOMAINS).items() for index in range(count)
    ]
    prompts = [{**prompt(name), "domain": domain} for name, domain in names]
    run.append("prompts", columns_table("prompts", prompts))
    run.append("responses", columns_table("responses", [reply(f"r-{name}", name) for name, _ in names]))
    return run


def recipe(rows: int, weights: dict[str, float], seed: int = 0, **changes: Any) -> Recipe:
    stages = {"mix": {"quotas": {"rows": rows, "weights": weights}, **changes.pop("stage", {})}}
    return Recipe.model_validate(
        {
            "name": "mixed", "generation": {"seed": seed}, "stages": changes.pop("stages", stages),
            "selection": {"rules": ["response_truncated"], "selector": "random"}, **changes,
        }
    )  # fmt: skip


def picked(run: Run, stage: str = "mix") -> list[str]:
    return run.read("selection").filter(pl.col("stage") == stage).sort("position")["grain_id"].to_list()


def domains_of(ids: list[str]) -> Counter[str]:
    return Counter(name.split("-")[1] for name in ids)


@given(
    st.integers(1, 10**6),
    st.dictionaries(st.text(min_size=1, max_size=3), st.one_of(st.integers(0, 10**6), st.floats(0, 1e6)), min_size=1),
)
def test_counts_add_up_and_are_the_exact_share_rounded_one_way_or_the_other(rows: int, weights: Any) -> None:
    if not any(weights.values()):
        return
    counts = Quotas(rows=rows, weights=weights).counts()
    whole_weight = sum(weights.values())
    assert sum(counts.values()) == rows
    for name, count in counts.items():
        assert abs(count - rows * weights[name] / whole_weight) < 1 + 1e-6
        assert count == 0 or weights[name]


def test_counts_of_table_5_as_worked_by_hand() -> None:
    assert Quotas(rows=804_745, weights=TABLE_5).counts() == TABLE_5
    # shares of 80,000: 39295.429, 20988.412, 1006.431, 1033.371, 17676.357; two rows remain, for stem and math
    assert Quotas(rows=80_000, weights=TABLE_5).counts() == {
        "math": 39_296, "code": 20_988, "stem": 1_007, "logic": 1_033, "general": 17_676,
    }  # fmt: skip


def test_equal_remainders_go_to_the_domain_that_is_named_first() -> None:
    assert Quotas(rows=2, weights={"b": 1, "a": 1, "c": 1}).counts() == {"b": 1, "a": 1, "c": 0}


def test_weights_are_the_decimals_that_they_are_written_as() -> None:
    assert Quotas(rows=10, weights={"a": 0.1, "b": 0.2, "c": 0.7}).counts() == {"a": 1, "b": 2, "c": 7}


@pytest.mark.parametrize(
    ("quotas", "message"),
    [
        ({"rows": 9, "weights": {"math": -1}}, "a weight is 0 or more"),
        ({"rows": 9, "weights": {"math": float("nan")}}, "a weight is 0 or more"),
        ({"rows": 9, "weights": {"math": 0, "code": 0.0}}, "at least one weight must be above 0"),
        ({"rows": 9, "weights": {}}, "at least 1 item"),
        ({"rows": 0, "weights": {"math": 1}}, "greater than or equal to 1"),
        ({"weights": {"math": 1}}, "Field required"),
        ({"rows": 9, "weight": {"math": 1}}, "Extra inputs"),
    ],
)
def test_quotas_that_cannot_be_are_refused(quotas: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Quotas.model_validate(quotas)


def test_only_stages_that_pick_replies_have_quotas_and_not_that_of_the_mixed_policy() -> None:
    with pytest.raises(ValidationError, match="stage 'mix' of kind grpo has quotas, which pick replies"):
        recipe(9, {"math": 1}, stage={"kind": "grpo"})
    with pytest.raises(ValidationError, match="off_policy_ratio decides what it takes"):
        recipe(9, {"math": 1}, mixed_policy={"stage": "mix"})


def test_each_domain_has_exactly_the_rows_asked_where_enough_survive(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = select(run, recipe(50, {"math": 49.12, "code": 26.24, "general": 24.64}))
    assert domains_of(picked(run)) == {"math": 25, "code": 13, "general": 12}
    assert [(one.domain, one.asked, one.survivors, one.rows) for one in result.quotas] == [
        ("math", 25, 40, 25), ("code", 13, 25, 13), ("general", 12, 30, 12), ("chess", 0, 3, 0), (None, 0, 2, 0),
    ]  # fmt: skip
    assert [(stage.name, stage.rows) for stage in result.stages] == [("mix", 50)]
    (left_out,) = [warning for warning in result.warnings if "with no quota" in warning]
    assert left_out == "Stage mix leaves out replies of domains with no quota, or one of 0 rows: chess 3, no domain 2."


def test_positions_of_a_stage_with_quotas_have_no_gaps_and_its_order_is_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    select(run, recipe(20, {"math": 1, "code": 1}, stage={"order_by": "domain desc, response_id"}))
    rows = run.read("selection").sort("position")
    assert rows["position"].to_list() == list(range(20))
    assert [name.split("-")[1] for name in rows["grain_id"]] == ["math"] * 10 + ["code"] * 10


def test_a_domain_with_too_few_survivors_is_short_and_no_other_fills_the_gap(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"math": 40, "code": 4})
    result = select(run, recipe(20, {"math": 1, "code": 1}))
    assert domains_of(picked(run)) == {"math": 10, "code": 4}
    (warning,) = [line for line in result.warnings if "quotas" in line]
    assert warning.startswith("Stage mix has 6 rows fewer than its quotas ask for: code 4 of 10. Nothing is filled up")


def test_the_same_seed_picks_the_same_rows_in_any_order_of_parts_and_another_seed_others(tmp_path: Path) -> None:
    picks = []
    for index, (domains, seed) in enumerate(
        [(DOMAINS, 0), (dict(reversed(DOMAINS.items())), 0), (DOMAINS, 1)],
    ):
        run = make_run(tmp_path / str(index), domains)
        select(run, recipe(30, {"math": 1, "code": 1, "general": 1}, seed))
        picks.append(picked(run))
    assert picks[0] == picks[1]
    assert domains_of(picks[2]) == domains_of(picks[0])
    assert set(picks[2]) != set(picks[0])


def test_a_larger_quota_only_adds_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before: set[str] = set()
    for rows in (10, 20, 40):
        select(run, recipe(rows, {"math": 1, "general": 1}))
        assert before <= set(picked(run))
        before = set(picked(run))
    assert len(before) == 40


def test_prompts_with_many_survivors_are_not_picked_more_often(tmp_path: Path) -> None:
    """Selector `random` keeps the lowest of a prompt's hashes, which is the lower the more survivors there are."""
    run = Run(tmp_path)
    prompts = [prompt(f"p{index:03}") for index in range(400)]
    samples = {row["prompt_id"]: 1 if index < 200 else 16 for index, row in enumerate(prompts)}
    replies = [reply(f"{name}-{sample}", name) for name, count in samples.items() for sample in range(count)]
    run.append("prompts", columns_table("prompts", prompts))
    run.append("responses", columns_table("responses", replies))
    select(run, recipe(200, {"math": 1}))
    easy = sum(samples[name.partition("-")[0]] == 16 for name in picked(run))
    assert 80 <= easy <= 120  # standard deviation 5; by the selector's own hash it is 177


def test_where_comes_before_quotas_and_stages_pick_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    odd = "response_id like '%1' or response_id like '%3'"
    stages = {
        "odd": {"where": odd, "quotas": {"rows": 8, "weights": {"math": 1, "code": 1}}},
        "all": {},
        "code": {"quotas": {"rows": 5, "weights": {"code": 1}}},
    }
    result = select(run, recipe(1, {}, stages=stages))
    assert all(name.endswith(("1", "3")) for name in picked(run, "odd"))
    assert domains_of(picked(run, "odd")) == {"math": 4, "code": 4}
    assert len(picked(run, "all")) == 100
    assert domains_of(picked(run, "code")) == {"code": 5}
    assert {(one.stage, one.domain): one.survivors for one in result.quotas if one.asked} == {
        ("odd", "math"): 8, ("odd", "code"): 6, ("code", "code"): 25,
    }  # fmt: skip


def test_a_domain_that_no_prompt_has_is_an_error_before_any_work(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(UsageError, match=r"stages\.mix\.quotas asks for rows of domain 'mth'.*did you mean 'math'\?"):
        select(run, recipe(9, {"mth": 1, "code": 1}))
    with pytest.raises(UsageError, match="'mth'"):
        select(run, recipe(9, {"mth": 1, "code": 100}))  # also where its share is no row
    assert run.rows("features") == 0 and not run.database.exists()
    select(run, recipe(9, {"mth": 0, "code": 1}))
    assert domains_of(picked(run)) == {"code": 9}


def test_a_domain_that_only_the_recipe_names_is_known_and_short(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    mine = recipe(10, {"code": 1, "logic": 1}, prompts=[{"source": "logic.jsonl", "domain": "logic"}])
    assert [(one.domain, one.asked, one.rows) for one in select(run, mine).quotas if one.asked] == [
        ("code", 5, 5), ("logic", 5, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(("domain", "is_refused"), [("math", True), (None, False)])
def test_run_refuses_a_misspelt_domain_before_it_asks_a_teacher(
    tmp_path: Path, domain: str | None, is_refused: bool
) -> None:
    mine = recipe(9, {"mth": 1}, prompts=[{"source": "nowhere.jsonl", "domain": domain}])
    with pytest.raises(UsageError if is_refused else SourceError, match="'mth'" if is_refused else "nowhere"):
        Steps(Run(tmp_path), mine, tmp_path, Reporter(quiet=True)).everything()


def test_a_selection_is_another_one_with_other_quotas_and_recipes_without_keep_their_hash() -> None:
    plain = recipe(9, {"math": 1}, stages={"mix": {}})
    some = [plain, *(recipe(rows, {"math": 1, "code": weight}) for rows, weight in ((9, 1), (10, 1), (9, 2)))]
    assert len({plan_selection(one).selection_id for one in some}) == 4
    # the same counts by other weights decide the same rows
    assert plan_selection(some[1]).selection_id == plan_selection(recipe(9, {"math": 50, "code": 50})).selection_id
    assert "quotas" not in plain.decisive()["stages"]["mix"]


def test_quotas_of_ones_own_may_pick_only_what_the_stage_may_take(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    own = tmp_path / "own" / "sql" / "mix"
    own.mkdir(parents=True)
    (own / "quotas.sql").write_text("select response_id as grain_id, 'mix' as stage from stg_responses;\n")
    with pytest.raises(SqlError, match=r"returns r-None-000 for stage mix, whose `where` does not take it"):
        select(run, recipe(9, {"math": 1}, stage={"where": "domain = 'math'"}), recipe_dir=tmp_path / "own")


def test_explain_says_that_the_quota_left_a_reply_out(tmp_path: Path) -> None:
    run, mine = make_run(tmp_path), recipe(5, {"math": 1})
    select(run, mine)
    (first, *_) = sorted(picked(run))
    (other, *_) = sorted({f"r-math-{index:03}" for index in range(40)} - set(picked(run)))
    assert explain(run, mine, first).outcome.startswith("kept: in stage mix")
    assert "the quota of its domain is full" in explain(run, mine, other).outcome


def test_select_prints_asked_and_taken_and_the_release_says_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, {"math": 12, "code": 3, "chess": 1})
    mine = recipe(10, {"math": 1, "code": 1}, teacher={"model": "org/teacher"}, release={"license": "mit"})
    steps = Steps(run, mine, tmp_path, Reporter())
    selected: SelectionResult = steps.select()
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines() if line.startswith("mix") and "sft" not in line] == [
        ["mix", "math", "5", "12", "5"], ["mix", "code", "5", "3", "3"], ["mix", "chess", "0", "1", "0"],
    ]  # fmt: skip
    withdrawn = mine.model_copy(update={"release": mine.release.model_copy(update={"withdrawn": ["code-000"]})})
    path = release(run, withdrawn, select(run, withdrawn)).path
    manifest = whole(path)
    assert manifest["quotas"] == [
        {"stage": "mix", "domain": "math", "asked": 5, "survivors": 12, "rows": 5},
        {"stage": "mix", "domain": "code", "asked": 5, "survivors": 3, "rows": 2},
        {"stage": "mix", "domain": "chess", "asked": 0, "survivors": 1, "rows": 0},
    ]
    assert manifest["schedule"][0]["rows"] == 7
    assert "sql/mix/quotas.sql" in manifest["sql"]
    card = (path / "README.md").read_text(encoding="utf-8")
    assert "| `mix` | `code` | 5 | 3 | 2 **short** |" in card
    assert json.loads((run.root / "events.jsonl").read_text("utf-8").splitlines()[0])["quotas"][1]["rows"] == 3
    assert selected.quotas[1].rows == 3


def rows_by_domain(result: SelectionResult) -> dict[str | None, int]:
    return {one.domain: one.rows for one in result.quotas if one.asked}


def test_a_mix_of_two_releases_and_imported_answers_has_the_counts_asked_for(tmp_path: Path) -> None:
    parts = {"math": {"math": 20}, "general": {"general": 12, "chess": 2}}
    whole_run, quiet = Run(tmp_path / "mix"), Reporter(quiet=True)
    mine = recipe(15, {"math": 3, "general": 2}, teacher={"model": "org/teacher"})
    for name, domains in parts.items():
        run = make_run(tmp_path / name, domains)
        one = recipe(1, {}, stages={name: {}}, teacher={"model": "org/teacher"})
        import_dataset(whole_run, mine, quiet, str(release(run, one, select(run, one)).path))
    answers = tmp_path / "answers.jsonl"
    turns = [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "Hello."}]
    answers.write_text(json.dumps({"messages": turns, "domain": "small-talk"}) + "\n")
    import_given(whole_run, mine, quiet, [str(answers)], "messages", Declared(temperature=0.0, finish_reason="stop"))
    assert rows_by_domain(select(whole_run, mine)) == {"math": 9, "general": 6}
    greeting = recipe(16, {"math": 9, "general": 6, "small-talk": 1}, teacher={"model": "org/teacher"})
    assert rows_by_domain(select(whole_run, greeting)) == {"math": 9, "general": 6, "small-talk": 1}
