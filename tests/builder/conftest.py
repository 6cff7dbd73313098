"""What several files share. torch and transformers are imported by those fixtures that need them."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from release_toys import Selected


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random student."""
    from score_toys import save_student

    return save_student(tmp_path_factory.mktemp("students") / "student")


@pytest.fixture(scope="session")
def _selected(tmp_path_factory: pytest.TempPathFactory) -> "Selected":
    from release_toys import selected

    return selected(tmp_path_factory.mktemp("runs") / "toy")


@pytest.fixture
def made(_selected: "Selected", tmp_path: Path) -> "Selected":
    """A selected run of its own for every test."""
    run, result = _selected
    return type(run)(Path(shutil.copytree(run.root, tmp_path / "toy"))), result
