"""Adapters, packing, held-out rows, several processes: what TRL has is used, and what comes out is checked."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_lives import finish, launch
from trainer_toys import edit_manifest, save_student, stage_rows, write_release
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer import plan, train
from trainer.errors import RecipeError, ReleaseError

EXCUSED = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21.2
PEFT = "defaults.peft={r: 4, lora_alpha: 8, target_modules: all-linear}"


def prepare(release: Path, student: Path, output: Path, *overrides: str, **options: Any) -> plan.Job:
    return plan.Job(str(release), str(student), output, "smoke", overrides, **options)


def go(release: Path, student: Path, output: Path, *overrides: str, **options: Any) -> list[train.Finished]:
    return train.run(prepare(release, student, output, *overrides, **options))


def record(stage: train.Finished) -> dict[str, Any]:
    return dict(json.loads((stage.directory / "training.json").read_text(encoding="utf-8")))


@EXCUSED
def test_an_adapter_is_merged_so_that_the_stage_is_a_whole_model(student: Path, release: Path, tmp_path: Path) -> None:
    first, second = go(release, student, tmp_path / "out", PEFT, "defaults.learning_rate=0.05")
    assert not list(first.directory.glob("adapter*")) and (first.directory / "model.safetensors").is_file()
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (student, first.directory))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("_proj" in name for name in changed), "an adapter changes linear layers alone"
    assert record(second)["initial_weights_sha256"] == first.weights_sha256
    assert record(first)["settings"]["peft"]["r"] == 4
    for path in (path for path in first.directory.iterdir() if path.name != "training.json"):
        assert str(student).encode() not in path.read_bytes(), f"{path.name} names a path of this machine"


@EXCUSED
def test_adapters_of_two_runs_are_equal_bit_for_bit(student: Path, release: Path, tmp_path: Path) -> None:
    runs = [go(release, student, tmp_path / name, PEFT, until="low-temperature") for name in "ab"]
    torch.rand(7)  # whatever was drawn before
    runs.append(go(release, student, tmp_path / "c", PEFT, until="low-temperature"))
    assert len({finished[0].weights_sha256 for finished in runs}) == 1


def test_a_misspelt_adapter_argument_is_refused_before_training(student: Path, release: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="unexpected keyword argument 'rank'"):
        go(release, student, tmp_path / "out", "defaults.peft={rank: 4}")
    with pytest.raises(RecipeError, match="peft is 8; it wants dict"):
        prepare(release, student, tmp_path / "out", "defaults.peft=8")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_rows_do_not_see_each_other(student: Path, release: Path, tmp_path: Path, attention: str) -> None:
    wild = save_student(tmp_path / "wild", AutoTokenizer.from_pretrained(student), spread=0.5)
    how = f"defaults.model_init_kwargs.attn_implementation={attention}"
    packed, apart = ("defaults.packing=true", "defaults.max_length=256"), ("defaults.per_device_train_batch_size=12",)
    runs = [
        go(release, wild, tmp_path / str(number), how, *overrides, until="low-temperature")
        for number, overrides in enumerate((packed, apart))
    ]
    losses = [record(finished[0])["losses"][0]["loss"] for finished in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_packing_that_cuts_rows_is_refused(student: Path, release: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="packing_strategy wrapped cuts rows"):
        prepare(release, student, tmp_path / "out", "defaults.packing=true", "defaults.packing_strategy=wrapped")


def held_out(root: Path, prompts: int = 900) -> Path:
    """A release whose one stage has four validation rows too."""
    write_release(root, {"low-temperature": stage_rows(0, 12)}, extra={"held": stage_rows(prompts, 4)})
    old, new = "data/held/train-00000-of-00001.parquet", "data/low-temperature/validation-00000-of-00001.parquet"
    (root / old).rename(root / new)
    (root / old).parent.rmdir()
    edit_manifest(root, lambda m: [file.update(path=new) for file in m["files"] if file["path"] == old])
    return root


EVALUATE = ("defaults.eval_strategy=steps", "defaults.eval_steps=2", "defaults.per_device_train_batch_size=3")


def test_held_out_loss_is_recorded_and_held_out_rows_are_not_trained(student: Path, tmp_path: Path) -> None:
    release = held_out(tmp_path / "v1")
    (finished,) = go(release, student, tmp_path / "out", *EVALUATE)
    found = record(finished)
    assert found["rows"] == 12 and found["steps"] == 4
    assert [step for step, _ in found["held_out"]] == [2, 4]
    assert (
        5 < found["held_out"][1][1] < found["held_out"][0][1] < 6
    )  # an untrained model knows nothing: log(315) = 5.75


def test_evaluating_without_held_out_rows_is_refused(student: Path, release: Path, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"has no data/low-temperature/validation-\*.parquet"):
        prepare(release, student, tmp_path / "out", *EVALUATE)


def test_held_out_prompts_that_are_trained_on_are_refused(student: Path, tmp_path: Path) -> None:
    release = held_out(tmp_path / "v1", prompts=10)
    with pytest.raises(ReleaseError, match="2 prompts held out of low-temperature are trained on, as p10"):
        prepare(release, student, tmp_path / "out", *EVALUATE)
    assert prepare(release, student, tmp_path / "out").stages, "who does not evaluate does not care"


def test_the_plan_estimates_memory_and_time_by_the_formula(student: Path, release: Path, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()

    def line(*overrides: str) -> dict[str, Any]:
        job = prepare(release, student, tmp_path / "out", *overrides, until="low-temperature")
        rows = {stage.name: plan.rendered(job, stage, tmp_path / "rows")[0][1] for stage in job.asked}
        return dict(plan.report(job, rows)["stages"][0])

    parameters = AutoModelForCausalLM.from_pretrained(student).num_parameters()
    plain, twice = line(), line("defaults.num_train_epochs=2", "defaults.activation_checkpointing=true")
    assert plain["state_bytes"] == parameters * 4 * 4  # float32: weights, gradients, two moments
    assert plain["activation_bytes"] == 8 * plain["longest"] * 16 * 1 * 4 * 17
    assert plain["device_hours"] == pytest.approx(6 * parameters * plain["tokens"] / 4e14 / 3600)
    assert twice["device_hours"] == pytest.approx(plain["device_hours"] * 2 * 8 / 6)
    assert twice["activation_bytes"] * 17 == plain["activation_bytes"]
    assert line(PEFT)["state_bytes"] == parameters * 4


@pytest.mark.faults
def test_two_processes_killed_in_each_stage_end_with_the_bits_of_two_that_were_not(
    spawner: Any, student: Path, release: Path, tmp_path: Path
) -> None:
    each_step = ("defaults.save_strategy=steps", "defaults.save_steps=1", "defaults.save_total_limit=2")
    finish(launch(spawner, release, student, tmp_path / "whole", *each_step), tmp_path / "whole")
    for checkpoint in (".1-low-temperature.partial/checkpoint-4", ".2-high-temperature.partial/checkpoint-2"):
        ranks = launch(spawner, release, student, tmp_path / "out", *each_step)
        while not (tmp_path / "out" / checkpoint).exists():
            assert {process.exitcode for process in ranks} == {None}, "it ended before it could be killed"
            time.sleep(0.001)
        for process in reversed(ranks):
            process.kill()
            process.join()
    out = finish(launch(spawner, release, student, tmp_path / "out", *each_step), tmp_path / "out")
    assert [stage["trained"] for stage in json.loads(out)["stages"]] == [False, True]
    for whole in (path for path in (tmp_path / "whole").glob("*-*/*") if path.is_file()):
        again = tmp_path / "out" / whole.relative_to(tmp_path / "whole")
        assert again.read_bytes() == whole.read_bytes(), again


def test_two_processes_give_the_loss_of_one_with_the_same_global_batch(
    spawner: Any, student: Path, release: Path, tmp_path: Path
) -> None:
    out = finish(launch(spawner, release, student, tmp_path / "two"), tmp_path / "two")
    assert json.loads(out)["final"] == str(tmp_path / "two" / "final")

    one = go(
        release, student, tmp_path / "one", "defaults.per_device_train_batch_size=4", "defaults.num_train_epochs=2"
    )
    for stage in one:
        two = json.loads((tmp_path / "two" / stage.directory.name / "training.json").read_text(encoding="utf-8"))
        assert two["processes"] == 2 and two["steps"] == record(stage)["steps"]
        for ours, theirs in zip(record(stage)["losses"], two["losses"], strict=True):
            assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-4)
    both = [AutoModelForCausalLM.from_pretrained(tmp_path / name / "final").state_dict() for name in ("one", "two")]
    assert all(torch.allclose(both[0][name], both[1][name], atol=1e-5) for name in both[0])


DOCS = Path(__file__).parents[2] / "docs" / "training.md"


def test_documented_launch_configs_are_ones_that_accelerate_reads(tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    options = vars(launch_command_parser().parse_args(["-m", "trainer.cli"]))
    kinds = []
    for block in re.findall(r"```yaml\n(compute_environment.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL):
        (tmp_path / "config.yaml").write_text(block, encoding="utf-8")
        read = load_config_from_file(str(tmp_path / "config.yaml"))  # refuses keys of its first level
        kinds.append(read.distributed_type.value)
        assert {*read.fsdp_config, *read.deepspeed_config} <= options.keys()
    assert kinds == ["FSDP", "DEEPSPEED"]
