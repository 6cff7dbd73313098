"""Preference models: stages of kind reward, and what they make of replies in stages of kind grpo."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from trainer_toys import CHATML, pair_row, prompt_row, save_student, stage_rows, train_tokenizer, write_release
from transformers import AutoModelForSequenceClassification

from trainer import lineage, plan, reinforce, render, train
from trainer.errors import RecipeError, ReleaseError, RenderError

QUICK = [
    "stages.grpo.max_completion_length=12", "stages.grpo.num_generations=2", "stages.grpo.max_steps=-1",
    "stages.grpo.per_device_train_batch_size=4",
]  # fmt: skip


def go(release: Path, student: Path, output: Path, *overrides: str, **options: Any) -> list[train.Finished]:
    return train.run(plan.Job(str(release), str(student), output, "smoke", [*QUICK, *overrides], **options))


def record(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "training.json").read_text(encoding="utf-8")))


def prompts(root: Path, count: int = 8, **changes: Any) -> Path:
    rows = [prompt_row(number, number, **changes) for number in range(count)]
    return write_release(root, {"rl": rows}, schedule={"rl": {"kind": "grpo", "init": "base"}})


@pytest.fixture(scope="module")
def judged(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of pairs and then prompts, some without a gold, trained whole."""
    folder = tmp_path_factory.mktemp("preference")
    rows = [
        prompt_row(n, n, **({"solution": None, "gold_type": None, "verifier": None} if n % 2 else {})) for n in range(8)
    ]
    stages = {"preference": [pair_row(number, number) for number in range(16)], "rl": rows}
    schedule = {"preference": {"kind": "reward", "init": "base"}, "rl": {"kind": "grpo", "init": "base"}}
    release = write_release(folder / "v1", stages, schedule=schedule)
    models = ["stages.rl.reward_models={helpfulness: preference}", "stages.rl.rewards={helpfulness: 1.0}"]
    go(release, student, folder / "out", *models, "stages.preference.num_train_epochs=12")
    return folder


def test_a_reward_stage_learns_which_reply_is_preferred(judged: Path) -> None:
    found = record(judged / "out" / "1-preference")
    assert found["kind"] == "reward" and found["settings"]["scores"] == "helpfulness"
    assert found["metrics"][-1]["accuracy"] == 1.0
    model = AutoModelForSequenceClassification.from_pretrained(judged / "out" / "1-preference")
    assert model.config.num_labels == 1


def test_preferences_are_earned_where_there_is_no_gold(judged: Path) -> None:
    lines = [json.loads(line) for line in (judged / "out" / "final" / reinforce.ROLLOUTS).read_text().splitlines()]
    for line in lines:
        earned = dict(zip(line["position"], line["rewards"]["helpfulness"], strict=True))
        assert all((value is None) == (position % 2 == 0) for position, value in earned.items())
    assert "reward_models_sha256" in record(judged / "out" / "final")


def test_helpfulness_reads_the_answer_and_harmlessness_the_whole_reply(student: Path, tmp_path: Path) -> None:
    rows = [pair_row(number, number) for number in range(4)]
    release = write_release(tmp_path / "v1", {"p": rows}, schedule={"p": {"kind": "reward", "init": "base"}})
    renderer = render.Renderer(student, "student")
    for scores, whole in (("helpfulness", False), ("harmlessness", True)):
        job = plan.Job(str(release), str(student), tmp_path / "out", "smoke", [f"stages.p.scores={scores}"])
        (tmp_path / scores).mkdir()
        dataset = plan.rendered(job, job.stages[0], tmp_path / scores)[0][0]
        text = renderer.tokenizer.decode(dataset[0]["chosen_ids"])
        thoughts = "<think>\none more than 0\n</think>\n\n" * whole
        assert text == f"<|im_start|>user\n0 + 1?<|im_end|>\n<|im_start|>assistant\n{thoughts}1<|im_end|>"


def test_a_preference_model_scores_a_rollout_as_it_was_trained(judged: Path) -> None:
    directory = judged / "out" / "1-preference"
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    job = plan.Job(str(judged / "v1"), str(judged / "out" / "1-preference"), judged / "x", "smoke", until="preference")
    (judged / "rows").mkdir()
    row = plan.rendered(job, job.stages[0], judged / "rows")[0][0][3]
    with torch.inference_mode():
        trained = [model(input_ids=torch.tensor([row[f"{side}_ids"]])).logits.item() for side in ("chosen", "rejected")]
    pair = pair_row(3, 3)
    scorer = reinforce.Preference("helpfulness", directory)
    contents = [pair["chosen"], pair["rejected"]]
    found = scorer([pair["prompt"]] * 3, [*contents, contents[0]], [None, None, "4"])
    assert found[:2] == pytest.approx(trained, abs=1e-5) and found[2] is None
    assert trained[0] > trained[1]


def test_a_reward_model_reads_with_its_own_tokenizer_and_template(tmp_path: Path) -> None:
    opening = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    other = save_student(
        tmp_path / "other", train_tokenizer(opening, special=["<|im_start|>", "<|endoftext|>", "<|im_end|>"])
    )
    model = AutoModelForSequenceClassification.from_pretrained(other, num_labels=1)
    model.save_pretrained(other)
    scorer = reinforce.Preference("helpfulness", other)
    found = scorer([[{"role": "user", "content": "Hi"}]], [[{"content": "<think>\nhm\n</think>\n\n4"}]], [None])
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
    ids = scorer.renderer.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert found == [pytest.approx(model(input_ids=ids).logits.item(), abs=1e-6)]


def test_thoughts_that_never_end_have_no_answer_to_prefer(student: Path) -> None:
    renderer = render.Renderer(student, "student")
    asked = [{"role": "user", "content": "Hi"}]
    cut, empty = renderer.judged([asked] * 2, ["<think>\nso much to say", ""], False)
    assert cut == empty


def test_a_model_trained_for_one_preference_is_not_taken_for_the_other(
    judged: Path, student: Path, tmp_path: Path
) -> None:
    for own, release in (
        ("preference", judged / "v1"),
        (str(judged / "out" / "1-preference"), prompts(tmp_path / "v1")),
    ):
        with pytest.raises(RecipeError, match=r"rl.reward_models.harmlessness: .* was trained to score helpfulness"):
            go(release, student, tmp_path / "out", f"stages.rl.reward_models={{harmlessness: {own}}}")


def test_a_preference_model_is_not_asked_about_more_than_it_can_read(student: Path, tmp_path: Path) -> None:
    brief, scores = tmp_path / "brief", AutoModelForSequenceClassification.from_pretrained(student, num_labels=1)
    scores.config.max_position_embeddings = 20
    scores.save_pretrained(brief)
    release = prompts(tmp_path / "v1", solution=None)
    with pytest.raises(RenderError, match=r"8 of 8 rows exceed what max_completion_length 12 leaves of 20 places"):
        go(release, student, tmp_path / "out", *prefer(brief))
    assert not [*tmp_path.glob("out/.1-rl*")]


def prefer(directory: Path) -> tuple[str, str]:
    rewards = "{accuracy: 0, format: 0, language: 0, helpfulness: 1.0}"
    return (f"stages.rl.reward_models={{helpfulness: {directory}}}", f"stages.rl.rewards={rewards}")


def test_a_model_that_writes_is_no_reward_model(student: Path, tmp_path: Path) -> None:
    release = prompts(tmp_path / "v1", solution=None)
    with pytest.raises(RecipeError, match="is no reward model: its head would be random"):
        go(release, student, tmp_path / "out", *prefer(student))


def test_a_reward_model_beside_zero_3_is_refused(judged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reinforce, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(RecipeError, match="cannot be read beside ZeRO-3"):
        reinforce.Preference("helpfulness", judged / "out" / "1-preference")


def test_a_reward_model_without_its_head_is_refused(judged: Path, student: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(judged / "out" / "1-preference", tmp_path / "torn")
    weights = load_file(directory / "model.safetensors")
    save_file({name: weight for name, weight in weights.items() if name != "score.weight"},
              directory / "model.safetensors", {"format": "pt"})  # fmt: skip
    release = prompts(tmp_path / "v1", solution=None)
    with pytest.raises(RecipeError, match=r"lacks score.weight, which would be random"):
        go(release, student, tmp_path / "out", *prefer(directory))


def test_nothing_is_trained_from_a_reward_model(student: Path, tmp_path: Path) -> None:
    stages = {"p": [pair_row(0, 0)], "rows": stage_rows(0, 4)}
    release = write_release(tmp_path / "v1", stages, schedule={"p": {"kind": "reward", "init": "base"}})
    with pytest.raises(ReleaseError, match="Stage rows starts from p, a reward model, which writes nothing"):
        go(release, student, tmp_path / "out")


def test_other_preference_weights_are_another_stage(judged: Path, student: Path, tmp_path: Path) -> None:
    job = plan.Job(
        str(judged / "v1"), str(student), judged / "out", "smoke",
        [*QUICK, "stages.rl.reward_models={helpfulness: preference}", "stages.rl.rewards={helpfulness: 1.0}",
         "stages.preference.num_train_epochs=12"],
    )  # fmt: skip
    wanted = plan.identity(job, job.stages[1])
    assert wanted["reward_models_sha256"] == {"helpfulness": lineage.weights_sha256(judged / "out" / "1-preference")}
    held = plan.held(job, job.stages[1])
    assert held and lineage.differences(held, wanted | {"reward_models_sha256": {"helpfulness": "0"}}) == [
        "reward_models_sha256"
    ]
