"""A release that dies, or finds the one before it damaged: the old state or the new one, never half."""

import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from release_toys import Selected, contents, fill, recipe, whole

from builder import release as releasing
from builder import release_files
from builder.errors import ReleaseError
from builder.release import latest_release, release
from builder.selection import select


def test_an_altered_file_of_the_parent_is_written_anew(made: Selected) -> None:
    run, result = made
    first = release(run, recipe(), result)
    path = first.path / "data/low-temperature/train-00000-of-00001.parquet"
    good = path.read_bytes()
    path.write_bytes(good[:-100] + bytes(100))
    second = release(run, recipe(), result)
    assert second.version == "v2"
    assert (second.path / path.relative_to(first.path)).read_bytes() == good
    whole(second.path)


def failing_at(place: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let every file, text and final rename of a release pass until the one at `place`; counts them."""
    count = 0

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count - 1 == place:
                raise error
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, step)

    counted(release_files, "publish_file")
    counted(release_files.pq, "write_table")
    counted(releasing, "render_card")
    counted(Path, "rename")
    return lambda: count


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "interrupt"]
)
def test_a_crash_anywhere_leaves_the_first_version_whole(
    made: Selected, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    run, result = made
    release(run, recipe(), result)
    before = contents(run.releases)
    fill(run, ("t",), (0.6,))
    result = select(run, recipe())
    with monkeypatch.context() as counting:
        steps = failing_at(-1, error, counting)
        shutil.rmtree(release(run, recipe(), result).path)
        total = steps()
    assert total > 10
    for place in range(total):
        with monkeypatch.context() as failing:
            failing_at(place, error, failing)
            raised = (
                pytest.raises(ReleaseError, match="No space left")
                if isinstance(error, OSError)
                else pytest.raises(KeyboardInterrupt)
            )
            with raised:
                release(run, recipe(), result)
        assert contents(run.releases) == before, f"step {place}"
    assert release(run, recipe(), result).version == "v2"


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from builder import release, store
recipe, selected = pickle.loads(Path(sys.argv[2]).read_bytes())
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "rename":
    Path.rename = kill
else:
    release.render_card = kill
release.release(store.Run(Path(sys.argv[1])), recipe, selected)
"""


@pytest.mark.parametrize("place", ["card", "rename"])
def test_a_killed_release_does_not_count(made: Selected, tmp_path: Path, place: str) -> None:
    run, result = made
    (tmp_path / "given").write_bytes(pickle.dumps((recipe(), result)))
    command = [sys.executable, "-c", KILLED, str(run.root), str(tmp_path / "given"), place]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert latest_release(run) is None
    found = release(run, recipe(), result)
    assert found.version == "v1"
    whole(found.path)
