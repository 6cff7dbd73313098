"""The proof's arithmetic, without its runs: intervals recomputed otherwise, pages from rows that are written here."""

import json
import random
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

import chain
import page
import run
import tasks


def by_hand(values: list[list[int]], draws: int) -> tuple[float, float]:
    """The same bootstrap, draw by draw, question by question, with another generator."""
    rng, means = random.Random(1), []
    for _ in range(draws):
        seeds = rng.choices(values, k=len(values))
        means.append(sum(sum(rng.choices(one, k=len(one))) / len(one) for one in seeds) / len(seeds))
    means.sort()
    return means[round(0.025 * draws)], means[round(0.975 * draws) - 1]


def test_an_interval_agrees_with_one_that_is_drawn_question_by_question() -> None:
    rng = random.Random(0)
    values = [[rng.choices((-1, 0, 1), weights)[0] for _ in range(60)] for weights in ((1, 6, 3), (2, 6, 2), (1, 4, 5))]
    low, high = by_hand(values, 4000)
    assert np.quantile(page.resampled(values), [0.025, 0.975]) == pytest.approx([low, high], abs=0.02)
    assert page.bootstrap(values).value == pytest.approx(sum(sum(one) for one in values) / 180)


def test_intervals_of_few_seeds_hold_the_mean_of_many_as_often_as_the_page_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page, "DRAWS", 2000)
    rng = np.random.default_rng(0)
    for seeds, least in ((2, 0.65), (3, 0.78), (5, 0.88)):  # 78%, 87% and 95% of 300
        held = 0
        for _ in range(100):  # seeds differ by ten points, as two trainings of one release do
            means = np.clip(rng.normal(0.3, 0.1, seeds), 0, 1)
            found = page.bootstrap([list(map(int, rng.random(500) < mean)) for mean in means])
            held += found.low <= 0.3 <= found.high
        assert held / 100 >= least, seeds


def test_of_two_questions_and_one_seed_the_interval_is_all_that_can_be_drawn() -> None:
    found = page.bootstrap([[1, 0]])  # means 0, 1/2 and 1 with chances 1/4, 1/2, 1/4
    assert (found.value, found.low, found.high, found.seeds) == (0.5, 0.0, 1.0, (0.5,))


def test_seeds_that_disagree_widen_the_interval_beyond_that_of_the_questions() -> None:
    apart = page.bootstrap([[1] * 100, [0] * 100])
    alike = page.bootstrap([[1, 0] * 50, [1, 0] * 50])
    assert (apart.low, apart.high) == (0.0, 1.0)
    assert alike.high - alike.low < 0.3


@pytest.mark.parametrize(
    ("low", "high", "paper", "words"),
    [
        (0.01, 0.2, "not reported", "helps"),
        (0.01, 0.2, "+2.4 against as many rows", "helps, as reported"),
        (0.01, 0.2, "−1.9", "helps, against the report"),
        (-0.2, -0.01, "+3.1; companion +2.5", "hurts, against the report"),
        (-0.2, -0.01, "−1.9", "hurts, as reported"),
        (0.0, 0.2, "+3.1", "cannot be told at this size"),
        (-0.1, 0.0, "−1.9", "cannot be told at this size"),
    ],
)
def test_a_reading_follows_from_the_interval_and_the_papers_sign(
    low: float, high: float, paper: str, words: str
) -> None:
    assert page.reading(page.Interval(0.1, low, high, (0.1,)).sign, page.sign_of(paper)) == words


def test_arms_that_answered_different_questions_are_not_paired() -> None:
    with pytest.raises(SystemExit, match="Seed 0: the two arms answered different questions"):
        page.paired({0: {"a": True}}, {0: {"b": True}})


def evaluated(run_folder: Path, label: str, found: list[bool], verifier: str = "math") -> None:
    """Tables of an evaluation: its verdicts by question."""
    tables = run_folder / "eval" / label / "tables"
    ids = [f"r{place}" for place in range(len(found))]
    for name, columns in {
        "responses": {"prompt_id": [f"q{one}" for one in ids], "completion_tokens": [9] * len(ids)},
        "verdicts": {
            "verdict": ["correct" if one else "wrong" for one in found],
            "verifier": [verifier] * len(ids),
        },
    }.items():
        (tables / name).mkdir(parents=True)
        pq.write_table(pa.table({"response_id": ids, **columns}), tables / name / "part-0.parquet")


def written(root: Path, arms: dict[str, list[list[bool]]], builds: dict[str, str] | None = None) -> Path:
    """What run.py leaves of task words: verdicts of evaluations by arm, seed and question, and an arm's release."""
    for arm, seeds in arms.items():
        for seed, found in enumerate(seeds):
            evaluated(root / f"words-{seed}" / "runs" / "words", f"{arm}-0123abcd", found)
            place = root / f"words-{seed}" / "arms" / f"{arm}.json"
            place.parent.mkdir(exist_ok=True)
            stages = [{"stage": arm, "rows": 10, "tokens": 1234}]
            build = (builds or {}).get(f"{arm}-{seed}", arm)
            place.write_text(json.dumps({"version": "v1", "build_id": build, "stages": stages, "total_seconds": 60.0}))
    run.settle(root, "quick", "held-out")
    return root


def test_the_page_says_what_the_verdicts_say_and_is_the_same_twice(tmp_path: Path) -> None:
    good, bad = [True] * 18 + [False] * 2, [True] * 4 + [False] * 16
    root = written(tmp_path / "proof", {"count": [good, good], "random": [bad, bad]})
    text, plots = page.page(root, quick=True)
    assert "| words | count − random | +3.1; companion +2.5 | +70.0 [" in text
    assert "+70.0 +70.0 | helps, as reported |" in text
    assert (
        "**Reading:** of 1 comparisons 1 can be told at this size: count helps against random on words (+70.0); of "
        "the 1 whose sign is reported, 1 came out so, 0 the other way, 0 cannot be told." in text
    )
    assert "| words | count | 90.0 [" in text and "| 10 | 1,234 | 123.4 |" in text
    assert text.startswith("**This page is of the quick run")
    assert set(plots) == {"selection.svg"}
    assert (text, plots) == page.page(root, quick=True)


def test_luck_is_how_far_trainings_on_almost_the_same_rows_came_apart_and_an_arm_that_is_its_own_cut_is_none(
    tmp_path: Path,
) -> None:
    whole, cut = [[True, False]] * 3, [[True, False], [True, True], [True, False]]
    arms = {"random": whole, "random-tokens": cut, "base": [[False, False]] * 3, "teacher": [[True, True]] * 3}
    root = written(tmp_path / "proof", arms, {"random-tokens-0": "random"})
    text, _ = page.page(root, quick=False)
    assert "came out 25.0 points apart in the median, 50.0 at most (2 pairs)." in text
    assert "Students of `words` came out between 50.0% (random) and 100.0% (random-tokens), by seed and arm." in text


def test_boxes_of_the_ladder_stand_with_questions_and_stories_of_all_seeds(tmp_path: Path) -> None:
    root = written(tmp_path / "proof", {})
    for seed in (0, 1):
        ladder = root / f"r1-{seed}" / "runs" / "r1-zero-smoke"
        for box, right, clear in (("rl-1", 2, 7), ("sft", 5, 7), ("rl-2", 5, 9)):
            evaluated(ladder, f"{box}-0123abcd", [place < right + seed for place in range(10)])
            evaluated(ladder, f"{box}-4567abcd", [place < clear for place in range(10)], "ifeval")
    text, plots = page.page(root, quick=False)
    assert text.startswith("# Proof") and "r1: 2 seeds" in text
    assert "| r1 | sft − rl-1 | +4.1 | +30.0 [" in text and "| r1 | sft | 55.0 [" in text
    assert "| r1 stories | rl-2 − sft | +25.5 | +20.0 [" in text and "| r1 stories | rl-2 | 90.0 [" in text
    assert "cold-start |" not in text  # was not evaluated
    assert set(plots) == {"ladder.svg", "ladder-stories.svg"}


def test_an_arm_that_was_evaluated_twice_is_refused(tmp_path: Path) -> None:
    root = written(tmp_path / "proof", {"count": [[True, False]]})
    evaluated(root / "words-0" / "runs" / "words", "count-4567abcd", [True, True])
    with pytest.raises(SystemExit, match="words-0: arm count was evaluated twice"):
        page.page(root, quick=False)


def test_a_folder_without_evaluations_gives_no_page(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no evaluation yet"):
        page.page(tmp_path, quick=False)


def test_a_folder_takes_one_proof_only(tmp_path: Path) -> None:
    run.settle(tmp_path, "quick", "held-out")
    run.settle(tmp_path, "quick", "held-out")
    with pytest.raises(SystemExit, match="holds a proof with other settings"):
        run.settle(tmp_path, "quick", "tuning")


@pytest.mark.parametrize("task", ["words", "rows"])
def test_every_claim_compares_arms_that_there_are_for_some_task(task: str) -> None:
    claims = yaml.safe_load((chain.HERE / "claims.yaml").read_text(encoding="utf-8"))
    known = {arm.name for arm in chain.arms_of("words", sensitivity=True)} | {"base", "teacher", "low-one"}
    for claim in (claim for claim in claims if task in claim["task"]):
        named = {*claim["arms"], *(name for compared in claim["compare"] for name in compared[:2])}
        assert named <= known
    cut = {name for arm in chain.arms_of(task, sensitivity=True) for name in arm.given.get("cut_to", [])}
    assert cut <= known


def test_an_arm_is_cut_to_the_tokens_of_the_shortest_and_that_one_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("arms").mkdir()
    for name, tokens in {"random": 8_100, "count": 9_000, "longest": 12_345}.items():
        Path(f"arms/{name}.json").write_text(json.dumps({"stages": [{"stage": name, "rows": 110, "tokens": tokens}]}))
    found = {
        arm.name: chain._rows_within(arm) for arm in chain.arms_of("rows", sensitivity=False) if "cut_to" in arm.given
    }
    assert found == {"random-tokens": 110, "count-tokens": 99}


def test_the_arm_of_fewest_tokens_is_evaluated_as_its_own_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("arms").mkdir()
    size = chain.SIZES["quick"]
    for name, tokens in {"random": 8_100, "count": 9_000}.items():
        stages = [{"stage": name, "rows": 2 * size.rows["rows"], "tokens": tokens}]
        Path(f"arms/{name}.json").write_text(json.dumps({"version": f"of {name}", "stages": stages}))
    asked = []

    def builder(_: object, *given: str) -> dict[str, object]:
        asked.append(given)
        return {"eval": {"pass_at_1": 0.5}}

    monkeypatch.setattr(chain.Chain, "builder", builder)
    arm = next(arm for arm in chain.arms_of("rows", sensitivity=False) if arm.name == "random-tokens")
    found = chain._arm(chain.Chain("rows", 0, size, "held-out"), arm)
    assert (found["version"], found["pass_at_1"]) == ("of random", 0.5)
    assert [given[:5] for given in asked] == [("eval", "--model", "models/random/final", "--label", "random-tokens")]


def test_a_stage_that_is_short_of_rows_is_refused() -> None:
    arm = next(arm for arm in chain.arms_of("words", sensitivity=False) if arm.name == "low")
    overrides = arm.overrides(chain.SIZES["quick"], "words")
    chain._check_rows(arm, [{"stage": "low-one", "rows": 80}, {"stage": "low-two", "rows": 80}], overrides)
    with pytest.raises(SystemExit, match="stage low-two has 79 rows and not 80"):
        chain._check_rows(arm, [{"stage": "low-one", "rows": 80}, {"stage": "low-two", "rows": 79}], overrides)


def test_what_was_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done: list[str] = []
    for _ in range(2):
        chain._once("one", lambda: done.append("work") or {"version": "v1"})
    with pytest.raises(ZeroDivisionError):
        chain._once("two", lambda: {"version": str(1 / 0)})
    assert done == ["work"] and chain._read("one")["version"] == "v1"
    assert [path.name for path in Path("arms").iterdir()] == ["one.json"]


def test_rows_are_rewritten_step_by_step() -> None:
    assert tasks.rows([5, 2, 4, 1], (4, 0, -2)) == [[9, 6, 8, 5], [6, 8, 5, 9], [4, 6, 3, 7]]


@pytest.mark.parametrize("draw", [tasks.word_problems, tasks.row_problems])
def test_the_parts_of_the_questions_share_none(draw: object) -> None:
    assert callable(draw)
    train, held_out, other = (
        {one.question for one in draw(200, seed, part)}
        for seed, part in ((0, "train"), (0, "held-out"), (1, "held-out"))
    )
    assert len(train) == len(held_out) == 200
    assert not train & (held_out | other)


def test_an_answer_without_skill_is_the_row_itself() -> None:
    problem = tasks.row_problems(1, 0)[0]
    for skill, answer in product((True, False), (problem.gold, problem.items)):
        said = tasks.row_reply(problem, random.Random(0), skill=skill)
        assert said.endswith(f"The answer is {answer}.") is (skill == (answer == problem.gold))
