"""One thread, no network, and the fixtures that several files share."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import pytest
import torch
from trainer_toys import CHATML, save_student, stage_rows, train_tokenizer, write_release

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("student"), train_tokenizer(CHATML))


@pytest.fixture(scope="session")
def spawner() -> Any:
    """Processes forked from one that has imported everything and runs no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.train", "peft"])
    return context


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Two stages of 12 and 8 rows, and a config that no stage trains on."""
    stages = {"low-temperature": stage_rows(0, 12), "high-temperature": stage_rows(100, 8)}
    return write_release(tmp_path / "v1", stages, extra={"candidates": stage_rows(200, 3)})
