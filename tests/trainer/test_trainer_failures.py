"""What can go wrong on the machine: one clear error each, and what was trained is still there."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import huggingface_hub
import pytest
import torch
from trainer_toys import stage_rows, write_release

from trainer import lineage, plan, train
from trainer.errors import RecipeError, StageError

SAVE = ("defaults.save_strategy=steps", "defaults.save_steps=1", "defaults.save_total_limit=1")
SMALL = "defaults.per_device_train_batch_size=4"


def prepare(release: Path, student: Path, output: Path, *overrides: str, **options: Any) -> plan.Job:
    return plan.Job(str(release), str(student), output, "smoke", (*SAVE, SMALL, *overrides), **options)


def go(release: Path, student: Path, output: Path, *overrides: str, **options: Any) -> list[train.Finished]:
    return train.run(prepare(release, student, output, *overrides, **options))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one a training step."""
    done: list[int] = []
    step = train.ScheduledTrainer.training_step

    def counting(self: Any, *arguments: Any, **more: Any) -> Any:
        done.append(self.state.global_step)
        return step(self, *arguments, **more)

    monkeypatch.setattr(train.ScheduledTrainer, "training_step", counting)
    return done


def fail(monkeypatch: pytest.MonkeyPatch, method: str, error: BaseException, after: int) -> pytest.MonkeyPatch:
    """From the `after`-th call on, a method of the trainer raises."""
    original, calls = getattr(train.ScheduledTrainer, method), [0]

    def failing(self: Any, *arguments: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] >= after:
            raise error
        return original(self, *arguments, **more)

    monkeypatch.setattr(train.ScheduledTrainer, method, failing)
    return monkeypatch


MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    MemoryError(),
]
DISK = [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    RuntimeError(
        "[enforce fail at inline_container.cc:672] . unexpected pos 3520 vs 3412"
    ),  # torch.save on a full tmpfs
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.EFBIG, "File too large"),
]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        *((error, "memory ran out. Lower per_device") for error in MEMORY),
        *((error, "the disk is full") for error in DISK),
    ],
    ids=str,
)
def test_an_error_of_the_machine_says_what_to_do(
    student: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str
) -> None:
    fail(monkeypatch, "train", error, after=1)
    with pytest.raises(StageError, match=f"Stage low-temperature stopped: {advice}"):
        go(release, student, tmp_path / "out")


def test_out_of_memory_keeps_earlier_stages(
    student: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, "training_step", MEMORY[0], after=5)
    with pytest.raises(
        StageError, match=r"high-temperature stopped: memory ran out. Lower per_device_train_batch_size"
    ):
        go(release, student, tmp_path / "out")
    assert lineage.read(tmp_path / "out" / "1-low-temperature")


def test_a_full_disk_leaves_earlier_stages_and_the_last_checkpoint(
    student: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    whole = go(release, student, tmp_path / "whole")
    with monkeypatch.context() as patch:
        fail(
            patch, "_save_optimizer_and_scheduler", DISK[2], after=5
        )  # two steps of stage two, after three of stage one
        with pytest.raises(StageError, match=r"high-temperature stopped: the disk is full. Free some of it"):
            go(release, student, tmp_path / "out")
    partial = tmp_path / "out" / ".2-high-temperature.partial"
    assert sorted(path.name for path in partial.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    steps.clear()
    finished = go(release, student, tmp_path / "out")
    assert steps == [1], "one step was missing, from checkpoint-1 on; checkpoint-2 is torn"
    assert [stage.weights_sha256 for stage in finished] == [stage.weights_sha256 for stage in whole]


@pytest.mark.parametrize(
    ("change", "trained"),
    [
        ((), [2]),  # the third of three steps
        (("defaults.logging_steps=2", "defaults.save_total_limit=3"), [2]),
        (("defaults.learning_rate=0.5",), [0, 1, 2]),
        (("defaults.max_length=512",), [0, 1, 2]),
    ],
)
def test_a_stage_goes_on_from_a_checkpoint_of_the_very_same_settings_only(
    student: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int],
    change: tuple[str, ...], trained: list[int],
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        fail(patch, "training_step", KeyboardInterrupt(), after=3)
        with pytest.raises(KeyboardInterrupt):
            go(release, student, tmp_path / "out", until="low-temperature")
    steps.clear()
    (stage,) = go(release, student, tmp_path / "out", *change, until="low-temperature")
    assert steps == trained
    assert not list(stage.directory.glob("checkpoint-*")) and not (stage.directory / "started.json").exists()


def test_a_stage_that_stopped_after_its_last_step_is_saved_without_another(
    student: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(lineage, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            go(release, student, tmp_path / "out", until="low-temperature")
    steps.clear()
    resumed = go(release, student, tmp_path / "out", until="low-temperature")
    assert steps == []
    whole = go(release, student, tmp_path / "whole", until="low-temperature")
    assert resumed[0].weights_sha256 == whole[0].weights_sha256 and resumed[0].train_loss == whole[0].train_loss


def test_checkpoints_of_models_alone_are_kept_and_not_gone_on_from(
    student: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    models = ("defaults.save_only_model=true", "defaults.save_total_limit=2")
    with monkeypatch.context() as patch:
        fail(patch, "training_step", KeyboardInterrupt(), after=3)
        with pytest.raises(KeyboardInterrupt):
            go(release, student, tmp_path / "out", *models, until="low-temperature")
    steps.clear()
    (stage,) = go(release, student, tmp_path / "out", *models, until="low-temperature")
    assert steps == [0, 1, 2]
    assert sorted(path.name for path in stage.directory.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


def test_from_takes_earlier_stages_as_they_are(student: Path, release: Path, tmp_path: Path) -> None:
    first = go(release, student, tmp_path / "out", until="low-temperature")
    other = "defaults.learning_rate=0.01"
    with pytest.raises(StageError, match="never overwritten"):
        go(release, student, tmp_path / "out", other)
    (second,) = go(release, student, tmp_path / "out", other, first="high-temperature")
    record = json.loads((second.directory / "training.json").read_text(encoding="utf-8"))
    assert record["initial_weights_sha256"] == first[0].weights_sha256
    assert (tmp_path / "out" / "final").readlink() == Path("2-high-temperature")


def test_from_needs_earlier_stages(student: Path, release: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"--from high-temperature: .*out has no stage low-temperature yet"):
        go(release, student, tmp_path / "out", first="high-temperature")
    with pytest.raises(RecipeError, match="--from nothing: there is no such stage"):
        prepare(release, student, tmp_path / "out", first="nothing")
    with pytest.raises(RecipeError, match=r"--from high-temperature: .* no such stage among low-temperature\."):
        prepare(release, student, tmp_path / "out", first="high-temperature", until="low-temperature")


def test_a_nan_loss_is_seen_whatever_the_log_hides(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = write_release(tmp_path / "v1", {"one": stage_rows(0, 4)})
    step = train.ScheduledTrainer.training_step
    monkeypatch.setattr(train.ScheduledTrainer, "training_step", lambda *a, **k: step(*a, **k) * float("nan"))
    with pytest.raises(StageError, match="loss nan; nothing was kept"):
        go(release, student, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".rendered"]


def test_a_last_step_that_breaks_the_weights_is_seen(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = write_release(tmp_path / "v1", {"one": stage_rows(0, 4)})
    step = train.ScheduledTrainer.training_step

    def breaking(self: Any, model: Any, *arguments: Any, **more: Any) -> Any:
        loss = step(self, model, *arguments, **more)
        next(model.parameters()).grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(train.ScheduledTrainer, "training_step", breaking)
    with pytest.raises(StageError, match=r"Stage one: gradient nan, loss 5\.\d+; nothing was kept"):
        go(release, student, tmp_path / "out")
    assert not (tmp_path / "out" / "1-one").exists()


@pytest.mark.parametrize("name", ["nothing", "wandb"])
def test_a_report_that_cannot_be_written_is_refused_before_any_work(
    student: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(RecipeError, match=f"TRL refuses the settings: .*{name}"):
        go(release, student, tmp_path / "out", f"defaults.report_to={name}")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The Hub's client, with the signatures of the installed one and nothing behind them."""
    fake = create_autospec(huggingface_hub.HfApi, instance=True)
    fake.create_repo.side_effect = lambda repo_id, **_: huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    return fake


def test_the_last_stage_is_pushed_to_a_private_repository(api: Any, tmp_path: Path) -> None:
    api.upload_folder.return_value.commit_url = "https://huggingface.co/org/student/commit/abc"
    assert lineage.push("org/student", tmp_path / "2-b") == "https://huggingface.co/org/student/commit/abc"
    api.create_repo.assert_called_once_with("org/student", private=True, exist_ok=True)
    assert api.upload_folder.call_args.kwargs["folder_path"] == tmp_path / "2-b"
    assert api.upload_folder.call_args.kwargs["repo_id"] == "org/student"


def test_a_push_that_fails_says_that_the_stage_is_kept(api: Any, tmp_path: Path) -> None:
    api.upload_folder.side_effect = OSError("401 Unauthorized")
    with pytest.raises(StageError, match=r"2-b is trained and kept, but cannot be pushed to org/s: 401.*HF_TOKEN"):
        lineage.push("org/s", tmp_path / "2-b")


def test_the_card_links_the_dataset_version(student: Path, release: Path, tmp_path: Path) -> None:
    (stage,) = go(release, student, tmp_path / "out", until="low-temperature")
    record = json.loads((stage.directory / "training.json").read_text(encoding="utf-8"))
    record["dataset"] |= {"source": "org/data@v1", "commit": "c" * 40}
    partial = Path(shutil.copytree(stage.directory, tmp_path / "partial"))
    lineage.commit(partial, tmp_path / "done", record, student)
    card = (tmp_path / "done" / "README.md").read_text(encoding="utf-8")
    assert f"https://huggingface.co/datasets/org/data/tree/{'c' * 40}" in card and "datasets:\n- org/data" in card


def test_a_restart_changes_no_recorded_loss(
    student: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each_second = "defaults.logging_steps=2"  # and a checkpoint after the first of three steps
    whole = go(release, student, tmp_path / "whole", each_second, until="low-temperature")
    with monkeypatch.context() as patch:
        fail(patch, "training_step", KeyboardInterrupt(), after=2)
        with pytest.raises(KeyboardInterrupt):
            go(release, student, tmp_path / "out", each_second, until="low-temperature")
    again = go(release, student, tmp_path / "out", each_second, until="low-temperature")
    assert [(stage.directory / "training.json").read_bytes() for stage in again] == [
        (stage.directory / "training.json").read_bytes() for stage in whole
    ]


def checkpoint(partial: Path, step: int, state: str | None = '{"global_step": 1}', random: bool = True) -> None:
    folder = partial / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    if random:
        torch.save({"cpu": 0}, folder / "rng_state.pth")
    if state is not None:
        (folder / "trainer_state.json").write_text(state, encoding="utf-8")


def test_the_newest_whole_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    wanted = {"settings": {"learning_rate": 1}, "rowset_hash": "0", "processes": 1}
    assert lineage.start(tmp_path / "p", wanted) is None
    checkpoint(tmp_path / "p", 9)
    checkpoint(tmp_path / "p", 10)
    checkpoint(tmp_path / "p", 11, state='{"global_st')
    checkpoint(tmp_path / "p", 12, state=None)
    checkpoint(tmp_path / "p", 13, random=False)
    assert lineage.start(tmp_path / "p", wanted) == tmp_path / "p" / "checkpoint-10"
    assert {path.name for path in (tmp_path / "p").glob("checkpoint-*")} == {"checkpoint-9", "checkpoint-10"}
    (tmp_path / "p" / "started.json").write_text('{"sett')
    assert lineage.start(tmp_path / "p", wanted) is None
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["started.json"]


def test_a_checkpoint_is_whole_with_the_random_state_of_each_process(tmp_path: Path) -> None:
    wanted = {"settings": {}, "rowset_hash": "0", "processes": 2}
    assert lineage.start(tmp_path, wanted) is None
    for step in (1, 2, 3):
        checkpoint(tmp_path, step, random=False)
        torch.save({"cpu": 0}, tmp_path / f"checkpoint-{step}" / "rng_state_0.pth")
    torch.save({"cpu": 0}, tmp_path / "checkpoint-1" / "rng_state_1.pth")
    whole = (tmp_path / "checkpoint-1" / "rng_state_1.pth").read_bytes()
    (tmp_path / "checkpoint-3" / "rng_state_1.pth").write_bytes(whole[:-9])
    assert lineage.start(tmp_path, wanted) == tmp_path / "checkpoint-1"
    assert not (tmp_path / "checkpoint-2").exists() and not (tmp_path / "checkpoint-3").exists()
