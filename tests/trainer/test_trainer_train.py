"""Real training of a toy student: order, chaining, resuming, lineage."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from trainer_toys import CHATML, edit_manifest, save_student, stage_rows, train_tokenizer, write_release
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer import lineage, plan, schedule, train
from trainer.errors import ModelError, RecipeError, StageError

TWO = ["defaults.num_train_epochs=2", "defaults.per_device_train_batch_size=4"]


def go(release: Path, student: Path, output: Path, *overrides: str, **options: Any) -> list[train.Finished]:
    return train.run(plan.Job(str(release), str(student), output, "smoke", overrides, **options))


def record(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "training.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def done(student: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[list[int]]]:
    """A finished run of two stages, two epochs each: release, output, and the rows as the model saw them."""
    folder = tmp_path_factory.mktemp("done")
    stages = {"low-temperature": stage_rows(0, 12), "high-temperature": stage_rows(100, 8)}
    release = write_release(folder / "v1", stages, extra={"candidates": stage_rows(200, 3)})
    tokenizer = AutoTokenizer.from_pretrained(student)
    seen: list[list[int]] = []
    step = trl.SFTTrainer.training_step

    def spy(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        texts = tokenizer.batch_decode(inputs["input_ids"])
        seen.append([int(text.partition("user\n")[2].partition(" +")[0]) for text in texts])
        return step(self, model, inputs, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl.SFTTrainer, "training_step", spy)
        go(release, student, folder / "out", *TWO)
    return release, folder / "out", seen


def test_rows_are_consumed_in_schedule_order(done: tuple[Path, Path, list[list[int]]]) -> None:
    def expected(first: int, rows: int) -> list[int]:
        by_position = [first + rows - 1 - i for i in range(rows)]  # see stage_rows
        return [by_position[i] for epoch in (0, 1) for i in schedule.epoch_order(rows, epoch, 42)]

    seen = [row for batch in done[2] for row in batch]
    assert seen == expected(0, 12) + expected(100, 8)
    assert [len(batch) for batch in done[2]] == [4] * 10


def test_each_stage_starts_from_the_weights_before_it(done: tuple[Path, Path, list[list[int]]], student: Path) -> None:
    first, second = record(done[1] / "1-low-temperature"), record(done[1] / "2-high-temperature")
    assert first["initial_weights_sha256"] == lineage.weights_sha256(student)
    assert second["initial_weights_sha256"] == first["weights_sha256"] != second["weights_sha256"]
    assert (first["init"], second["init"]) == ("base", "low-temperature")


def test_a_stage_directory_is_a_model_that_stops_where_it_was_trained_to(
    done: tuple[Path, Path, list[list[int]]],
) -> None:
    final = done[1] / "final"
    assert final.is_symlink() and not Path(final.readlink()).is_absolute()
    assert final.resolve() == (done[1] / "2-high-temperature").resolve()
    tokenizer, model = AutoTokenizer.from_pretrained(final), AutoModelForCausalLM.from_pretrained(final)
    assert model.dtype == torch.float32
    stops = model.generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ([stops] if isinstance(stops, int) else stops)
    assert tokenizer.chat_template == CHATML


def test_the_record_says_where_the_weights_come_from(done: tuple[Path, Path, list[list[int]]]) -> None:
    release, output, _ = done
    found, manifest = record(output / "final"), json.loads((release / ".builder/manifest.json").read_text())
    assert found["dataset"]["build_id"] == manifest["build_id"] and found["dataset"]["version"] == "v1"
    assert found["rowset_hash"] == manifest["schedule"][1]["rowset_hash"]
    assert (found["rows"], found["steps"], len(found["losses"])) == (8, 4, 4)
    assert found["settings"]["learning_rate"] == 1e-3 and found["seeds"]["seed"] == 42
    assert found["weights_sha256"] == lineage.weights_sha256(output / "final")
    assert found["packages"]["trl"] == trl.__version__
    card = (output / "final" / "README.md").read_text()
    assert "stage high-temperature" in card and found["weights_sha256"] in card
    for path in (path for path in output.rglob("*") if path.is_file()):
        assert str(output.parent).encode() not in path.read_bytes(), path
    assert {path.name for path in output.iterdir()} == {"1-low-temperature", "2-high-temperature", "final"}
    assert not (output / "final" / "training_args.bin").exists()


def test_loss_trajectory_is_pinned(done: tuple[Path, Path, list[list[int]]]) -> None:
    losses = [entry["loss"] for entry in record(done[1] / "1-low-temperature")["losses"]]
    assert losses == pytest.approx(LOSSES, abs=2e-4)


LOSSES = [5.6448, 5.6287, 5.6132, 5.5795, 5.5659, 5.5367]


def test_two_runs_are_equal_bit_for_bit(
    done: tuple[Path, Path, list[list[int]]], student: Path, tmp_path: Path
) -> None:
    again = go(done[0], student, tmp_path / "out", *TWO)
    assert [stage.weights_sha256 for stage in again] == [record(path)["weights_sha256"] for path in numbered(done[1])]


def numbered(output: Path) -> list[Path]:
    return sorted(path for path in output.iterdir() if path.name[0].isdigit())


def copy(done: tuple[Path, Path, list[list[int]]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(done[1], tmp_path / "out", symlinks=True))


def test_a_rerun_trains_nothing(done: tuple[Path, Path, list[list[int]]], student: Path, tmp_path: Path) -> None:
    output = copy(done, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if not path.is_symlink() and path != output}
    again = go(done[0], student, output, *TWO, "defaults.logging_steps=5")
    assert [stage.trained for stage in again] == [False, False]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_killed_run_goes_on_after_the_last_finished_stage(
    done: tuple[Path, Path, list[list[int]]], student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = trl.SFTTrainer.save_model

    def killed(self: Any, *args: Any, **more: Any) -> None:
        save(self, *args, **more)
        if "high-temperature" in str(self.args.output_dir):
            raise KeyboardInterrupt

    monkeypatch.setattr(trl.SFTTrainer, "save_model", killed)
    with pytest.raises(KeyboardInterrupt):
        go(done[0], student, tmp_path / "out", *TWO)
    assert [path.name for path in numbered(tmp_path / "out")] == ["1-low-temperature"]
    monkeypatch.undo()
    resumed = go(done[0], student, tmp_path / "out", *TWO)
    assert [stage.trained for stage in resumed] == [False, True]
    assert resumed[-1].weights_sha256 == record(done[1] / "final")["weights_sha256"]


def test_a_version_with_one_more_stage_costs_one_stage(
    done: tuple[Path, Path, list[list[int]]], student: Path, tmp_path: Path
) -> None:
    stages = {
        "low-temperature": stage_rows(0, 12),
        "high-temperature": stage_rows(100, 8),
        "mixed-policy": stage_rows(50, 4),
    }
    release = write_release(tmp_path / "v2", stages, version="v2")
    output = copy(done, tmp_path)
    finished = go(release, student, output, *TWO)
    assert [stage.trained for stage in finished] == [False, False, True]
    assert (output / "final").readlink() == Path("3-mixed-policy")


def test_until_stops_after_a_stage(student: Path, release: Path, tmp_path: Path) -> None:
    edit_manifest(release, lambda manifest: manifest["schedule"][1].update(kind="grpo"))
    finished = go(release, student, tmp_path / "out", until="low-temperature")
    assert [stage.stage for stage in finished] == ["low-temperature"]
    assert (tmp_path / "out" / "final").readlink() == Path("1-low-temperature")


def test_finished_weights_are_never_overwritten(
    done: tuple[Path, Path, list[list[int]]], student: Path, tmp_path: Path
) -> None:
    output = copy(done, tmp_path)
    with pytest.raises(StageError, match=r"learning_rate 0.001, now 0.01.*never overwritten"):
        go(done[0], student, output, *TWO, "stages.high-temperature.learning_rate=0.01")
    other = save_student(tmp_path / "other", train_tokenizer(CHATML), seed=1)
    with pytest.raises(StageError, match="initial_weights_sha256"):
        go(done[0], other, output, *TWO)
    (output / "1-low-temperature" / "training.json").unlink()
    with pytest.raises(StageError, match="is no stage of ours"):
        go(done[0], student, output, *TWO)


def test_a_stage_may_start_from_the_base(student: Path, release: Path, tmp_path: Path) -> None:
    edit_manifest(release, lambda manifest: manifest["schedule"][1].update(init="base"))
    go(release, student, tmp_path / "out")
    assert record(tmp_path / "out" / "final")["initial_weights_sha256"] == lineage.weights_sha256(student)


def test_dropped_rows_are_counted_and_asked_for(student: Path, release: Path, tmp_path: Path) -> None:
    limit = "defaults.max_length=60"  # three-digit questions are longer
    go(release, student, tmp_path / "out", limit, until="low-temperature")
    with pytest.raises(Exception, match="of 8 rows exceed"):
        go(release, student, tmp_path / "out", limit)


def test_packing_trains_every_token_and_hides_rows_from_each_other(
    student: Path, release: Path, tmp_path: Path
) -> None:
    # Weights far from zero, so that a row which saw another would change the loss; several rows fit a window.
    wild = save_student(tmp_path / "wild", AutoTokenizer.from_pretrained(student), spread=0.5)
    packed, batch = ("defaults.packing=true", "defaults.max_length=256"), "defaults.per_device_train_batch_size=12"
    finished = go(release, wild, tmp_path / "out", *packed, until="low-temperature")
    assert record(finished[0].directory)["steps"] == 1
    apart = go(release, wild, tmp_path / "apart", batch, until="low-temperature")
    losses = [record(run[0].directory)["losses"][0]["loss"] for run in (finished, apart)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_an_end_of_turn_unknown_to_generation_is_saved_with_the_weights(release: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(CHATML, eos="<|endoftext|>", pad="<pad>")
    finished = go(release, save_student(tmp_path / "base", tokenizer), tmp_path / "out", until="low-temperature")
    config = json.loads((finished[0].directory / "generation_config.json").read_text())
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in config["eos_token_id"]


def test_a_diverged_stage_is_not_kept(student: Path, release: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(student)
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(student).save_pretrained(tmp_path / "nan")
    with pytest.raises(StageError, match="loss nan; nothing was kept"):
        go(release, tmp_path / "nan", tmp_path / "out", "defaults.logging_nan_inf_filter=false")
    assert not numbered(tmp_path / "out")


@pytest.mark.parametrize(
    ("override", "message"), [("defaults.optim=nothing", "Optim"), ("defaults.lr_scheduler_type=x", "x")]
)
def test_what_trl_refuses_is_said_in_its_words(
    student: Path, release: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=f"TRL refuses the settings: .*{message}"):
        go(release, student, tmp_path / "out", override)


def test_a_model_that_is_none_is_refused(release: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a directory"):
        go(release, tmp_path / "gone", tmp_path / "out")
