"""Real GRPO training of toy students through TRL."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from trainer_toys import CHATML, prompt_row, save_student, train_tokenizer, write_release

from trainer import config, lineage, plan, reinforce, render, schedule, train
from trainer.errors import ModelError, RecipeError, RenderError, StageError

QUICK = [
    "stages.grpo.max_completion_length=12", "stages.grpo.num_generations=2", "stages.grpo.max_steps=-1",
    "stages.grpo.per_device_train_batch_size=4",
]  # fmt: skip


def go(release: Path, student: Path, output: Path, *overrides: str, **options: Any) -> list[train.Finished]:
    return train.run(plan.Job(str(release), str(student), output, "smoke", [*QUICK, *overrides], **options))


def record(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "training.json").read_text(encoding="utf-8")))


def prompts(root: Path, count: int = 8, *, name: str = "rl", **changes: Any) -> Path:
    rows = [prompt_row(number, count - 1 - number, **changes) for number in range(count)]
    return write_release(root, {name: rows}, schedule={name: {"kind": "grpo", "init": "base"}})


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose module `mine` holds rewards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "mine", raising=False)
    return tmp_path / "mine.py"


@pytest.fixture(scope="module")
def done(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished grpo stage of two epochs: the folder holds its release and its output."""
    folder = tmp_path_factory.mktemp("grpo")
    seen: list[list[str]] = []
    generate = train.ScheduledGRPO._generate_and_score_completions

    def spy(self: Any, inputs: Any) -> Any:
        seen.append([row["prompt"][0]["content"] for row in inputs])
        return generate(self, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.ScheduledGRPO, "_generate_and_score_completions", spy)
        go(prompts(folder / "v1"), student, folder / "out", "defaults.num_train_epochs=2")
    (folder / "seen.json").write_text(json.dumps(seen), encoding="utf-8")
    return folder


def test_prompts_are_rolled_out_in_schedule_order_each_as_often_as_asked(done: Path) -> None:
    seen = [prompt for batch in json.loads((done / "seen.json").read_text(encoding="utf-8")) for prompt in batch]
    in_order = [f"{7 - place} + 1?" for epoch in (0, 1) for place in schedule.epoch_order(8, epoch, 42)]
    assert seen == [prompt for prompt in in_order for _ in range(2)]


def test_a_grpo_stage_leaves_weights_rewards_and_a_record(done: Path, student: Path) -> None:
    found = record(done / "out" / "final")
    assert found["kind"] == "grpo" and found["rollouts_by"] == "trl" and found["steps"] == 8
    assert found["weights_sha256"] == lineage.weights_sha256(done / "out" / "final")
    assert found["settings"]["rewards"] == {"accuracy": 1.0, "format": 1.0, "language": 1.0}
    assert {"reward", "rewards/accuracy/mean", "completions/mean_length"} <= found["metrics"][0].keys()
    assert found["prompts"] == {
        "tried": 8, "always_solved": 0, "never_solved": 8, "never": [*range(8)],
    }  # fmt: skip
    lines = (done / "out" / "final" / reinforce.ROLLOUTS).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(8)]


def test_a_finished_grpo_stage_is_skipped(done: Path, student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not go(done / "v1", student, done / "out", "defaults.num_train_epochs=2")[0].trained


def test_prompts_that_nobody_solves_are_told(student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    go(prompts(tmp_path / "v1"), student, tmp_path / "out", quiet=False)
    assert "stage rl: 8 of 8 prompts were never solved: accuracy taught nothing by them" in capfd.readouterr().err


def test_a_reward_is_earned_more_and_more(student: Path, own: Path, tmp_path: Path) -> None:
    body = "[float(sum(c in 'aeiou' for c in t[0]['content'])) for t in completions]"
    own.write_text(f"def vowels(completions, **_):\n    return {body}\n", encoding="utf-8")
    rewards = "stages.rl.rewards={accuracy: 0, format: 0, language: 0, mine.vowels: 1.0}"
    steps = ["stages.grpo.max_steps=40", "stages.grpo.per_device_train_batch_size=32", "stages.grpo.num_generations=8"]
    go(prompts(tmp_path / "v1"), student, tmp_path / "out", rewards, *steps, "stages.grpo.learning_rate=1e-2")
    earned = [entry["reward"] for entry in record(tmp_path / "out" / "final")["metrics"]]
    assert sum(earned[-5:]) > 2 * sum(earned[:5])


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("raise ValueError('no such key')", r"failed at step 0 on 4 completions: ValueError\('no such key'\)"),
        ("return [1.0]", "it gave 1, no list of 4"),
        ("return [0.5, None, float('nan'), 1.0]", "it gave nan; a reward is a finite number, or None"),
        ("return ['high'] * len(completions)", "it gave 'high'"),
        ("return 1.0", "it gave 1.0, no list of 4"),
    ],
)
def test_a_reward_that_raises_or_gives_something_else_stops_the_stage(
    student: Path, own: Path, tmp_path: Path, body: str, problem: str
) -> None:
    own.write_text(f"def bad(completions, **_):\n    {body}\n", encoding="utf-8")
    release = prompts(tmp_path / "v1")
    with pytest.raises(StageError, match=problem):
        go(release, student, tmp_path / "out", "stages.rl.rewards={mine.bad: 1.0}")
    assert not (tmp_path / "out" / "1-rl").exists()


def test_an_asynchronous_reward_is_awaited(student: Path, own: Path, tmp_path: Path) -> None:
    own.write_text("async def one(completions, **_):\n    return [1.0] * len(completions)\n", encoding="utf-8")
    go(prompts(tmp_path / "v1"), student, tmp_path / "out", "stages.rl.rewards={mine.one: 1.0}")
    assert record(tmp_path / "out" / "final")["metrics"][0]["rewards/mine.one/mean"] == 1.0


def test_a_reward_that_fails_half_way_keeps_the_checkpoint_and_the_rest_equals_an_undisturbed_run(
    student: Path, own: Path, tmp_path: Path
) -> None:
    text = (
        "import pathlib\ndef judge(completions, trainer_state, **_):\n    {}\n    return [float(len(t[0]['content'])) "
    )
    text += "for t in completions]\n"
    saves = ["stages.grpo.save_strategy=steps", "stages.grpo.save_steps=2", "stages.rl.rewards={mine.judge: 1.0}"]
    saves += ["stages.grpo.beta=0.05", "stages.grpo.sync_ref_model=true", "stages.grpo.ref_model_sync_steps=2"]
    saves += ["stages.grpo.ref_model_mixup_alpha=1.0", "defaults.num_train_epochs=2", "stages.grpo.learning_rate=1e-2"]
    release = prompts(tmp_path / "v1")
    own.write_text(text.format("assert trainer_state.global_step != 5 or pathlib.Path('up').exists(), 'down'"))
    with pytest.raises(StageError, match=r"Reward mine.judge failed at step 5.*down.*checkpoints are kept"):
        go(release, student, tmp_path / "out", *saves)
    (tmp_path / "up").touch()
    go(release, student, tmp_path / "out", *saves)
    go(release, student, tmp_path / "whole", *saves)
    found, whole = (record(tmp_path / name / "final") for name in ("out", "whole"))
    assert found["weights_sha256"] == whole["weights_sha256"]
    lines = [(tmp_path / name / "final" / reinforce.ROLLOUTS).read_text(encoding="utf-8") for name in ("out", "whole")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["stages.grpo.rewards={accuracy: 0, format: 0, language: 0}"], "names no rewards"),
        (["stages.grpo.per_device_train_batch_size=3"], "TRL refuses the settings: generation_batch_size"),
        (["stages.grpo.per_device_train_batch_size=32"], "8 prompts do not fill a batch of rollouts, which takes 16"),
        (["stages.grpo.max_completion_length=255"], "8 of 8 rows exceed what max_completion_length 255 leaves of 256"),
        (["stages.grpo.reward_weights=[1.0]"], "reward_weights cannot be set"),
        (["stages.rl.reward_models={helpfulness: nowhere}"], "nowhere is neither an earlier stage of kind reward"),
        (["stages.rl.reward_models={kindness: out}"], "Name one for helpfulness or harmlessness"),
        (["stages.grpo.generation_batch_size=8", "stages.grpo.save_strategy=steps", "stages.grpo.save_steps=3"],
         "save_steps 3 is no multiple of the 2 steps that one rollout serves"),
        (["stages.grpo.beta=0.1", "stages.grpo.sync_ref_model=true", "stages.grpo.save_strategy=steps",
          "stages.grpo.save_steps=8"], "ref_model_sync_steps 512, or ref_model_mixup_alpha 0.6 is not 1"),
        (["stages.grpo.rewards=accuracy"], "it wants"),
    ],
)  # fmt: skip
def test_what_grpo_cannot_do_is_refused_before_anything_is_trained(
    student: Path, tmp_path: Path, overrides: list[str], problem: str
) -> None:
    release = prompts(tmp_path / "v1")
    with pytest.raises((RecipeError, RenderError), match=problem):
        go(release, student, tmp_path / "out", *overrides)
    assert not [*tmp_path.glob("out/.1-rl*")]


def test_a_recipe_that_knows_no_lengths_or_rewards_says_what_to_set(student: Path, tmp_path: Path) -> None:
    release = prompts(tmp_path / "v1")
    with pytest.raises(RecipeError, match=r"set defaults.max_completion_length: TRL cuts at 512"):
        plan.Job(str(release), str(student), tmp_path / "out", "sft")


def test_prompts_that_do_not_fill_a_batch_are_told(student: Path, tmp_path: Path) -> None:
    job = plan.Job(str(prompts(tmp_path / "v1", 7)), str(student), tmp_path / "out", "smoke", QUICK)
    counts = {"rows": 7, "golds": 7, "unread_golds": 0}
    assert plan.samples(job, job.stages[0], plan.arguments(job, job.stages[0]), counts) == (
        12,
        ["the last 1 prompts of each epoch's order do not fill a batch of 2 and are left out of it"],
    )


def test_steps_in_the_plan_are_those_of_the_run(student: Path, tmp_path: Path) -> None:
    release = prompts(tmp_path / "v1", 9)
    more = ["stages.grpo.gradient_accumulation_steps=2", "defaults.num_train_epochs=3", "stages.grpo.num_iterations=2"]
    job = plan.Job(str(release), str(student), tmp_path / "out", "smoke", [*QUICK, *more])
    (tmp_path / "rows").mkdir()
    counts = plan.rendered(job, job.stages[0], tmp_path / "rows")[0][1]
    planned = plan.report(job, {"rl": counts})["stages"][0]["steps"]
    go(release, student, tmp_path / "out", *more)
    assert planned == record(tmp_path / "out" / "final")["steps"]


# Templates and rows


def test_the_thoughts_that_a_template_opens_belong_to_what_is_rewarded(tmp_path: Path) -> None:
    opening = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    student = save_student(tmp_path / "student", train_tokenizer(opening))
    renderer = render.Renderer(student, "student")
    reward = reinforce.Reward(
        "seen", lambda completions, **_: [float(len(completions[0][0]["content"]))], renderer.begun
    )
    assert renderer.begun == "<think>\n"
    assert reward([[{"role": "assistant", "content": "hm\n</think>\n\n4"}]]) == [len("<think>\nhm\n</think>\n\n4")]


def test_a_reply_that_a_parser_took_apart_is_put_together() -> None:
    seen: list[str] = []
    reward = reinforce.Reward("seen", lambda completions, **_: seen.append(completions[0][0]["content"]) or [0.0], "")
    reward([[{"role": "assistant", "content": "4", "reasoning_content": "hm"}]])
    assert seen == ["<think>\nhm\n</think>\n\n4"]


def test_a_tokenizer_whose_think_tags_are_special_is_refused(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    student = save_student(tmp_path / "student", tokenizer)
    with pytest.raises(ModelError, match="marks thoughts by special tokens, which TRL's rollouts lose"):
        go(prompts(tmp_path / "v1"), student, tmp_path / "out")


def test_r1s_settings_are_trls_names() -> None:
    recipe = config.load("r1")
    stage = schedule.Stage(
        stage="rl", config="rl", kind="grpo", init="base", rows=1, tokens=None, rowset_hash="0", epochs=None
    )
    found = config.settle(recipe, [stage], [stage])["rl"]
    assert found["ref_model_mixup_alpha"] == 1.0 and found["sync_ref_model"] and found["ref_model_sync_steps"] == 400
    assert found["generation_batch_size"] == 8192 and found["num_generations"] == 16 and found["beta"] == 0.001
    batch = found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] * 8
    assert batch == 512 == 32 * found["num_generations"]
    assert found["save_steps"] % (8192 // 512) == 0 and found["save_steps"] % 400 == 0
    assert math.isclose(found["learning_rate"], 3e-6) and found["epsilon"] == 10 and found["temperature"] == 1.0
