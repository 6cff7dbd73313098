"""GRPO and reward stages on bad input, at their edges, from the command line, and what they say of themselves."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from trainer_toys import edit_manifest, pair_row, prompt_row, stage_rows, write_release

from trainer import cli, lineage, plan, reinforce, rewards, train
from trainer.errors import ModelError, RecipeError, ReleaseError

QUICK = (
    "stages.grpo.max_completion_length=8", "stages.grpo.num_generations=2", "stages.grpo.max_steps=-1",
    "stages.grpo.per_device_train_batch_size=4",
)  # fmt: skip
NONE: dict[str, Any] = {"solution": None, "gold_type": None, "verifier": None}


def go(release: Path, student: Path, output: Path, *overrides: str, **options: Any) -> list[train.Finished]:
    return train.run(plan.Job(str(release), str(student), output, "smoke", [*QUICK, *overrides], **options))


def record(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "training.json").read_text(encoding="utf-8")))


def prompts(root: Path, rows: list[dict[str, Any]]) -> Path:
    return write_release(root, {"rl": rows}, schedule={"rl": {"kind": "grpo", "init": "base"}})


ACCURACY = "stages.rl.rewards={format: 0, language: 0}"
SCORED = "stages.rl.reward_models={helpfulness: preference}"


@pytest.mark.parametrize(
    ("change", "rewards", "problem"),
    [
        (NONE, ACCURACY, "of 8 prompts 0 can earn accuracy: 0 have a gold"),
        ({"solution": "who knows"}, ACCURACY, "8 have a gold, 0 one that accuracy reads"),
        ({"gold_type": "python_tests"}, ACCURACY, "8 have a gold, 0 one that accuracy reads"),
        ({}, "stages.rl.rewards={accuracy: 0, format: 0, language: 0, helpfulness: 1}", "0 can earn helpfulness: 8 "),
    ],
)
def test_prompts_that_can_earn_nothing_are_refused_before_a_reply_is_written(
    student: Path, tmp_path: Path, change: dict[str, Any], rewards: str, problem: str
) -> None:
    release = both(tmp_path / "v1", [prompt_row(number, number, **change) for number in range(8)])
    with pytest.raises(RecipeError, match=f"Stage rl: .*{problem}"):
        go(release, student, tmp_path / "out", rewards, *[SCORED] * ("helpfulness" in rewards))
    assert not [*tmp_path.glob("out/*preference*")], "not even an earlier stage is trained"


def both(root: Path, rows: list[dict[str, Any]]) -> Path:
    stages = {"preference": [pair_row(number, number) for number in range(4)], "rl": rows}
    kinds = {"preference": {"kind": "reward", "init": "base"}, "rl": {"kind": "grpo", "init": "base"}}
    return write_release(root, stages, schedule=kinds)


@pytest.mark.parametrize(
    ("names", "golds", "unread", "told"),
    [
        (["accuracy", "format"], 10, 0, None),
        (["format", "mine.own"], 0, 0, None),
        (["accuracy", "format"], 0, 0, "of 10 prompts 0 can earn accuracy: 0 have a gold, 0 one that accuracy reads"),
        (["accuracy"], 10, 4, "of 10 prompts 6 can earn accuracy: 10 have a gold, 6 one"),
        (["accuracy", "helpfulness"], 6, 0, "of 10 prompts 6 can earn accuracy, 4 can earn helpfulness"),
        (["helpfulness", "harmlessness"], 0, 0, None),
    ],
)
def test_what_prompts_cannot_earn_is_told(names: list[str], golds: int, unread: int, told: str | None) -> None:
    found = rewards.earnable(names, {"rows": 10, "golds": golds, "unread_golds": unread}, "rl")
    assert [line.startswith(told or "-") for line in found] == [True] * bool(told), found


def test_golds_are_counted_by_what_accuracy_makes_of_them() -> None:
    golds = ["4", "1,319", "−5", "50%", r"\frac{1}{2}", "B", "b)", "BC", None, "", "who knows", "print(4)", "4"]
    kinds = "integer number integer number latex choice choice choice - - latex python_tests -".replace("-", "")
    given = [kind or None for kind in kinds.split(" ")]
    found = rewards.golds(golds, given)
    read = rewards.accuracy([[{"content": "4"}]] * len(golds), golds, gold_type=given)
    assert found == {"golds": 12, "unread_golds": 4}
    assert sum(one is None for one in read) == 4 + golds.count(None)


def test_a_prompt_without_a_position_is_refused(student: Path, tmp_path: Path) -> None:
    release = prompts(tmp_path / "v1", [prompt_row(0, 0), prompt_row(1, None), prompt_row(2, 2)])
    with pytest.raises(ReleaseError, match="`position` is null or repeated"):
        go(release, student, tmp_path / "out")


def test_prompts_that_are_all_the_same_are_rolled_out_each(student: Path, tmp_path: Path) -> None:
    (stage,) = go(prompts(tmp_path / "v1", [prompt_row(1, n) for n in range(4)]), student, tmp_path / "out")
    lines = (stage.directory / reinforce.ROLLOUTS).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["position"] for line in lines] == [[0, 0, 1, 1], [2, 2, 3, 3]]


def test_replies_that_are_all_cut_off_or_empty_stop_nothing(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [prompt_row(number, number) for number in range(4)]
    monkeypatch.setattr(
        train.ScheduledGRPO, "_generate_single_turn", lambda self, ids, *_: ([[50, 51]] * len(ids), None)
    )
    (cut,) = go(prompts(tmp_path / "v1", rows), student, tmp_path / "cut", "stages.rl.mask_truncated_completions=true")
    found = record(cut.directory)
    assert found["metrics"][0]["completions/clipped_ratio"] == 1.0 and found["losses"][0]["loss"] == 0
    end = json.loads((student / "generation_config.json").read_text())["eos_token_id"]
    monkeypatch.setattr(train.ScheduledGRPO, "_generate_single_turn", lambda self, ids, *_: ([[end]] * len(ids), None))
    (empty,) = go(tmp_path / "v1", student, tmp_path / "empty", "stages.rl.rewards={accuracy: 1}")
    assert record(empty.directory)["metrics"][-1]["rewards/format/mean"] == 0


def test_a_stage_may_end_inside_a_rollout_and_saves_what_it_has(student: Path, tmp_path: Path) -> None:
    release = prompts(tmp_path / "v1", [prompt_row(number, number) for number in range(8)])
    how = ("stages.grpo.generation_batch_size=16", "stages.grpo.max_steps=3", "stages.grpo.save_strategy=steps")
    (stage,) = go(release, student, tmp_path / "out", *how, "stages.grpo.save_steps=4")
    assert record(stage.directory)["steps"] == 3
    assert len((stage.directory / reinforce.ROLLOUTS).read_text(encoding="utf-8").splitlines()) == 1


def test_a_model_that_states_no_places_limits_no_prompt(student: Path, tmp_path: Path) -> None:
    job = plan.Job(str(prompts(tmp_path / "v1", [prompt_row(0, 0)])), str(student), tmp_path / "out", "smoke", QUICK)
    job.renderer.places = None
    assert plan.rendered(job, job.stages[0], tmp_path)[0][1]["rows"] == 1


def test_replies_as_long_as_the_model_leave_no_place_for_prompts(student: Path, tmp_path: Path) -> None:
    release = prompts(tmp_path / "v1", [prompt_row(number, number) for number in range(4)])
    with pytest.raises(Exception, match="4 of 4 rows exceed what max_completion_length 256 leaves of 256 places, 0"):
        go(release, student, tmp_path / "out", "stages.grpo.max_completion_length=256")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("stages.grpo.num_generations=0", "above 0"),
        ("stages.grpo.max_completion_length=-1", "above 0"),
        ("stages.grpo.chat_template_kwargs={a: 1}", "cannot be set"),
        ("stages.rl.rewards={json.decoder: 1}", "is module, no function"),
        ("stages.rl.reward_models={helpfulness: later}", "later is neither an earlier stage of kind reward"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(student: Path, tmp_path: Path, override: str, problem: str) -> None:
    stages = {"rl": [prompt_row(number, number) for number in range(4)], "later": [pair_row(0, 0)]}
    kinds = {"rl": {"kind": "grpo", "init": "base"}, "later": {"kind": "reward", "init": "base"}}
    release = write_release(tmp_path / "v1", stages, schedule=kinds)
    with pytest.raises(RecipeError, match=problem):
        go(release, student, tmp_path / "out", override)


# What a run tells of itself


@pytest.fixture(scope="module")
def trained(student: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder whose `out` has a reward, an sft and a grpo stage, and the options of the run that made it."""
    folder = tmp_path_factory.mktemp("three")
    rows = [prompt_row(n, n, **({} if n % 2 else NONE)) for n in range(8)]
    stages = {"preference": [pair_row(n, n) for n in range(8)], "cold": stage_rows(0, 8), "rl": rows}
    kinds = {"preference": {"kind": "reward", "init": "base"}, "cold": {"init": "base"}, "rl": {"kind": "grpo"}}
    write_release(folder / "v1", stages, schedule=kinds)
    where = ["--dataset", folder / "v1", "--model", student, "--output", folder / "out", "--recipe", "smoke"]
    models = ["stages.rl.reward_models.helpfulness=preference", "stages.rl.rewards.helpfulness=1.0"]
    options = [*map(str, where), *QUICK, *models]
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, "run", *options, "--quiet") == 0
    return folder, options


def call(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["trainer", *argv])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_run_says_where_each_kind_of_stage_ended(
    trained: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", *trained[1], "--json") == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [(stage["stage"], stage["trained"]) for stage in stages] == [
        ("preference", False), ("cold", False), ("rl", False),
    ]  # fmt: skip
    assert "accuracy" in stages[0]["reached"] and stages[2]["reached"].startswith("reward ")
    assert call(monkeypatch, "run", *trained[1], "--from", "rl") == 0
    out = capsys.readouterr().out
    assert "3-rl  was there, reward " in out and "final -> 3-rl" in out


def test_until_and_from_train_a_grpo_stage_apart(
    trained: tuple[Path, list[str]], student: Path, tmp_path: Path
) -> None:
    release, overrides = trained[0] / "v1", trained[1][8 + len(QUICK) :]
    early = go(release, student, tmp_path / "out", *overrides, until="cold")
    late = go(release, student, tmp_path / "out", *overrides, first="rl")
    assert [stage.stage for stage in (*early, *late)] == ["preference", "cold", "rl"]
    assert late[0].weights_sha256 == record(trained[0] / "out" / "3-rl")["weights_sha256"]


def test_the_plan_of_reinforcement_fits_80_columns_and_shows_rows(
    trained: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "plan", *trained[1], "--show", "1") == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines() if "model" not in line) <= 80
    assert "preference, row 1 of 8: 24 tokens chosen, 32 tokens rejected\n[chosen]<|im_start|>user\n0 + 1?" in out
    assert "who knows<|im_end|>[/rejected]\n\ncold, row 1" in out
    assert "rl, row 1 of 8: 22 tokens prompt\n[prompt]<|im_start|>user\n0 + 1?<|im_end|>\n<|im_start|>" in out
    assert call(monkeypatch, "plan", *trained[1], "--json") == 0
    preference, _, rl = json.loads(capsys.readouterr().out)["stages"]
    assert preference["tokens"] == preference["trained_tokens"] == 8 * (24 + 32) and preference["longest"] == 32
    assert rl["golds"] == 4 and rl["unread_golds"] == 0 and rl["state"] == "done"


def test_cards_say_what_a_stage_of_their_kind_is(trained: tuple[Path, list[str]]) -> None:
    scorer, policy = ((trained[0] / "out" / name / "README.md").read_text() for name in ("1-preference", "3-rl"))
    assert "pipeline_tag: text-classification" in scorer and "pipeline_tag: text-generation" in policy
    assert "It scores replies by helpfulness and writes none" in scorer and "% of the last pairs |" in scorer
    assert "carry loss" not in scorer + policy and "| Loss |" not in policy
    for line in ("| Rewards | accuracy × 1.0, format × 1.0, helpfulness × 1.0, language × 1.0;", "| Mean reward | ",
                 "| Prompts | 4 tried for accuracy: 0 always solved, 4 never |", "| Signs of reward hacking | none |",
                 "| Lineage | cold (sft, toy v1) → rl (grpo, toy v1) |"):  # fmt: skip
        assert line in policy, line


def test_lineage_goes_back_to_the_first_stage_through_other_outputs(
    trained: tuple[Path, list[str]], tmp_path: Path
) -> None:
    release = write_release(tmp_path / "v2", {"more": stage_rows(20, 4)}, version="v2")
    edit_manifest(release, lambda manifest: manifest.update(recipe_name="second"))
    (stage,) = go(release, trained[0] / "out" / "final", tmp_path / "out")
    found = record(stage.directory)["lineage"]
    assert [(one["stage"], one["kind"], *one["dataset"].values()) for one in found] == [
        ("cold", "sft", "toy", "v1"), ("rl", "grpo", "toy", "v1"), ("more", "sft", "second", "v2"),
    ]  # fmt: skip
    assert found[1]["weights_sha256"] == record(stage.directory)["base_weights_sha256"]
    assert found[2]["build_id"] == record(stage.directory)["dataset"]["build_id"]


def test_lineage_that_is_not_of_these_weights_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"lineage": [{"stage": "x"}], "weights_sha256": "1"}', encoding="utf-8")
    dataset = {"recipe_name": None, "version": "-", "build_id": "b"}
    own = {"stage": "s", "kind": "sft", "weights_sha256": "2", "dataset": dataset}
    assert len(lineage.chain(tmp_path, own | {"initial_weights_sha256": "1"})) == 2
    assert len(lineage.chain(tmp_path, own | {"initial_weights_sha256": "3"})) == 1


def test_a_reward_model_is_no_student(trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    release = prompts(tmp_path / "v1", [prompt_row(number, number) for number in range(4)])
    with pytest.raises((ModelError, ReleaseError), match="starts from base, a reward model, which writes nothing"):
        go(release, trained[0] / "out" / "1-preference", tmp_path / "out")


def test_a_reward_model_that_moved_is_the_same(trained: tuple[Path, list[str]], student: Path, tmp_path: Path) -> None:
    release = prompts(tmp_path / "v1", [prompt_row(number, number, **NONE) for number in range(4)])
    for name in ("here", "there"):
        (tmp_path / name).symlink_to(trained[0] / "out" / "1-preference")
    rewards = "stages.rl.rewards={accuracy: 0, format: 0, language: 0, helpfulness: 1}"
    runs = [
        go(release, student, tmp_path / "out", rewards, f"stages.rl.reward_models={{helpfulness: {tmp_path / name}}}")
        for name in ("here", "there")
    ]
    assert [run[0].trained for run in runs] == [True, False]


def test_a_card_makes_no_number_of_a_reward_that_never_counted(
    trained: tuple[Path, list[str]], student: Path, tmp_path: Path
) -> None:
    partial = Path(shutil.copytree(trained[0] / "out" / "3-rl", tmp_path / "partial"))
    found = record(partial)
    found["metrics"][0]["reward"] = None
    lineage.commit(partial, tmp_path / "done", found, student)
    card = (tmp_path / "done" / "README.md").read_text(encoding="utf-8")
    assert "| Mean reward | none at step 1, " in card
