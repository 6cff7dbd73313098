"""GRPO and reward stages in several processes, killed, with adapters, with held-out rows, and gamed."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_lives import content, finish, launch, live
from trainer_toys import edit_manifest, pair_row, prompt_row, write_release
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from trainer import plan, reinforce, train
from trainer.errors import RecipeError, ReleaseError

EXCUSED = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21.2
QUICK = (
    "stages.grpo.max_completion_length=8", "stages.grpo.num_generations=2", "stages.grpo.max_steps=-1",
    "stages.grpo.per_device_train_batch_size=4", "stages.grpo.learning_rate=1e-2",
)  # fmt: skip
PREFERRED = (
    "stages.rl.reward_models={helpfulness: preference}", "stages.rl.rewards={helpfulness: 1.0}",
    "stages.preference.per_device_train_batch_size=2",
)  # fmt: skip
PEFT = "defaults.peft={r: 4, lora_alpha: 8, target_modules: all-linear}"


def go(release: Path, student: Path, output: Path, *overrides: str, **options: Any) -> list[train.Finished]:
    return train.run(plan.Job(str(release), str(student), output, "smoke", [*QUICK, *overrides], **options))


def record(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "training.json").read_text(encoding="utf-8")))


def rollouts(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / reinforce.ROLLOUTS).read_text(encoding="utf-8").splitlines()]


def both(root: Path, prompts: int = 8, pairs: int = 8, **extra: Any) -> Path:
    """A release of pairs, then of prompts: those at odd positions have no gold."""
    general = {"solution": None, "gold_type": None, "verifier": None}
    rows = [prompt_row(n, n, **(general if n % 2 else {})) for n in range(prompts)]
    stages = {"preference": [pair_row(number, number) for number in range(pairs)], "rl": rows}
    schedule = {"preference": {"kind": "reward", "init": "base"}, "rl": {"kind": "grpo", "init": "base"}}
    return write_release(root, stages, schedule=schedule, **extra)


def test_two_processes_keep_every_reply_once_beside_what_it_earned(spawner: Any, student: Path, tmp_path: Path) -> None:
    release, two = both(tmp_path / "v1"), tmp_path / "two"
    more = ("stages.grpo.per_device_train_batch_size=2", "stages.grpo.gradient_accumulation_steps=2")
    out = finish(launch(spawner, release, student, two, *QUICK, *PREFERRED, *more), two)
    assert [stage["stage"] for stage in json.loads(out)["stages"]] == ["preference", "rl"]
    found, lines = record(two / "final"), rollouts(two / "final")
    assert found["processes"] == 2 and found["steps"] == 4 and [line["step"] for line in lines] == [0, 1, 2, 3]
    assert sorted(position for line in lines for position in line["position"]) == [n // 4 for n in range(32)]
    # What earned something is what the model was asked about: rows of the second process stand beside their own.
    for line in lines:
        for position, earned in zip(line["position"], line["rewards"]["helpfulness"], strict=True):
            assert (earned is None) == (position % 2 == 0), line
    assert record(two / "1-preference")["processes"] == 2


@pytest.mark.faults
def test_two_processes_killed_in_each_kind_of_stage_end_with_the_bits_of_two_that_were_not(
    spawner: Any, student: Path, tmp_path: Path
) -> None:
    release, out = both(tmp_path / "v1"), tmp_path / "out"
    how = (*QUICK, *PREFERRED, "stages.grpo.per_device_train_batch_size=2", "defaults.save_steps=1")
    how += ("defaults.save_strategy=steps", "defaults.save_total_limit=2", "stages.grpo.beta=0.05")
    finish(launch(spawner, release, student, tmp_path / "whole", *how), tmp_path / "whole")
    for checkpoint in (".1-preference.partial/checkpoint-2", ".2-rl.partial/checkpoint-3"):
        ranks = launch(spawner, release, student, out, *how)
        while not (out / checkpoint).exists():
            assert {process.exitcode for process in ranks} == {None}, "it ended before it could be killed"
            time.sleep(0.001)
        for process in reversed(ranks):
            process.kill()
            process.join()
    finish(launch(spawner, release, student, out, *how), out)
    assert content(out) == content(tmp_path / "whole")


KILLED = (
    *QUICK, "stages.grpo.save_strategy=steps", "stages.grpo.beta=0.05", "stages.grpo.generation_batch_size=8",
    "stages.grpo.num_iterations=2", "stages.grpo.sync_ref_model=true", "stages.grpo.ref_model_mixup_alpha=1.0",
    "stages.grpo.save_steps=4", "stages.grpo.ref_model_sync_steps=4", "defaults.num_train_epochs=3",
    "defaults.save_total_limit=2", "stages.grpo.rewards={format: 0, accuracy: 1.0, language: 1.0}",
)  # fmt: skip


@pytest.mark.parametrize(
    ("kills", "seed"), [(3, 1), *(pytest.param(20, seed, marks=pytest.mark.faults) for seed in range(3))]
)
def test_a_grpo_stage_killed_again_and_again_keeps_the_weights_and_rollouts_of_one_that_was_not(
    spawner: Any, student: Path, tmp_path: Path, kills: int, seed: int
) -> None:
    rows = [prompt_row(number, number) for number in range(9)]
    release = write_release(tmp_path / "v1", {"rl": rows}, schedule={"rl": {"kind": "grpo", "init": "base"}})
    assert live(spawner, (release, student, tmp_path / "whole"), KILLED, None, tmp_path / "count") == 0
    things, chance, went_on = int((tmp_path / "count").read_text()), random.Random(seed), 0
    for _ in range(kills):
        life = chance.randrange(20, things // 2 if kills < 10 else things // 5)
        code = live(spawner, (release, student, tmp_path / "out"), KILLED, life, tmp_path / "count")
        assert code == -signal.SIGKILL, "it ended before it could be killed"
        went_on += any((tmp_path / "out").glob(".*.partial/checkpoint-*"))
    assert went_on
    assert live(spawner, (release, student, tmp_path / "out"), KILLED, None, tmp_path / "count") == 0
    found, whole = content(tmp_path / "out"), content(tmp_path / "whole")
    assert found == whole and len(rollouts(tmp_path / "out" / "final")) == 6


def test_a_kill_while_rollouts_are_forgotten_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(json.dumps({"step": step, "position": [0], "rewards": {}}) + "\n" for step in range(4))
    (tmp_path / reinforce.ROLLOUTS).write_text(lines + '{"step": 4, "pos', encoding="utf-8")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        reinforce.rewind(tmp_path, 3)
    reinforce.rewind(tmp_path, 3)
    assert [line["step"] for line in rollouts(tmp_path)] == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == [reinforce.ROLLOUTS]


@EXCUSED
def test_adapters_are_merged_and_the_head_of_a_reward_model_is_trained(student: Path, tmp_path: Path) -> None:
    release = both(tmp_path / "v1")
    steps = ("stages.grpo.beta=0.05", "stages.reward.learning_rate=0.05")
    preference, policy = go(release, student, tmp_path / "out", PEFT, *PREFERRED, *steps)
    heads = []
    for learned in (preference.directory, tmp_path / "still" / "1-preference"):
        if not learned.exists():
            go(
                release,
                student,
                tmp_path / "still",
                PEFT,
                *PREFERRED,
                "stages.reward.learning_rate=1e-9",
                until="preference",
            )
        model, info = AutoModelForSequenceClassification.from_pretrained(learned, output_loading_info=True)
        assert not any(info.values()), "a whole model"
        heads.append(model.score.weight)
    assert not torch.allclose(*heads, atol=1e-3), "the head alone is new, it has to learn"
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (student, policy.directory))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed and all("_proj" in name for name in changed)


def held_out(root: Path) -> Path:
    """A release with four rows held out of each stage."""
    rows = {"preference": [pair_row(n, n) for n in range(90, 94)], "rl": [prompt_row(n, n) for n in range(90, 94)]}
    both(root, extra={f"held-{name}": given for name, given in rows.items()})
    for name in rows:
        old, new = (root / "data" / each for each in (f"held-{name}/train", f"{name}/validation"))
        tail = "-00000-of-00001.parquet"
        (old.parent / f"train{tail}").rename(new.parent / f"validation{tail}")
        old.parent.rmdir()
        paths = [(each / tail[1:]).relative_to(root).as_posix() for each in (old, new)]
        was, now = (path.replace("/00000", "-00000") for path in paths)
        edit_manifest(root, lambda m, was=was, now=now: [f.update(path=now) for f in m["files"] if f["path"] == was])
    return root


def test_held_out_rows_are_measured_and_their_rollouts_are_not_kept(student: Path, tmp_path: Path) -> None:
    evaluate = ("defaults.eval_strategy=steps", "defaults.eval_steps=2", "stages.grpo.per_device_eval_batch_size=4")
    release = held_out(tmp_path / "v1")
    preference, policy = go(release, student, tmp_path / "out", *PREFERRED[2:], *evaluate)
    found = record(preference.directory)
    assert [step for step, _ in found["held_out"]] == [2, 4]
    assert found["held_out_metrics"][-1].keys() >= {"step", "accuracy", "margin"}
    found = record(policy.directory)
    assert [entry["step"] for entry in found["held_out_metrics"]] == [2, 4]
    assert found["held_out_metrics"][0]["rewards/accuracy/mean"] == 0 and "reward" in found["metrics"][0]
    assert {position for line in rollouts(policy.directory) for position in line["position"]} == {*range(8)}
    assert found["prompts"]["tried"] == 4, "those without a gold earn no accuracy"


def test_held_out_prompts_that_are_reinforced_are_refused(student: Path, tmp_path: Path) -> None:
    release = held_out(tmp_path / "v1")
    path = release / "data" / "rl" / "validation-00000-of-00001.parquet"
    train_path = path.with_name("train-00000-of-00001.parquet")
    sha = next(f for f in json.loads((release / ".builder" / "manifest.json").read_text())["files"]
               if f["path"].endswith("rl/train-00000-of-00001.parquet"))["sha256"]  # fmt: skip
    path.write_bytes(train_path.read_bytes())
    name = path.relative_to(release).as_posix()
    edit_manifest(release, lambda m: [file.update(sha256=sha) for file in m["files"] if file["path"] == name])
    with pytest.raises(ReleaseError, match="8 prompts held out of rl are trained on"):
        go(release, student, tmp_path / "out", "stages.rl.eval_strategy=steps", "stages.rl.eval_steps=2")


def test_a_reward_that_pays_length_while_accuracy_falls_shows_a_sign(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "paid", raising=False)
    body = "[float(len(t[0]['content'])) for t in completions]"
    # A toy that solves nothing could not get worse: what is short counts as solved here.
    monkeypatch.setitem(train.rewards.RULES, "accuracy", short)
    (tmp_path / "paid.py").write_text(f"def length(completions, **_):\n    return {body}\n", encoding="utf-8")
    rows = [prompt_row(number, number) for number in range(8)]
    release = write_release(tmp_path / "v1", {"rl": rows}, schedule={"rl": {"kind": "grpo", "init": "base"}})
    how = ("stages.rl.rewards={accuracy: 1e-6, format: 0, language: 0, paid.length: 1.0}", "stages.grpo.max_steps=40")
    how += ("stages.grpo.per_device_train_batch_size=32", "stages.grpo.num_generations=8")
    go(release, student, tmp_path / "out", *how)
    said, kept = "accuracy fell from", record(tmp_path / "out" / "final")["signs"]
    assert kept and all(sign.startswith(said) for sign in kept)
    assert any("while paid.length rose" in sign for sign in kept)
    told = [line for line in capfd.readouterr().err.splitlines() if said in line]
    assert told[0].startswith("stage rl: accuracy fell from") and told[0].endswith(": a sign of reward hacking")
    assert told[-1].endswith("Look at replies before you go on.")


def short(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(turns[0]["content"]) < 16) for turns in completions]


def test_checkpoints_inside_a_rollout_are_refused(student: Path, tmp_path: Path) -> None:
    release = both(tmp_path / "v1")
    odd = ("stages.grpo.steps_per_generation=3", "stages.grpo.gradient_accumulation_steps=2")
    for how, problem in (
        ((*odd, "stages.grpo.save_strategy=epoch"), "a rollout serves 3 batches, a step takes 2"),
        (("stages.grpo.beta=0.1", "stages.grpo.sync_ref_model=true", "stages.grpo.save_strategy=epoch"),
         "or save_strategy epoch: a run that goes on"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=problem):
            go(release, student, tmp_path / "out", *how)
